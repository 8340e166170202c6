"""Checks the lists of free places in the names of an HDF5 file's groups, before the HDF5 library reads them.

A group of the older kind, which h5py writes by default, has its names in a local heap. The library follows the heap's
list of free places without counting, so that a damaged list that comes back to itself takes all memory. The layout is
that of the HDF5 File Format Specification, 3.0, sections II.A, III.A, III.B and III.D.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from bua.regular_files import open_regular

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# The first superblock is at the start, or at 512 bytes, 1024 and so on.
_FIRST_PLACE = 512
# Version, three other versions and a zero, the sizes of addresses and lengths.
_SUPERBLOCK = struct.Struct("<8sBBBBBBB")
# Where the superblock of version 0 has the base address; version 1 has four bytes more before it.
_BASE = 24
# The root's entry follows four addresses.
_ADDRESSES = 4 * 8
# Where the name is in the heap, the address of the object, what the scratch space has, and the scratch space: of a
# group, the addresses of its tree and of its heap.
_ENTRY = struct.Struct("<QQI4xQQ")
_GROUP = 1
_HEAP = struct.Struct("<4sB3xQQQ")  # signature, version, size, first free place, address of the data
_TREE = struct.Struct("<4sBBHQQ")  # signature, type, level, number of entries, two neighbours
_SYMBOLS = struct.Struct("<4sBxH")  # signature, version, number of entries
_FREE = struct.Struct("<QQ")  # the next free place, the size of this one
_NO_PLACE, _DEEPEST = 1, 32


def check_heaps(path: Path) -> None:
    """Checks the heaps of all groups that can be reached from the root without reading an object's header.

    Raises:
        OSError: A list of free places comes back to itself, or leaves its heap; or the file cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        place = 0
        while (header := os.pread(file.fileno(), 128, place))[:8] != _SIGNATURE:
            place = 2 * place or _FIRST_PLACE
            if place >= size:
                return  # not HDF5, which the library says
        version, sizes = header[8], header[13:15]
        if version > 1 or len(header) < 128:
            return  # groups of the newer kind have no such heaps
        if sizes != bytes([8, 8]):
            raise OSError(f"has addresses and lengths of {sizes[0]} and {sizes[1]} bytes instead of 8")
        at = _BASE + 4 * version
        (base,) = struct.unpack_from("<Q", header, at)
        *_, kind, tree, heap = _ENTRY.unpack_from(header, at + _ADDRESSES)
        groups = {heap: tree} if kind == _GROUP else {}
        waiting, nodes = dict(groups), set[int]()
        while waiting:
            heap, tree = waiting.popitem()
            _check_heap(file.fileno(), base, heap)
            found = _groups_in(file.fileno(), base, tree, _DEEPEST, nodes)
            below = {heap: tree for heap, tree in found if heap not in groups}
            groups |= below
            waiting |= below


def _check_heap(file: int, base: int, address: int) -> None:
    header = _read(file, base + address, _HEAP.size)
    if len(header) < _HEAP.size:
        return
    signature, _, size, free, data = _HEAP.unpack(header)
    if signature != b"HEAP":
        return
    seen: set[int] = set()
    while free != _NO_PLACE:
        place = _read(file, base + data + free, _FREE.size)
        if free in seen or free + _FREE.size > size or len(place) < _FREE.size:
            raise OSError(f"the names of the group at {address} are damaged")
        seen.add(free)
        free, _ = _FREE.unpack(place)


def _groups_in(file: int, base: int, tree: int, levels: int, nodes: set[int]) -> Iterator[tuple[int, int]]:
    """Yields the heap and the tree of each group below a node of a group's tree.

    Args:
        levels: Number of levels that are followed.
        nodes: Addresses of the nodes that were followed before, which are not followed again; it is extended.
    """
    node = _read(file, base + tree, _TREE.size)
    if len(node) < _TREE.size or not levels or tree in nodes:
        return
    nodes.add(tree)
    signature, _, _, count, *_ = _TREE.unpack(node)
    if signature == b"TREE":
        # A key stands before each address, and one behind the last.
        content = _read(file, base + tree + _TREE.size, 16 * count)
        for number in range(len(content) // 16):
            yield from _groups_in(file, base, struct.unpack_from("<Q", content, 16 * number + 8)[0], levels - 1, nodes)
        return
    signature, _, count = _SYMBOLS.unpack_from(node)
    if signature == b"SNOD":
        content = _read(file, base + tree + _SYMBOLS.size, _ENTRY.size * count)
        for number in range(len(content) // _ENTRY.size):
            *_, kind, below, heap = _ENTRY.unpack_from(content, _ENTRY.size * number)
            if kind == _GROUP:
                yield heap, below


def _read(file: int, offset: int, size: int) -> bytes:
    """Returns up to ``size`` bytes, none if the offset is not one of a file."""
    return os.pread(file, size, offset) if offset < 1 << 62 else b""
