"""Named pipes in the places of the files of features: reading and continuing features never waits for one.

If one of these tests fails, it waits for ever.
"""

import os
import shutil
from contextlib import suppress

import pytest
from feature_files import REGION_FORMATS
from feature_samples import sample

from bua.errors import InputError
from bua.features import open_features, open_writer
from bua.features.readers import READERS

ABOUT = {f"{kind}_vocabulary": [f"{kind} {number}" for number in range(1600)] for kind in ("object", "attribute")}
TARGETS = [(format, None) for format in REGION_FORMATS]
TARGETS += [(format, reader) for reader, needs in READERS.items() for format in needs.formats]
# Files that are there only in some states of the features.
BESIDE = {"tsv": (".synced", ".index"), "hdf5": (".partial",)}


def add(path, format, reader, *ids):
    with open_writer(path, format, ABOUT, reader) as writer:
        for image_id in ids:
            writer.append(sample(image_id))
        writer.finish()


def without_waiting(path, format, reader):
    with suppress(InputError):
        list(open_features(path).values())
    with suppress(InputError):
        add(path, format, reader, 3)


@pytest.mark.parametrize(("format", "reader"), TARGETS)
def test_no_file_of_features_that_is_a_pipe_is_waited_for(tmp_path, format, reader):
    kind = format.rpartition("-")[2]
    whole, work = tmp_path / "whole", tmp_path / "work"
    whole.mkdir()
    path = work / f"features.{kind}"
    add(whole / path.name, format, reader, 1, 2)
    with suppress(InputError):
        list(open_features(whole / path.name).values())  # makes the files that readers add
    files = [file.relative_to(whole) for file in whole.rglob("*") if file.is_file()]
    assert files
    beside = [f"{path.name}{suffix}" for suffix in BESIDE.get(kind, ())]
    for name in [*files, *beside]:
        shutil.copytree(whole, work)
        (work / name).unlink(missing_ok=True)
        os.mkfifo(work / name)
        without_waiting(path, format, reader)
        shutil.rmtree(work)
