"""Batches on their way through ``Lanes``, with streams that do nothing."""

import contextlib
import threading

import pytest
import torch

from bua.extraction import ImageFile
from bua.extraction.pipeline import FLUSH_BATCHES, Lanes, Outcome, PreparedImage, TooLarge, take_batches

IMAGES = [PreparedImage(ImageFile(f"{i}.jpg", i), "inputs") for i in range(20)]


class Stream:
    def __init__(self, device=None):
        self.waited = []

    def record_event(self):
        return "weights are ready"

    def wait_event(self, event):
        self.waited.append(event)


@pytest.fixture
def lanes(monkeypatch):
    used = []

    @contextlib.contextmanager
    def use(stream):
        used.append(stream)
        yield
        assert stream.waited

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    lanes = Lanes(torch.device("cuda"), 3)
    lanes.used = used
    return lanes


def outcomes_of(batch):
    return [Outcome(image, None, "done") for image, _ in batch]


def test_batches_have_images_in_their_order_and_end_at_a_flush():
    stream = [*IMAGES[:5], FLUSH_BATCHES, FLUSH_BATCHES, *IMAGES[5:9]]
    batches = list(take_batches(stream, 4))
    assert batches == [IMAGES[:4], IMAGES[4:5], None, None, IMAGES[5:9]]


def test_several_batches_run_at_a_time_and_outcomes_keep_the_order(lanes):
    together = threading.Barrier(3)

    def extract(batch):
        together.wait(timeout=300)  # passes only if three batches run at the same time
        return outcomes_of(batch)

    batches = [IMAGES[i : i + 2] for i in range(0, 18, 2)]
    outcomes = list(lanes.run(batches, extract))
    assert [outcome.image.image_id for outcome in outcomes] == list(range(18))
    assert len(set(map(id, lanes.used))) == 3


def test_no_more_batches_are_taken_than_lanes_and_none_is_left_at_a_flush(lanes):
    given, done = 0, 0

    def stream():
        nonlocal given
        for i, image in enumerate(IMAGES):
            given += 1
            yield [image]
            # The batch that is asked for next is not in progress yet.
            assert given - done <= lanes.number + 1
            if i == 9:
                yield FLUSH_BATCHES
                assert given == done

    for _ in lanes.run(stream(), outcomes_of):
        done += 1
    assert done == len(IMAGES)


def test_a_batch_that_does_not_fit_is_done_one_by_one_while_nothing_else_runs(lanes):
    running, most = set(), []
    lock = threading.Lock()

    def extract(batch):
        ids = tuple(image.image_id for image, _ in batch)
        with lock:
            running.add(ids)
            if len(batch) == 1:
                most.append(len(running))
        try:
            # Of the second batch, one image fits by itself, and the other does not.
            if ids in {(2, 3), (3,)}:
                return TooLarge("out of memory")
            return outcomes_of(batch)
        finally:
            with lock:
                running.remove(ids)

    outcomes = list(lanes.run([IMAGES[i : i + 2] for i in range(0, 10, 2)], extract))
    assert [outcome.image.image_id for outcome in outcomes] == list(range(10))
    assert [outcome.image.image_id for outcome in outcomes if outcome.reason == "out of memory"] == [3]
    assert most == [1, 1]


def test_an_error_ends_all_lanes(lanes):
    before = set(threading.enumerate())

    def extract(batch):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        list(lanes.run([IMAGES[:2], IMAGES[2:4]], extract))
    stopped = lanes.run([[image] for image in IMAGES], outcomes_of)
    next(stopped)
    stopped.close()
    assert set(threading.enumerate()) <= before  # those of other tests may have ended meanwhile
    # The streams are free again.
    assert len(list(lanes.run([IMAGES[:2]] * 4, outcomes_of))) == 8
