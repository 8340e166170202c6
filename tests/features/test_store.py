import numpy as np
import pytest

from bua.errors import InputError
from bua.features import FORMATS, open_features, open_writer
from bua.structures import Regions


def regions_of(image_id):
    rng = np.random.default_rng(1)
    ids, scores = rng.integers(0, 9, 2), rng.random(2, np.float32)
    return Regions(
        image_id, 64, 48, rng.random((2, 4), np.float32), rng.random((2, 3), np.float32), ids, scores, ids, scores
    )


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised(tmp_path, format):
    path = tmp_path / "new folder" / "features"
    writer = open_writer(path, format)
    for image_id in (3, "x"):
        writer.append(regions_of(image_id))
    writer.close()
    store = open_features(path)
    assert dict.fromkeys(store) == {3: None, "x": None}
    assert np.array_equal(store[3].features, regions_of(3).features)
    again = open_writer(path, format)
    assert again.done == {3, "x"}
    again.close()


def test_nothing_to_open(tmp_path):
    with pytest.raises(InputError, match="gone: cannot be read"):
        open_features(tmp_path / "gone")
    with pytest.raises(InputError, match="no npz files"):
        open_features(tmp_path)
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(InputError, match="empty"):
        open_features(tmp_path / "empty.tsv")
    (tmp_path / "notes.txt").write_text("a\tb\n")
    with pytest.raises(InputError, match="2 columns"):
        open_features(tmp_path / "notes.txt")


def test_nowhere_to_write(tmp_path):
    with pytest.raises(InputError, match="unknown; use one of tsv"):
        open_writer(tmp_path / "x", "pickle")
    with pytest.raises(InputError, match="Is a directory"):
        open_writer(tmp_path, "tsv")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        open_writer(tmp_path / "file" / "features.tsv", "tsv")
