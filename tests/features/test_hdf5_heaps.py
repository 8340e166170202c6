"""The check of the heaps of an HDF5 file's groups accepts what h5py writes, and refuses lists that have no end."""

import struct

import h5py
import numpy as np
import pytest

from bua.errors import InputError
from bua.features import open_features
from bua.features.hdf5_heaps import check_heaps


def _write(path, **options):
    with h5py.File(path, "w", **options) as file:
        for number in range(40):
            group = file.create_group(f"folder/image {number}")
            group["features"] = np.ones((2, 3), np.float32)
        del file["folder/image 7"]


@pytest.mark.parametrize("options", [{}, {"userblock_size": 512}, {"userblock_size": 1024}, {"libver": "latest"}])
def test_what_h5py_writes_is_accepted(tmp_path, options):
    _write(tmp_path / "x.hdf5", **options)
    check_heaps(tmp_path / "x.hdf5")


def _heaps(content: bytes, base: int) -> list[tuple[int, int]]:
    """Returns for each heap where its list of free places begins: where the header says so, and the first place."""
    found, at = [], content.find(b"HEAP")
    while at >= 0:
        free, data = struct.unpack_from("<QQ", content, at + 16)
        if free != 1:
            found.append((at + 16, base + data + free))
        at = content.find(b"HEAP", at + 1)
    return found


@pytest.mark.parametrize("base", [0, 512])
def test_a_list_of_free_places_without_an_end_is_refused(tmp_path, base):
    path = tmp_path / "x.hdf5"
    _write(path, userblock_size=base)
    content = path.read_bytes()
    heaps = _heaps(content, base)
    assert len(heaps) > 30  # one for each group
    for header, first in (heaps[0], heaps[1], heaps[-1]):
        (free,) = struct.unpack_from("<Q", content, header)
        for place, value in ((first, free), (first, 2**40), (header, 2**63), (header, 2**64 - 8)):
            damaged = bytearray(content)
            struct.pack_into("<Q", damaged, place, value)
            path.write_bytes(damaged)
            with pytest.raises(OSError, match=r"the names of the group at .* are damaged"):
                check_heaps(path)


def test_a_tree_that_comes_back_to_itself_is_followed_once(tmp_path):
    path = tmp_path / "x.hdf5"
    _write(path)
    content = bytearray(path.read_bytes())
    tree = content.index(b"TREE")
    struct.pack_into("<H", content, tree + 6, 40)
    struct.pack_into("<80Q", content, tree + 24, *[tree] * 80)
    path.write_bytes(content)
    check_heaps(path)


def test_features_whose_names_are_damaged_are_refused(tmp_path):
    path = tmp_path / "features.hdf5"
    with h5py.File(path, "w") as file:
        file["image_features"], file["removed"] = np.ones((2, 3), np.float32), 1
        del file["removed"]
    content = bytearray(path.read_bytes())
    header, first = _heaps(content, 0)[0]
    content[first : first + 8] = content[header : header + 8]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"the names of the group at .* are damaged"):
        open_features(path)
