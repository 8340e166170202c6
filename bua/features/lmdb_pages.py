"""Checks that the pages of an LMDB file lie in the file, before the file is mapped into memory.

LMDB trusts its files: a page that lies behind the end of the file, as in a copy that was cut off, kills the process
(SIGBUS), and an entry that points out of its page is read as it is. An LMDB has two meta pages, of which the one with
the higher transaction number counts. Each has the roots of two trees: the pages that are free, and the entries. The
pages of a tree have the offsets of their nodes. The value of a node is in its page, or, if it is long, on pages of its
own (overflow pages).
"""

import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bua.regular_files import open_regular

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = 16  # bytes at the start of each page: page number, padding, flags, and the bounds of the free space
_META = struct.Struct("<IIQQ48s48sQQ")  # magic, version, address, size of the map, free tree, entries, last page, txn
_TREE = struct.Struct("<IHHQQQQQ")  # page size (of the free tree only), flags, depth, three counts, entries, root
_OVERFLOW_HEADER = struct.Struct("<QHHI")  # page number, padding, flags, number of pages
_NO_ROOT = 2**64 - 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
# Flags of a tree whose keys are compared in another way or have several values. The keys of free pages are integers.
_OTHER_KEYS, _INTEGER_KEY = 0x7E, 0x08
_BIG_VALUE = 1  # flag of a node whose value is on overflow pages
_LONGEST_WAY = 32  # LMDB's limit on the depth of a tree
# How often a file is checked again that another process changes meanwhile.
_TRIES = 20


class _Meta(NamedTuple):
    page_size: int
    last_page: int
    transaction: int
    free_flags: int
    free_root: int
    flags: int
    root: int


def check_pages(path: Path, *, writing: bool = False) -> None:
    """Checks the file of an LMDB, so that reading its entries does not leave the file.

    All pages but those of long values are read, which is a thousandth of a file of features.

    Args:
        path: The file.
        writing: Whether to check the order of the keys and the list of free pages too, on which a writer relies: pages
            that are in use must not be in it.

    Raises:
        ValueError: It is not such a file, it is truncated, or its pages are damaged.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        for _ in range(_TRIES):
            meta = _newest_meta(file.fileno())
            try:
                _check_trees(file.fileno(), meta, writing)
                return
            except ValueError:
                # Another process may have written new pages in place of those that were just being read.
                if meta == _newest_meta(file.fileno()):
                    raise
    raise ValueError("is being written; wait until it is complete")


def _newest_meta(file: int) -> _Meta:
    first = _read_meta(file, 0)
    second = _read_meta(file, first.page_size)
    return second if second.transaction > first.transaction else first


def _read_meta(file: int, offset: int) -> _Meta:
    page = os.pread(file, _HEADER + _META.size, offset)
    if len(page) < _HEADER + _META.size:
        raise ValueError("is truncated: it has no complete meta pages")
    magic, version, _, _, free, entries, last_page, transaction = _META.unpack_from(page, _HEADER)
    flags = int.from_bytes(page[10:12], "little")
    # The version of data is in the lower 31 bits.
    if not flags & _META_PAGE or magic != _MAGIC or version & 0x7FFFFFFF != _VERSION:
        raise ValueError("its meta pages are not those of an LMDB")
    page_size, free_flags, *_, free_root = _TREE.unpack(free)
    _, tree_flags, *_, root = _TREE.unpack(entries)
    if page_size & (page_size - 1) or not 256 <= page_size <= 65536:
        raise ValueError(f"its meta page has the page size {page_size}")
    return _Meta(page_size, last_page, transaction, free_flags, free_root, tree_flags, root)


def _check_trees(file: int, meta: _Meta, writing: bool) -> None:
    size = os.fstat(file).st_size
    # The file may be shorter than its last page: LMDB does not write pages that were freed in the same transaction.
    pages = min(size // meta.page_size, meta.last_page + 1)
    damage = (
        "is truncated or damaged"
        if pages == meta.last_page + 1
        else f"is truncated: it has {size} of {(meta.last_page + 1) * meta.page_size} bytes"
    )
    trees = _Trees(file, meta, pages, damage, bytearray(pages), writing)
    if meta.flags & _OTHER_KEYS:
        raise ValueError(f"{damage}: its entries are not those of a plain LMDB")
    entries = trees.check(meta.root)
    if not writing:
        return
    if b"" in entries.keys or any(key >= after for key, after in pairwise(entries.keys)):
        raise ValueError(f"{damage}: its keys are not in order")
    if meta.free_flags & _OTHER_KEYS != _INTEGER_KEY:
        raise ValueError(f"{damage}: its list of free pages is wrong")
    free = trees.check(meta.free_root)
    for start, length in entries.long_values + free.long_values:
        trees.take_long_value(start, length)
    for start, length in free.values:
        # A record is the number of pages, and the pages, the last first.
        content = np.frombuffer(os.pread(file, length, start), "<u8")
        if not len(content) or content[0] != len(content) - 1 or not trees.take(content[:0:-1]):
            raise ValueError(f"{damage}: its list of free pages is wrong")


class _Nodes(NamedTuple):
    """What the leaves of a tree have.

    Attributes:
        keys: The keys, in the order of the pages.
        values: Where the values are in the file, as (start, number of bytes).
        long_values: Those of ``values`` that are on overflow pages.
    """

    keys: list[bytes]
    values: list[tuple[int, int]]
    long_values: list[tuple[int, int]]


class _Trees(NamedTuple):
    """The file whose trees are checked.

    Attributes:
        file: Its descriptor.
        meta: Its newest meta page.
        pages: Number of pages that it has.
        damage: How messages begin.
        taken: For each page, whether something that was checked uses it.
        writing: Whether ``check`` returns the contents of leaves, which readers do not need.
    """

    file: int
    meta: _Meta
    pages: int
    damage: str
    taken: bytearray
    writing: bool

    def check(self, root: int) -> _Nodes:
        """Checks the pages of a tree."""
        nodes = _Nodes([], [], [])
        level = [] if root == _NO_ROOT else [root]
        for _ in range(_LONGEST_WAY):
            if not level:
                return nodes
            level = [page for number in level for page in self._check_page(number, nodes)]
        raise ValueError(f"{self.damage}: its pages are nested too deep")

    def take(self, numbers: np.ndarray) -> bool:
        """Marks free pages as used. Returns False if they are not in ascending order, or one cannot be free.

        Args:
            numbers: [n] uint64.
        """
        if (numbers[1:] <= numbers[:-1]).any():
            return False
        if len(numbers) and not 2 <= numbers[0] <= numbers[-1] <= self.meta.last_page:
            return False
        taken, within = np.frombuffer(self.taken, np.uint8), numbers[numbers < self.pages]
        if taken[within].any():
            return False
        taken[within] = 1
        return True

    def take_long_value(self, start: int, length: int) -> None:
        """Checks the header of a value's overflow pages, which LMDB frees by it, and marks them as used."""
        first, size = start // self.meta.page_size, self.meta.page_size
        number, _, flags, count = _OVERFLOW_HEADER.unpack(os.pread(self.file, _HEADER, first * size))
        # A shorter value that replaces a longer one keeps its pages.
        needed = (_HEADER - 1 + length) // size + 1
        fits = (number, flags) == (first, _OVERFLOW) and needed <= count <= self.pages - first
        if not fits or any(self.taken[first : first + count]):
            raise ValueError(f"{self.damage}: page {first} has wrong contents")
        self.taken[first : first + count] = bytes([1]) * count

    def _check_page(self, number: int, nodes: _Nodes) -> list[int]:
        """Checks the nodes of a page, and adds those of a leaf to ``nodes``. Returns the pages below it."""
        if not 2 <= number < self.pages or self.taken[number]:
            raise ValueError(f"{self.damage}: page {number} of {self.pages} pages is not there, or twice in the trees")
        self.taken[number] = 1
        page_size = self.meta.page_size
        page = np.frombuffer(os.pread(self.file, page_size, number * page_size), np.uint8)
        if len(page) < page_size:
            raise ValueError(f"{self.damage}: page {number} is not there")
        wrong = ValueError(f"{self.damage}: page {number} has wrong contents")
        flags, lower, upper = (int(value) for value in page[10:16].view("<u2"))
        if flags not in (_BRANCH, _LEAF) or page[:8].view("<u8")[0] != number:
            raise wrong
        if not _HEADER <= lower <= upper <= page_size or lower % 2:
            raise wrong
        offsets = page[_HEADER:lower].view("<u2").astype(np.int64)
        if len(offsets) and (offsets.min() < upper or offsets.max() + 8 > page_size or (offsets % 2).any()):
            raise wrong
        low, high, node_flags, key_size = (
            page[offsets + at].astype(np.int64) + (page[offsets + at + 1].astype(np.int64) << 8) for at in (0, 2, 4, 6)
        )
        keys_end = offsets + 8 + key_size
        if flags == _BRANCH:
            if not len(offsets) or (keys_end > page_size).any():
                raise wrong
            below: list[int] = (low + (high << 16) + (node_flags << 32)).tolist()
            return below
        size = low + (high << 16)
        big = node_flags == _BIG_VALUE
        # Other flags are those of databases within the database, and of several values of one key.
        if (node_flags & ~_BIG_VALUE).any() or (keys_end + np.where(big, 8, size) > page_size).any():
            raise wrong
        long_values = np.flatnonzero(big).tolist()
        starts = number * page_size + keys_end
        for index in long_values:
            first = int(page[keys_end[index] : keys_end[index] + 8].view("<u8")[0])
            start = first * page_size + _HEADER
            last = (start + int(size[index]) - 1) // page_size
            if not 2 <= first <= last < self.pages:
                raise ValueError(f"{self.damage}: the value on page {first} of {self.pages} pages is not there")
            starts[index] = start
        if self.writing:
            content, values = page.tobytes(), list(zip(starts.tolist(), size.tolist()))
            nodes.keys.extend(content[start + 8 : end] for start, end in zip(offsets.tolist(), keys_end.tolist()))
            nodes.values.extend(values)
            nodes.long_values.extend(values[index] for index in long_values)
        return []
