"""Prepared folders are read; missing and damaged files are reported in one line."""

from dataclasses import dataclass

import numpy as np
import pytest

from bua.errors import InputError
from bua.tasks.prepared import (
    PreparedDataset,
    begin_folder,
    check_arrays,
    check_ids,
    check_offsets,
    concatenate,
    offsets_of,
    prepared_folder,
    read_arrays,
    read_split,
    write_json,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("train", "val", "word_vectors"):
        np.savez(tmp_path / f"{name}.npz", ids=np.arange(50), words=np.arange(200, dtype=np.int32).reshape(50, 4))
    (tmp_path / "toy.json").write_text("{}")
    return tmp_path


def test_a_split_is_read(folder):
    assert prepared_folder(str(folder), "toy.json", "prepare-toy") == folder
    name, arrays = read_split(folder, "val", ("ids",), "prepare-toy")
    assert name == f"{folder}/val.npz"
    assert arrays["ids"].tolist() == list(range(50))
    assert arrays["words"].shape == (50, 4)


def test_missing_files_and_arrays_are_reported_in_one_line(folder):
    with pytest.raises(InputError, match=r"test\.npz: no such split; .* has train, val$"):
        read_split(folder, "test", ("ids",), "prepare-toy")
    with pytest.raises(InputError, match=r"val\.npz: lacks boxes; prepare it again with bua prepare-toy"):
        read_split(folder, "val", ("ids", "boxes"), "prepare-toy")
    with pytest.raises(InputError, match=r"no other\.json in it; prepare it with bua prepare-toy"):
        prepared_folder(folder, "other.json", "prepare-toy")


def test_a_truncated_file_is_reported_in_one_line(folder):
    path = folder / "val.npz"
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"val\.npz: damaged .*; prepare it again with bua prepare-toy"):
            read_arrays(path, ("ids",), "prepare-toy")


def test_a_damaged_file_is_not_read(folder):
    path = folder / "val.npz"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 400, 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            arrays = read_arrays(path, ("ids", "words"), "prepare-toy")
        except InputError:
            continue
        assert arrays["words"].tolist() == np.arange(200).reshape(50, 4).tolist()


@dataclass
class ToyDataset(PreparedDataset):
    """Images with words."""

    ARRAYS = ("image_ids", "offsets", "words")

    name: str
    image_ids: np.ndarray
    offsets: np.ndarray
    words: np.ndarray


def test_data_sets_are_saved_and_joined(tmp_path):
    first = ToyDataset("a", np.array([7, 8]), offsets_of([2, 0]), np.array([[1], [2]]))
    second = ToyDataset("b", np.array([9]), offsets_of([1]), np.array([[3]]))
    assert len(first) == 2
    first.save(tmp_path / "a.npz")
    arrays = read_arrays(tmp_path / "a.npz", ToyDataset.ARRAYS, "prepare-toy")
    assert {name: value.tolist() for name, value in arrays.items()} == {
        "image_ids": [7, 8],
        "offsets": [0, 2, 2],
        "words": [[1], [2]],
    }
    name, joined = concatenate([first, second], offsets=["offsets"])
    assert name == "a + b"
    assert joined["image_ids"].tolist() == [7, 8, 9]
    assert joined["offsets"].tolist() == [0, 2, 2, 3]
    assert joined["offsets"].dtype == np.int64
    assert joined["words"].tolist() == [[1], [2], [3]]


def test_rows_of_other_lengths_are_reported_in_one_line():
    first, second = (ToyDataset(f"a{n}", np.array([n]), offsets_of([1]), np.zeros((1, n), int)) for n in (3, 4))
    with pytest.raises(InputError, match=r"^a3 \+ a4: the rows of words differ in length; prepare them together$"):
        concatenate([first, second], offsets=["offsets"])


def test_offsets_of_nothing():
    assert offsets_of([]).tolist() == [0]


def test_a_folder_is_begun_without_what_an_earlier_run_left(tmp_path):
    folder = begin_folder(tmp_path / "new", "toy.json", ("train.npz",))
    write_json(folder / "toy.json", {"a": 1})
    for name in ("train.npz", "other.npz"):
        (folder / name).touch()
    assert begin_folder(folder, "toy.json", ("train.npz",)) == folder
    assert [path.name for path in folder.iterdir()] == ["other.npz"]


def test_arrays_of_other_kinds_and_lengths_are_reported_in_one_line():
    arrays = {"ids": np.arange(3), "words": np.zeros((3, 4), np.int32), "boxes": np.zeros((2, 4), np.float32)}
    check_arrays("a.npz", arrays, {"ids": "i1", "words": "i2x4"}, "prepare-toy")
    for forms in ({"words": "i2x2"}, {"ids": "i2"}, {"ids": "f1"}, {"other": "i1"}, {"ids": "i1", "boxes": "f2"}):
        with pytest.raises(InputError, match=r"^a\.npz: damaged .*; prepare it again: bua prepare-toy$"):
            check_arrays("a.npz", arrays, forms, "prepare-toy")


def test_ids_beyond_the_vocabulary_and_broken_offsets_are_reported_in_one_line():
    check_ids("a.npz", np.array([0, 4]), 5, "prepare-toy")
    check_ids("a.npz", np.array([], np.int32), 0, "prepare-toy")
    for ids in ([0, 5], [-1], [0.5]):
        with pytest.raises(InputError, match=r"a\.npz: has ids that the vocabulary beside it lacks"):
            check_ids("a.npz", np.array(ids), 5, "prepare-toy")
    check_offsets("a.npz", np.array([0, 2, 2, 5]), 5, "prepare-toy", 3)
    for offsets in ([], [1, 5], [0, 6], [0, 3, 2, 5], [0, 2, 5]):
        with pytest.raises(InputError, match=r"a\.npz: damaged"):
            check_offsets("a.npz", np.array(offsets, np.int64), 5, "prepare-toy", 3)
