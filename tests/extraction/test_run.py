"""Runs from images to a file, with a fake detector."""

import errno
import json
import logging
import mmap
import os
import resource
import threading
import time

import numpy as np
import pytest
from fake_detector import FakeDetector, FakeExtractorConfig, assert_same_features, exit_code_of, fork, make_images
from feature_files import REGION_FORMATS

from bua.errors import InputError, command
from bua.extraction import Extractor, ImageFile, RegionChoice, progress, run, write_behind
from bua.extraction.run_files import FailureLog
from bua.features import open_features, open_writer
from bua.features.summary import summarize

VOCABULARIES = {"object_vocabulary": [f"o{i}" for i in range(8)], "attribute_vocabulary": [f"a{i}" for i in range(5)]}


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", 7)


def write(images, output, format="tsv", *, min_boxes=12, max_boxes=12, on_error="skip", detector=None, **options):
    extractor = Extractor(detector or FakeDetector(), RegionChoice(min_boxes, max_boxes), **options)
    with open_writer(output, format, VOCABULARIES) as writer:
        return run.write_features(extractor, images, writer, FailureLog(output), stop_on_error=on_error == "stop")


@pytest.fixture
def extract(monkeypatch, tmp_path):
    """``bua.extraction.extract`` on the fake detector."""
    monkeypatch.setattr(run, "ExtractorConfig", FakeExtractorConfig)
    config = tmp_path / "empty.yaml"
    config.write_text("MODEL:\n  DEVICE: cpu\n")

    def call(images, output, **options):
        return run.extract(images, output, config_file=config, weights="random", min_boxes=12, max_boxes=12, **options)

    return call


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_every_image_is_written_once(tmp_path, images, format):
    summary = write(images, tmp_path / "out", format)
    assert (summary.done, summary.skipped, summary.failed) == (7, 0, 0)
    assert summary.images_per_second > 0
    store = open_features(tmp_path / "out")
    assert set(store) == set(range(7))
    for i in range(7):
        assert (store[i].width, store[i].height) == (48, 32 + 8 * (i % 3))
        assert len(store[i]) == 12
    # A process can open an LMDB only once at a time.
    del store
    assert not summarize(tmp_path / "out").problems
    again = write(images, tmp_path / "out", format)
    assert (again.done, again.skipped) == (0, 7)


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_continues_after_an_interruption(tmp_path, images, format):
    class Interrupted(FakeDetector):
        def infer(self, batch, boxes=None, *, regress=True):
            if batch[0].image_id == 4:
                raise KeyboardInterrupt
            return super().infer(batch, boxes, regress=regress)

    write(images, tmp_path / "whole", format)
    with pytest.raises(KeyboardInterrupt):
        write(images, tmp_path / "out", format, detector=Interrupted())
    summary = write(images, tmp_path / "out", format)
    assert (summary.done, summary.skipped) == (3, 4)
    assert_same_features(tmp_path / "whole", tmp_path / "out")


def test_batches_and_workers_write_the_same(tmp_path, images):
    write(images, tmp_path / "plain")
    write(images, tmp_path / "parallel", batch_size=3, num_workers=2)
    assert_same_features(tmp_path / "plain", tmp_path / "parallel")


def test_failures_are_listed_and_tried_again(tmp_path, images):
    image = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    (tmp_path / "images" / "5.png").unlink()
    images.append(ImageFile(images[0].path, "tab\tid"))
    summary = write(images, tmp_path / "out", batch_size=2)
    assert (summary.done, summary.failed) == (5, 3)
    lines = (tmp_path / "out.failures.jsonl").read_text().splitlines()
    failures = {failure["image_id"]: failure for failure in map(json.loads, lines)}
    assert set(failures) == {2, 5, "tab\tid"}
    assert failures[5]["path"] == images[5].path
    assert "No such file" in failures[5]["reason"]

    (tmp_path / "images" / "2.png").write_bytes(image)
    summary = write(images[:5], tmp_path / "out")
    assert (summary.done, summary.skipped, summary.failed) == (1, 4, 0)
    assert not (tmp_path / "out.failures.jsonl").exists()


def test_stop_at_the_first_failure_keeps_what_is_written(tmp_path, images):
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3.png: .*not an image.*; --on-error skip continues with") as error:
        write(images, tmp_path / "out", on_error="stop")
    assert str(error.value).count("3.png") == 1
    assert {0, 1, 2} <= set(open_features(tmp_path / "out"))
    assert json.loads((tmp_path / "out.failures.jsonl").read_text())["image_id"] == 3
    assert write(images, tmp_path / "out").failed == 1
    assert set(open_features(tmp_path / "out")) == {0, 1, 2, 4, 5, 6}


class FullAfter:
    """A writer on a disk with room for ``images`` images."""

    def __init__(self, writer, images):
        self.writer, self.images = writer, images
        self.done = writer.done

    def append(self, regions):
        if not self.images:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.images -= 1
        self.writer.append(regions)

    def finish(self):
        self.writer.finish()


@pytest.mark.parametrize("format", ["tsv", "flat", "npz", "hdf5", "vilbert-lmdb"])
def test_a_full_disk_is_one_line_and_the_next_run_completes(tmp_path, images, format):
    output = tmp_path / "out"
    with (
        pytest.raises(
            InputError,
            match=rf"{output}: cannot be written: No space left on device; make room and run the same command again",
        ),
        open_writer(output, format, VOCABULARIES) as writer,
    ):
        run.write_features(
            Extractor(FakeDetector(), RegionChoice(12, 12)), images, FullAfter(writer, 3), FailureLog(output)
        )
    summary = write(images, output, format)
    assert (summary.done, summary.skipped) == (4, 3)
    write(images, tmp_path / "whole", format)
    assert_same_features(tmp_path / "whole", output)


@pytest.mark.parametrize("format", ["tsv", "flat", "vinvl-tsv"])
def test_a_file_that_may_not_grow_is_one_line_and_the_next_run_completes(tmp_path, format):
    """The system refuses to write in the middle of a record."""
    images = make_images(tmp_path / "images", 40)
    output = tmp_path / "out"

    @command
    def main():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12001, 12001))
        write(images, output, format)

    assert exit_code_of(fork(main, tmp_path / "stderr")) == 2
    message = (
        f"error: {output}: cannot be written: File too large; make room and run the same command again to continue\n"
    )
    assert (tmp_path / "stderr").read_text() == message
    there = set(open_features(output))
    assert 2 < len(there) < 40
    summary = write(images, output, format)
    assert (summary.skipped, summary.done) == (len(there), 40 - len(there))
    write(images, tmp_path / "whole", format)
    assert_same_features(tmp_path / "whole", output)
    assert not summarize(output).problems


@pytest.mark.parametrize("format", ["tsv", "flat"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "noise"])
def test_continues_after_a_crash_of_the_machine(tmp_path, format, damage):
    """Data that was not synced may be lost or damaged."""
    images = make_images(tmp_path / "images", 12)
    output = tmp_path / "out"
    extractor = Extractor(FakeDetector(), RegionChoice(12, 12))
    outcomes = extractor(images)
    with open_writer(output, format, VOCABULARIES) as writer:
        for _ in range(5):
            writer.append(next(outcomes).regions)
        writer.sync()
        files = [output] if format == "tsv" else sorted(output.glob("*.bin"))
        sizes = [file.stat().st_size for file in files]
        for _ in range(5):
            writer.append(next(outcomes).regions)

    rng = np.random.default_rng(0)
    for file, size in zip(files, sizes):
        rest = file.stat().st_size - size
        kept = int(rng.integers(0, rest + 1)) if rest else 0
        new = {"cut": b"", "zeros": bytes(rest - kept), "noise": rng.bytes(rest - kept)}[damage]
        with open(file, "r+b") as handle:
            handle.seek(size + kept)
            handle.truncate()
            handle.write(new)

    summary = write(images, output, format)
    assert summary.skipped >= 5
    assert summary.skipped + summary.done == 12
    write(images, tmp_path / "whole", format)
    assert_same_features(tmp_path / "whole", output)
    assert not summarize(output).problems


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_the_name_of_an_output_need_not_be_utf_8(tmp_path, images, format):
    output = tmp_path / os.fsdecode(b"out\xff")
    assert write(images[:2], output, format).done == 2
    assert len(open_features(output)) == 2


def test_an_lmdb_that_found_no_room_for_its_first_pages_is_begun_anew(tmp_path, images):
    write(images, tmp_path / "whole", "vilbert-lmdb")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.mdb").write_bytes((tmp_path / "whole" / "data.mdb").read_bytes()[: mmap.PAGESIZE])
    assert write(images, tmp_path / "out", "vilbert-lmdb").done == 7
    assert_same_features(tmp_path / "whole", tmp_path / "out")


def test_a_second_run_at_the_same_time_is_refused_and_changes_nothing(tmp_path, images, extract):
    started, go_on = threading.Event(), threading.Event()

    class Waiting(FakeDetector):
        def infer(self, batch, boxes=None, *, regress=True):
            started.set()
            assert go_on.wait(300)
            return super().infer(batch, boxes, regress=regress)

    class WaitingExtractorConfig(FakeExtractorConfig):
        def load_detector(self, device=None):
            return Waiting()

    output = tmp_path / "out"
    run.ExtractorConfig = WaitingExtractorConfig
    first = threading.Thread(target=extract, args=(tmp_path / "images", output), daemon=True)
    first.start()
    assert started.wait(300)
    run.ExtractorConfig = FakeExtractorConfig
    settings = (tmp_path / "out.meta.json").read_bytes()
    with pytest.raises(InputError, match=rf"process {os.getpid()} on .* is writing to it; wait until it is done"):
        extract(tmp_path / "images", output)
    with pytest.raises(InputError, match="is writing to it"):
        extract(tmp_path / "images", output, regressed=True)
    assert (tmp_path / "out.meta.json").read_bytes() == settings
    go_on.set()
    first.join(300)
    assert set(open_features(output)) == set(range(7))
    assert extract(tmp_path / "images", output).skipped == 7
    left = {path.name for path in tmp_path.glob("out*")}
    assert left == {"out", "out.meta.json", "out.index"}


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_a_run_that_is_killed_before_its_first_image_can_be_continued(tmp_path, images, extract, format, monkeypatch):
    def killed(*args, **options):
        raise SystemExit

    options = {"format": format, "vocabulary": vocabulary(tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_features", killed)
        with pytest.raises(SystemExit):
            extract(tmp_path / "images", tmp_path / "out", **options)
    assert extract(tmp_path / "images", tmp_path / "out", **options).done == 7


def vocabulary(folder):
    """Writes a vocabulary that fits the configuration. The fake detector predicts its first classes."""
    for name, number in {"objects": 1600, "attributes": 400}.items():
        (folder / f"{name}_vocab.txt").write_text("".join(f"{name}{i}\n" for i in range(number)))
    return folder


def test_other_settings_are_refused(tmp_path, images, extract):
    output = tmp_path / "out"
    extract(tmp_path / "images", output)
    written = output.read_bytes()
    for options, message in {
        "regressed": ({"regressed": True}, "made with regressed False, now it is True"),
        "precision": ({"precision": "bf16"}, "made with precision fp32, now it is bf16"),
        "format": ({"format": "lxmert-tsv"}, "made with format tsv, now it is lxmert-tsv"),
    }.values():
        with pytest.raises(InputError, match=message):
            extract(tmp_path / "images", output, **options)
    assert output.read_bytes() == written
    assert extract(tmp_path / "images", output, batch_size=3, num_workers=2).skipped == 7


def test_syncs_in_intervals(tmp_path, images, monkeypatch):
    synced = []
    monkeypatch.setattr(run, "SYNC_SECONDS", 0)
    with open_writer(tmp_path / "out", "tsv") as writer:
        monkeypatch.setattr(writer, "sync", lambda: synced.append(len(writer.done)))
        run.write_features(
            Extractor(FakeDetector(), RegionChoice(12, 12)), images, writer, FailureLog(tmp_path / "out")
        )
    assert synced == [1, 2, 3, 4, 5, 6, 7]


def test_a_log_has_lines_of_progress(tmp_path, images, monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0)
    write(images[:2], tmp_path / "out")
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    with caplog.at_level(logging.INFO):
        write(images, tmp_path / "out")
    lines = [record.message for record in caplog.records if "per second" in record.message]
    assert lines[-1].startswith("7 of 7 images, ")
    assert lines[-1].endswith(" per second, 0:00:00 left, 1 failed")
    assert "\r" not in capsys.readouterr().err


def test_the_detector_is_not_far_ahead_of_a_slow_disk(tmp_path, monkeypatch):
    images = make_images(tmp_path / "images", 30)
    monkeypatch.setattr(write_behind, "MAX_UNWRITTEN", 3)
    extracted, ahead = 0, []

    def extractor(images):
        nonlocal extracted
        for outcome in Extractor(FakeDetector(), RegionChoice(12, 12))(images):
            extracted += 1
            yield outcome

    with open_writer(tmp_path / "out", "tsv") as writer:
        append = writer.append

        def slow(regions):
            time.sleep(0.002)
            append(regions)
            ahead.append(extracted - len(writer.done))

        monkeypatch.setattr(writer, "append", slow)
        run.write_features(extractor, images, writer, FailureLog(tmp_path / "out"))
    assert max(ahead) <= 3 + 2
    assert list(open_features(tmp_path / "out")) == list(range(30))
