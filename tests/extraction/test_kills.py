"""Runs that are killed at random moments and then continued."""

import os
import random
import shutil
import signal
import time
from functools import partial
from multiprocessing import forkserver

import pytest
from fake_detector import (
    FakeDetector,
    FakeExtractorConfig,
    assert_same_regions,
    exit_code_of,
    fork,
    has_ended,
    make_images,
    wait_for,
)

from bua.extraction import Extractor, RegionChoice, parallel, run
from bua.features import open_features
from bua.features.summary import summarize

IMAGES, KILLS = 60, 11  # for each format
LONGEST_RUN = 0.25  # seconds until a run is killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder of images, and the regions of each."""
    folder = tmp_path_factory.mktemp("kills") / "images"
    extractor = Extractor(FakeDetector(), RegionChoice(12, 12))
    return folder, {image.image_id: regions for image, regions, _ in extractor(make_images(folder, IMAGES))}


@pytest.mark.parametrize("format", ["tsv", "flat", "npz", "hdf5", "vilbert-lmdb"])
def test_no_image_is_missing_or_written_twice(undisturbed, tmp_path, monkeypatch, format):
    folder, regions = undisturbed
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr(run, "ExtractorConfig", FakeExtractorConfig)
    # The time between syncs is about the time between kills.
    monkeypatch.setattr(run, "SYNC_SECONDS", 0.02)
    extract, output = extraction(tmp_path, format), tmp_path / "out"

    def check():
        assert_complete(output, regions)

    kills = 0
    while kills < KILLS:
        child = fork(lambda: extract(folder).failed, tmp_path / "stderr")
        time.sleep(rng.random() * LONGEST_RUN)
        os.kill(child, signal.SIGKILL)
        code = exit_code_of(child)
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0, (tmp_path / "stderr").read_text()
        check()
        for path in tmp_path.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    extract(folder)
    check()
    assert not (tmp_path / "out.failures.jsonl").exists()
    assert extract(folder).skipped == IMAGES


class SlowDetector(FakeDetector):
    def infer(self, batch, boxes=None, *, regress=True):
        time.sleep(0.05)
        return super().infer(batch, boxes, regress=regress)


class SlowExtractorConfig(FakeExtractorConfig):
    """The detector is slow, and processes on several devices begin a new shard often."""

    def load_detector(self, device=None):
        parallel.SHARD_SECONDS = 0.1
        super().load_detector(device)
        return SlowDetector()


@pytest.mark.parametrize(("format", "kills"), [("tsv", 2), ("flat", 1), ("npz", 1)])
def test_runs_on_two_devices_that_are_killed_lose_nothing(undisturbed, tmp_path, monkeypatch, format, kills):
    """They are continued on two devices, and at last on one."""
    folder, regions = undisturbed
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    workers = tmp_path / "workers"
    monkeypatch.setattr(run, "ExtractorConfig", partial(SlowExtractorConfig, loads=str(workers)))
    monkeypatch.setattr(run, "SYNC_SECONDS", 0.05)
    extract, output, written = extraction(tmp_path, format), tmp_path / "out", tmp_path / "written"

    class Recorder(run._Recorder):
        def record(self, event):
            finished = super().record(event)
            written.touch()
            return finished

    def on_two_devices():
        # A server of processes that other tests started belongs to the parent process; a forked one needs its own.
        forkserver._forkserver.__init__()
        run._Recorder = Recorder
        failed = extract(folder, num_gpus=2).failed
        written.touch()  # also if an earlier run had written all images
        return failed

    for _ in range(kills):
        written.unlink(missing_ok=True)
        child = fork(on_two_devices, tmp_path / "stderr")
        # Loading the detectors takes most of the time. Something is written before the process is killed.
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and not written.exists():
            time.sleep(0.01)
        if ended == (0, 0):
            time.sleep(rng.random() * 0.3)
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(ended[1])
        assert code in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()
        if code == 0:
            break
    # The workers of a process that was killed live on until they notice this. A shard that one of them writes meanwhile
    # would be left out.
    wait_for(lambda: all(map(has_ended, map(int, workers.read_text().split()))))
    summary = extract(folder)
    assert summary.skipped > 0
    assert_complete(output, regions)
    assert not (tmp_path / "out.shards").exists()
    assert not (tmp_path / "out.failures.jsonl").exists()


def extraction(folder, format):
    """Returns a function that extracts images to the output ``out`` in a folder."""
    config = folder / "empty.yaml"
    config.write_text("MODEL:\n  DEVICE: cpu\n")

    def extract(images, **options):
        options |= {"format": format, "min_boxes": 12, "max_boxes": 12}
        return run.extract(images, folder / "out", config_file=config, weights="random", **options)

    return extract


def assert_complete(output, regions):
    store = open_features(output)
    assert sorted(store) == list(range(IMAGES))
    for image_id in store:
        assert_same_regions(store[image_id], regions[image_id])
    del store  # a process can open an LMDB only once at a time
    summary = summarize(output)
    assert summary.images == IMAGES
    assert not summary.faults()
