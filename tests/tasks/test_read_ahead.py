"""Tests of making batches ahead, in memory and on a device."""

import threading

import numpy as np
import pytest
import torch

from bua.errors import InputError
from bua.tasks.read_ahead import read_ahead, read_ahead_on
from bua.tasks.region_batches import RegionBatch


@pytest.mark.parametrize("threads", [0, 3])
def test_reads_ahead_in_order_and_no_further(threads):
    started, all_in_work = [], threading.Barrier(max(1, threads))

    def make(share):
        started.append(share)
        if share < threads:
            all_in_work.wait(300)
        return share * share

    batches = read_ahead(make, iter(range(100)), threads)
    assert [next(batches) for _ in range(4)] == [0, 1, 4, 9]
    assert len(started) <= 4 + threads
    assert list(batches) == [i * i for i in range(4, 100)]


def test_an_error_comes_where_its_batch_would():
    def make(share):
        if share == 2:
            raise InputError("an image")
        return share

    batches = read_ahead(make, range(9), 2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(InputError, match="an image"):
        next(batches)


def region_batch(number: int) -> RegionBatch:
    features = torch.full((1, 2, 3), number, dtype=torch.float16)
    return RegionBatch(features, torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), np.array([number]))


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_on_the_cpu_are_ready_for_the_model(threads):
    batches = list(read_ahead_on("cpu", region_batch, range(5), threads))
    assert [batch.image_ids.tolist() for batch in batches] == [[number] for number in range(5)]
    assert [batch.features[0, 0, 0].item() for batch in batches] == list(range(5))
    assert {batch.features.dtype for batch in batches} == {torch.float32}


class FakeStream:
    """A stream of a pretended GPU, which writes down what happens to it."""

    def __init__(self, name: str, events: list):
        self.name, self.events = name, events

    def record_event(self):
        self.events.append((self.name, "records"))
        return f"event {sum(event == (self.name, 'records') for event in self.events)}"

    def wait_event(self, event):
        self.events.append((self.name, f"waits for {event}"))

    def __enter__(self):
        self.events.append((self.name, "current"))

    def __exit__(self, *error):
        self.events.append((self.name, "left"))


class FakeBatch:
    """A batch that writes down where it is copied to."""

    def __init__(self, share: int, events: list):
        self.share, self.events = share, events

    def to(self, device):
        self.events.append((f"batch {self.share}", f"to {device}"))
        return self

    def record_stream(self, stream):
        self.events.append((f"batch {self.share}", f"used by {stream.name}"))


def test_a_batch_is_copied_on_a_stream_of_its_own_and_awaited_on_the_device(monkeypatch):
    events: list[tuple[str, str]] = []
    side, main = FakeStream("side", events), FakeStream("main", events)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    batches = read_ahead_on("cuda:1", lambda share: FakeBatch(share, events), range(2), threads=0)
    assert [batch.share for batch in batches] == [0, 1]
    for share in range(2):
        assert events[6 * share : 6 * share + 6] == [
            ("side", "current"),
            (f"batch {share}", "to cuda:1"),
            ("side", "records"),
            ("side", "left"),
            ("main", f"waits for event {share + 1}"),
            (f"batch {share}", "used by main"),
        ]
