"""What all formats refuse to write, and what happens when an output is taken away while it is written."""

import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from feature_files import REGION_FORMATS
from feature_samples import assert_same, sample

from bua.errors import InputError
from bua.features import open_features, open_writer
from bua.features.checks import FREE_BYTES, check_expansion, check_regions

ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(1600)],
    "attribute_vocabulary": [f"attribute {number}" for number in range(400)],
}


def changed(field, value, row=0):
    regions = sample(2, seed=1)
    getattr(regions, field)[row] = value
    return regions


def without_a_row(field):
    regions = sample(2, seed=1)
    setattr(regions, field, getattr(regions, field)[1:])
    return regions


def sized(**sizes):
    regions = sample(2, seed=1)
    for name, value in sizes.items():
        setattr(regions, name, value)
    return regions


BAD = [
    (changed("features", np.nan), "image 2: features: 5 of 15 numbers are not finite"),
    (changed("boxes", np.inf), "image 2: boxes: 4 of 12 numbers are not finite"),
    (changed("object_scores", np.nan), "image 2: object_scores: 1 of 3 numbers are not finite"),
    (changed("object_ids", 2**40 + 5), "image 2: object_ids has numbers from .* to 1099511627781"),
    (changed("attribute_ids", -1), "image 2: attribute_ids has numbers from -1"),
    (without_a_row("features"), r"features have the shape \(2, 5\) and boxes \(3, 4\)"),
    (without_a_row("object_ids"), r"object_ids has the shape \(2,\), but there are 3 boxes"),
    (sized(width=2**32), "image 2: width: is not a number of pixels from 0 to 2147483647"),
    (sized(height=2**31), "image 2: height: is not"),
    (sized(width=-1), "image 2: width: is not"),
]


@pytest.mark.parametrize(("regions", "message"), BAD)
def test_what_no_format_can_hold(regions, message):
    with pytest.raises(InputError, match=message):
        check_regions(regions)


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_an_image_with_numbers_that_are_not_finite_fails_alone(tmp_path, format):
    path = tmp_path / "x"
    with open_writer(path, format, ABOUT) as writer:
        writer.append(sample(1))
        with pytest.raises(InputError, match="image 2: features: 5 of 15 numbers are not finite"):
            writer.append(BAD[0][0])
        assert writer.done == {1}
        writer.append(sample(3, seed=3))
        writer.finish()
    assert set(open_features(path)) == {1, 3}


@pytest.mark.parametrize("step", ["sync", "finish"])
@pytest.mark.parametrize("format", [*REGION_FORMATS, "grid-pth"])
def test_an_output_that_is_taken_away_is_noticed(tmp_path, format, step):
    path = tmp_path / "x"
    written = tmp_path / "x.partial" if "hdf5" in format else path
    # The region is the only cell of a grid.
    regions = sample(1, count=1)
    regions.boxes[0] = 0, 0, regions.width, regions.height

    def write():
        with open_writer(path, format, ABOUT) as writer:
            writer.append(regions)
            writer.sync()
            if step == "sync":
                written.rename(tmp_path / "moved")
            else:
                shutil.rmtree(written) if written.is_dir() else written.unlink()
                written.mkdir() if format in ("npz", "mmf", "grid-pth") else written.touch()
            getattr(writer, step)()

    with pytest.raises(InputError, match="was deleted, moved or replaced while it was written"):
        write()
    # What is put back goes on.
    if step == "sync":
        (tmp_path / "moved").rename(written)
        with open_writer(path, format, ABOUT) as writer:
            assert writer.done == {1}


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_an_id_of_more_digits_than_python_converts(tmp_path, format):
    path, long = tmp_path / "x", "1" * 5000
    with open_writer(path, format, ABOUT) as writer:
        writer.append(sample(1))
        holds = format not in ("npz", "mmf", "vilbert-lmdb", "vinvl-tsv", "oscar-tsv")
        with nullcontext() if holds else pytest.raises(InputError, match="image id '1111"):
            writer.append(sample(long, seed=2))
        writer.finish()
    store = open_features(path)
    assert set(store) == ({1, long} if holds else {1})
    assert_same(store[1], sample(1), ("object_ids", "object_scores", "attribute_ids", "attribute_scores"))


def test_sizes_out_of_proportion():
    check_expansion("x", FREE_BYTES, 0)
    check_expansion("x", 2 * FREE_BYTES, FREE_BYTES)
    with pytest.raises(ValueError, match="x: would take 67108865 bytes of memory, but has 1000 bytes in the file"):
        check_expansion("x", FREE_BYTES + 1, 1000)
