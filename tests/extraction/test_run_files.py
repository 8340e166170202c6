import errno
import json
import os
from pathlib import Path

import pytest

from bua.errors import InputError
from bua.extraction import ImageFile, Outcome
from bua.extraction.extractor_config import ExtractorConfig, settings_of
from bua.extraction.run_files import FailureLog, check_settings, path_beside, settings_beside
from bua.extraction.shards import explaining_write_errors

SETTINGS = {"weights": "sha256:1", "max_boxes": 100}


def test_settings_must_stay_the_same_once_the_output_holds_something(tmp_path):
    output = tmp_path / "features.tsv"
    check_settings(output, SETTINGS)
    with settings_beside(output, SETTINGS):
        pass
    check_settings(output, {**SETTINGS, "max_boxes": 36})
    output.write_text("a row")
    check_settings(output, SETTINGS)
    with pytest.raises(InputError, match="was made with max_boxes 100, now it is 36"):
        check_settings(output, {**SETTINGS, "max_boxes": 36})
    with pytest.raises(InputError, match="was made with grid None, now it is True"):
        check_settings(output, {**SETTINGS, "grid": True})


def test_an_output_has_a_name():
    with pytest.raises(InputError, match=r"^\.: is no name for an output; name a file"):
        path_beside(Path(""), "meta.json")


def test_keys_of_training_and_evaluation_are_no_settings():
    """A new key among the settings would keep outputs of earlier versions from being continued."""
    overrides = ("INPUT.FLIP_WORDS", "True", "MODEL.BUA.EVALUATION.ZERO_ROWS", "True", "MODEL.BUA.DUMP.PERIOD", "5")
    config = ExtractorConfig("vg_r101.yaml", overrides, "random")
    keys = settings_of(config, config.cfg("cpu"), "tsv").keys()
    names = ("FORMAT", "MAX_SIZE_TEST", "MIN_SIZE_TEST", "RANDOM_FLIP")
    assert {key for key in keys if key.startswith("INPUT.")} == {f"INPUT.{name}" for name in names}
    assert {key.split(".")[2] for key in keys if key.startswith("MODEL.BUA.")} == {
        *("ATTRIBUTES", "BOX_CONVENTION", "FREEZE", "RESIZE", "RESNET_VERSION", "STEM_POOL"),
    }


@pytest.mark.parametrize("content", ["", "a row"])
def test_an_output_that_could_not_be_begun_leaves_no_settings(tmp_path, content):
    output = tmp_path / "features.tsv"
    output.write_text(content)
    with pytest.raises(InputError, match="the disk is full"), settings_beside(output, SETTINGS):
        raise InputError("the disk is full")
    assert path_beside(output, "meta.json").exists() == bool(content)
    (tmp_path / "loop").symlink_to("loop")
    with (
        pytest.raises(InputError, match="Too many levels of symbolic links"),
        settings_beside(tmp_path / "loop", SETTINGS),
        explaining_write_errors(tmp_path / "loop"),
    ):
        (tmp_path / "loop").write_text("a row")
    assert not path_beside(tmp_path / "loop", "meta.json").exists()


@pytest.mark.parametrize("begun", ["features", "features.partial", "features.shards"])
def test_folders_and_features_outside_the_output_count_too(tmp_path, begun):
    output = tmp_path / "features"
    output.mkdir()
    with settings_beside(output, SETTINGS):
        pass
    check_settings(output, {})
    (tmp_path / begun / "something").mkdir(parents=True)
    check_settings(output, SETTINGS)
    with pytest.raises(InputError, match="was made with"):
        check_settings(output, {})


def test_an_output_without_settings_is_refused(tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("mine")
    with pytest.raises(InputError, match=r"notes.txt.meta.json, which says how it was made, is not there"):
        check_settings(output, SETTINGS)
    for damaged in (b"{", b"[]", b"3", b"[" * 100_000, b"\xff", b'{"a": ' + b"1" * 5000 + b"}"):
        path_beside(output, "meta.json").write_bytes(damaged)
        with pytest.raises(InputError, match=r"notes.txt.meta.json, .* cannot be read; choose another output"):
            check_settings(output, SETTINGS)
    path_beside(output, "meta.json").unlink()
    os.mkfifo(path_beside(output, "meta.json"))
    with pytest.raises(InputError, match=r"notes.txt.meta.json, .* cannot be read; choose another output"):
        check_settings(output, SETTINGS)


def test_failures_are_those_of_this_run(tmp_path):
    output = tmp_path / "features.tsv"
    failures = FailureLog(output)
    assert not failures.path.exists()
    names = ["a.jpg", "line\nbreak.jpg", "not-utf8-\udcff.jpg"]
    for name in names:
        failures.append(Outcome(ImageFile(name, name), None, "why"))
    lines = [json.loads(line) for line in failures.path.read_text().splitlines()]
    assert lines == [{"image_id": name, "path": name, "reason": "why"} for name in names]
    FailureLog(output)
    assert not failures.path.exists()


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "make room and run"),
        (errno.ENOENT, "put back what was deleted or moved, and run"),
        (errno.EROFS, "make the disk writable and run"),
        (errno.EIO, "fix this and run"),
    ],
)
def test_the_advice_fits_the_error(tmp_path, code, advice):
    with pytest.raises(InputError, match=advice), explaining_write_errors(tmp_path):
        raise OSError(code, os.strerror(code))


def test_a_list_of_failures_that_cannot_be_written_is_named(tmp_path):
    output = tmp_path / "features.tsv"
    failures = FailureLog(output)
    failures.path.mkdir()
    for use in (lambda: failures.append(Outcome(ImageFile("a.jpg", 1), None, "why")), lambda: FailureLog(output)):
        with pytest.raises(InputError, match=r"failures.jsonl: cannot be written: Is a directory; fix this"):
            use()
