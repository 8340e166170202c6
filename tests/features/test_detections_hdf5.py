"""Continuing an HDF5 file of the M2 transformer that is damaged, or that another program wrote."""

import os
import random
import shutil

import h5py
import numpy as np
import pytest
from feature_samples import assert_same, sample

from bua.errors import InputError
from bua.features import open_features, open_writer


def add(path, *ids):
    with open_writer(path, "hdf5", reader="m2") as writer:
        for image_id in ids:
            writer.append(sample(image_id, seed=image_id))
        writer.finish()


def test_a_damaged_file_is_refused_in_one_line_or_continued(tmp_path):
    path = tmp_path / "x.hdf5"
    add(path, 1, 2, 3)
    whole, chance, messages = path.read_bytes(), random.Random(0), []
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(8):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            add(path, 4)
        except InputError as error:
            messages.append(str(error))
            assert path.read_bytes() == content
            shutil.rmtree(tmp_path / "x.hdf5.partial", ignore_errors=True)
        else:
            assert_same(open_features(path)[4], sample(4, seed=4))
    assert any(message.endswith("choose another output") for message in messages)
    assert any("move it away, and run the same command again" in message for message in messages)
    assert not any("\n" in message for message in messages)


def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.hdf5")
    with pytest.raises(InputError, match=r"x\.hdf5: cannot be read as HDF5: .*named pipe.*; choose another output"):
        add(tmp_path / "x.hdf5", 1)


def test_data_of_other_files_are_not_copied(tmp_path):
    path = tmp_path / "x.hdf5"
    add(path, 1)
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["secret"] = np.ones((3, 5), np.float32)
    with h5py.File(path, "a") as file:
        file["2_features"] = h5py.ExternalLink("other.hdf5", "/secret")
    with pytest.raises(
        InputError, match=r"x\.hdf5: cannot be read as HDF5: 2_features is not a data set; move it away"
    ):
        add(path, 3)
    os.remove(path)
    add(path)  # the images of the run that failed are still there
    assert_same(open_features(path)[3], sample(3, seed=3))


def test_what_other_programs_wrote_is_kept(tmp_path):
    path = tmp_path / "x.hdf5"
    add(path, 1)
    with h5py.File(path, "a") as file:
        file.create_dataset(
            "1_grid", data=np.arange(98).reshape(7, 14), chunks=(7, 7), compression="gzip", shuffle=True
        )
        file["1_grid"].attrs["stride"] = 32
        file["number"] = 5
    add(path, 2)
    with h5py.File(path) as file:
        grid = file["1_grid"]
        np.testing.assert_array_equal(grid[()], np.arange(98).reshape(7, 14))
        assert (grid.chunks, grid.compression, grid.shuffle, grid.attrs["stride"]) == ((7, 7), "gzip", True, 32)
        assert file["number"][()] == 5
    for image_id in (1, 2):
        assert_same(open_features(path)[image_id], sample(image_id, seed=image_id))


def test_boxes_without_features_are_replaced(tmp_path):
    path = tmp_path / "x.hdf5"
    add(path, 1, 2)
    with h5py.File(path, "a") as file:
        del file["2_features"]
        file["2_cls_prob"] = np.ones((7, 5), np.float32)
    add(path, 2)
    assert_same(open_features(path)[2], sample(2, seed=2))
