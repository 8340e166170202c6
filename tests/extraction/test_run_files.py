import json

import pytest

from bua.errors import InputError
from bua.extraction import ImageFile, Outcome
from bua.extraction.run_files import Failures, beside, check_settings, write_settings

SETTINGS = {"weights": "sha256:1", "max_boxes": 100}


def test_settings_must_stay_the_same_once_the_output_holds_something(tmp_path):
    output = tmp_path / "features.tsv"
    check_settings(output, SETTINGS)
    write_settings(output, SETTINGS)
    check_settings(output, {**SETTINGS, "max_boxes": 36})
    output.write_text("a row")
    check_settings(output, SETTINGS)
    with pytest.raises(InputError, match="was made with max_boxes 100, now it is 36"):
        check_settings(output, {**SETTINGS, "max_boxes": 36})
    with pytest.raises(InputError, match="was made with grid None, now it is True"):
        check_settings(output, {**SETTINGS, "grid": True})


@pytest.mark.parametrize("begun", ["features", "features.partial", "features.shards"])
def test_folders_and_what_is_not_in_the_output_yet_count_too(tmp_path, begun):
    output = tmp_path / "features"
    output.mkdir()
    write_settings(output, SETTINGS)
    check_settings(output, {})
    (tmp_path / begun / "something").mkdir(parents=True)
    check_settings(output, SETTINGS)
    with pytest.raises(InputError, match="was made with"):
        check_settings(output, {})


def test_an_output_without_settings_is_not_ours(tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("mine")
    with pytest.raises(InputError, match=r"no notes.txt.meta.json beside it"):
        check_settings(output, SETTINGS)
    beside(output, "meta.json").write_text("{")
    with pytest.raises(InputError, match="choose another output"):
        check_settings(output, SETTINGS)


def test_failures_are_those_of_this_run(tmp_path):
    output = tmp_path / "features.tsv"
    failures = Failures(output)
    assert not failures.path.exists()
    names = ["a.jpg", "line\nbreak.jpg", "not-utf8-\udcff.jpg"]
    for name in names:
        failures.append(Outcome(ImageFile(name, name), None, "why"))
    lines = [json.loads(line) for line in failures.path.read_text().splitlines()]
    assert lines == [{"image_id": name, "path": name, "reason": "why"} for name in names]
    Failures(output)
    assert not failures.path.exists()
