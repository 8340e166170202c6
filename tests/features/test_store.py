import sqlite3

import numpy as np
import pytest
from feature_files import REGION_FORMATS
from feature_samples import LABELS, assert_same, sample

from bua.errors import InputError
from bua.features import open_features, open_writer

ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(1600)],
    "attribute_vocabulary": [f"attribute {number}" for number in range(400)],
}


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_every_format_is_recognised(tmp_path, format):
    path = tmp_path / "new folder" / "features"
    with open_writer(path, format, ABOUT) as writer:
        for seed, image_id in enumerate((3, "x")):
            writer.append(sample(image_id, seed=seed))
        writer.finish()
    stored = dict(open_features(path))
    assert stored.keys() == {3, "x"}
    for seed, image_id in enumerate((3, "x")):
        assert_same(stored[image_id], sample(image_id, seed=seed), LABELS)
    with open_writer(path, format, ABOUT) as writer:
        assert writer.done == {3, "x"}
        writer.append(sample(4, seed=4))
        writer.finish()
    assert set(open_features(path)) == {3, 4, "x"}
    assert not path.with_name("features.lock").exists()


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_a_stopped_writer_continues(tmp_path, format):
    """The next writer finds all synced images, even if the block of the previous writer raised an exception."""
    path = tmp_path / "features"

    def stop():
        with open_writer(path, format, ABOUT) as writer:
            writer.append(sample(1, seed=1))
            writer.sync()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    with open_writer(path, format, ABOUT) as writer:
        assert writer.done == {1}
        writer.append(sample(2, seed=2))
        writer.finish()
    store = open_features(path)
    assert set(store) == {1, 2}
    assert_same(store[1], sample(1, seed=1), LABELS)


def test_the_flat_formats_store_about(tmp_path):
    for format in REGION_FORMATS:
        with open_writer(tmp_path / format, format, ABOUT) as writer:
            writer.append(sample(1))
            writer.finish()
    assert open_features(tmp_path / "flat").about == ABOUT
    assert open_features(tmp_path / "flat-fp16").features(1).dtype == np.float16
    assert_same(open_features(tmp_path / "flat-fp16")[1], sample(1))


def test_a_path_without_features_is_refused(tmp_path):
    with pytest.raises(InputError, match="gone: cannot be read"):
        open_features(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no header\.json, data\.mdb, \.npz, \.npy or \.pth"):
        open_features(tmp_path)
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(InputError, match="is empty"):
        open_features(tmp_path / "empty.tsv")
    (tmp_path / "notes.txt").write_text("a\tb\n")
    with pytest.raises(InputError, match="has 2 columns"):
        open_features(tmp_path / "notes.txt")
    sqlite3.connect(tmp_path / "other.db").execute("create table t (x)").connection.close()
    with pytest.raises(InputError, match="columns"):
        open_features(tmp_path / "other.db")


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="is unknown; use one of tsv"), open_writer(tmp_path / "x", "pickle"):
        pass
    with pytest.raises(InputError, match="Is a directory"), open_writer(tmp_path, "tsv"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), open_writer(tmp_path / "file" / "features.tsv", "tsv"):
        pass


def test_only_one_writer_at_a_time(tmp_path):
    path = tmp_path / "features.tsv"
    with open_writer(path, "tsv") as writer:
        with pytest.raises(InputError, match=r"features\.tsv: process \d+ on .* is writing"), open_writer(path, "tsv"):
            pass
        writer.append(sample(1))
        writer.finish()
    assert list(open_features(path)) == [1]
