"""Runs that are killed at random moments and then continued."""

import os
import random
import shutil
import signal
import time

import pytest
from fake_detector import FakeDetector, FakeExtractorConfig, assert_same_regions, exit_code_of, fork, make_images

from bua.extraction import Extractor, RegionChoice, run
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
    config, output = tmp_path / "empty.yaml", tmp_path / "out"
    config.write_text("MODEL:\n  DEVICE: cpu\n")

    def extract():
        options = {"format": format, "min_boxes": 12, "max_boxes": 12}
        return run.extract(folder, output, config_file=config, weights="random", **options)

    def check():
        store = open_features(output)
        assert sorted(store) == list(range(IMAGES))
        for image_id in store:
            assert_same_regions(store[image_id], regions[image_id])
        del store  # a process can open an LMDB only once at a time
        summary = summarize(output)
        assert summary.images == IMAGES
        assert not summary.faults()

    kills = 0
    while kills < KILLS:
        child = fork(lambda: extract().failed, tmp_path / "stderr")
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
    extract()
    check()
    assert not (tmp_path / "out.failures.jsonl").exists()
    assert extract().skipped == IMAGES
