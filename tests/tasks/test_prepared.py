"""Damage to what was prepared has its line, wherever it is."""

import numpy as np
import pytest

from bua.errors import InputError
from bua.tasks.prepared import prepared_folder, read_arrays, read_split


@pytest.fixture
def folder(tmp_path):
    for name in ("train", "val", "word_vectors"):
        np.savez(tmp_path / f"{name}.npz", ids=np.arange(50), words=np.arange(200, dtype=np.int32).reshape(50, 4))
    (tmp_path / "toy.json").write_text("{}")
    return tmp_path


def test_a_split_is_read(folder):
    assert prepared_folder(str(folder), "toy.json", "prepare_toy.py") == folder
    name, arrays = read_split(folder, "val", ("ids",), "prepare_toy.py")
    assert name == f"{folder}/val.npz"
    assert arrays["ids"].tolist() == list(range(50))
    assert arrays["words"].shape == (50, 4)


def test_what_is_not_there_has_its_line(folder):
    with pytest.raises(InputError, match=r"test\.npz: no such split; .* has train, val$"):
        read_split(folder, "test", ("ids",), "prepare_toy.py")
    with pytest.raises(InputError, match=r"val\.npz: lacks boxes; prepare it again with datasets/prepare_toy\.py"):
        read_split(folder, "val", ("ids", "boxes"), "prepare_toy.py")
    with pytest.raises(InputError, match=r"no other\.json in it; prepare it with datasets/prepare_toy\.py"):
        prepared_folder(folder, "other.json", "prepare_toy.py")


def test_a_truncated_file_has_its_line_wherever_it_ends(folder):
    path = folder / "val.npz"
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"val\.npz: damaged .*; prepare it again with datasets/prepare_toy\.py"):
            read_arrays(path, ("ids",), "prepare_toy.py")


def test_a_damaged_file_is_not_taken_for_whole(folder):
    path = folder / "val.npz"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 400, 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            arrays = read_arrays(path, ("ids", "words"), "prepare_toy.py")
        except InputError:
            continue
        assert arrays["words"].tolist() == np.arange(200).reshape(50, 4).tolist()
