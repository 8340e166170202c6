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
_NO_ROOT = 2**64 - 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG_VALUE = 1  # flag of a node whose value is on overflow pages
_LONGEST_WAY = 32  # LMDB's limit on the depth of a tree
# How often a file is checked again that another process changes meanwhile.
_TRIES = 20


class _Meta(NamedTuple):
    page_size: int
    last_page: int
    transaction: int
    free_root: int
    root: int


def check_pages(path: Path, *, writing: bool = False) -> None:
    """Checks the file of an LMDB, so that reading its entries does not leave the file.

    All pages but those of long values are read, which is a thousandth of a file of features.

    Args:
        path: The file.
        writing: Whether to check the list of free pages and the order of the keys too, on which a writer relies.

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
    page_size, *_, free_root = _TREE.unpack(free)
    root = _TREE.unpack(entries)[-1]
    if page_size & (page_size - 1) or not 256 <= page_size <= 65536:
        raise ValueError(f"its meta page has the page size {page_size}")
    return _Meta(page_size, last_page, transaction, free_root, root)


def _check_trees(file: int, meta: _Meta, writing: bool) -> None:
    size = os.fstat(file).st_size
    # The file may be shorter than its last page: LMDB does not write pages that were freed in the same transaction.
    pages = min(size // meta.page_size, meta.last_page + 1)
    damage = (
        "is truncated or damaged"
        if pages == meta.last_page + 1
        else f"is truncated: it has {size} of {(meta.last_page + 1) * meta.page_size} bytes"
    )
    keys: list[bytes] = []
    _check_tree(file, meta, meta.root, pages, damage, keys if writing else None)
    if writing:
        if b"" in keys or any(key >= after for key, after in pairwise(keys)):
            raise ValueError(f"{damage}: its keys are not in order")
        for start, length in _check_tree(file, meta, meta.free_root, pages, damage):
            # A record is the number of pages, and the pages.
            content = np.frombuffer(os.pread(file, length, start), "<u8")
            if not len(content) or content[0] != len(content) - 1 or (content[1:] > meta.last_page).any():
                raise ValueError(f"{damage}: its list of free pages is wrong")


def _check_tree(
    file: int, meta: _Meta, root: int, pages: int, damage: str, keys: list[bytes] | None = None
) -> list[tuple[int, int]]:
    """Checks the pages of a tree, and adds its keys to ``keys``. Returns where the values are in the file, as (start,
    number of bytes)."""
    if root == _NO_ROOT:
        return []
    values: list[tuple[int, int]] = []
    seen: set[int] = set()
    level = [root]
    for _ in range(_LONGEST_WAY):
        below: list[int] = []
        for number in level:
            if not 2 <= number < pages or number in seen:
                raise ValueError(f"{damage}: page {number} of {pages} pages is not there, or twice in the tree")
            seen.add(number)
            page = np.frombuffer(os.pread(file, meta.page_size, number * meta.page_size), np.uint8)
            if len(page) < meta.page_size:
                raise ValueError(f"{damage}: page {number} is not there")
            below += _check_page(page, number, meta, pages, damage, values, keys)
        if not below:
            return values
        level = below
    raise ValueError(f"{damage}: its pages are nested too deep")


def _check_page(
    page: np.ndarray,
    number: int,
    meta: _Meta,
    pages: int,
    damage: str,
    values: list[tuple[int, int]],
    keys: list[bytes] | None,
) -> list[int]:
    """Checks the nodes of a page, and adds the places of their values, and their keys. Returns the pages below it."""
    wrong = ValueError(f"{damage}: page {number} has wrong contents")
    flags, lower, upper = (int(value) for value in page[10:16].view("<u2"))
    if flags & (_BRANCH | _LEAF | _OVERFLOW | _META_PAGE) not in (_BRANCH, _LEAF) or page[:8].view("<u8")[0] != number:
        raise wrong
    if not _HEADER <= lower <= upper <= meta.page_size or lower % 2:
        raise wrong
    offsets = page[_HEADER:lower].view("<u2").astype(np.int64)
    if len(offsets) and (offsets.min() < upper or offsets.max() + 8 > meta.page_size or (offsets % 2).any()):
        raise wrong
    low, high, node_flags, key_size = (
        page[offsets + at].astype(np.int64) + (page[offsets + at + 1].astype(np.int64) << 8) for at in (0, 2, 4, 6)
    )
    keys_end = offsets + 8 + key_size
    if flags & _BRANCH:
        if not len(offsets) or (keys_end > meta.page_size).any():
            raise wrong
        below: list[int] = (low + (high << 16) + (node_flags << 32)).tolist()
        return below
    size = low + (high << 16)
    big = (node_flags & _BIG_VALUE) != 0
    if (keys_end + np.where(big, 8, size) > meta.page_size).any():
        raise wrong
    if keys is not None:
        content = page.tobytes()
        keys += [content[start + 8 : end] for start, end in zip(offsets.tolist(), keys_end.tolist())]
    starts = number * meta.page_size + keys_end
    for index in np.flatnonzero(big).tolist():
        first = int(page[keys_end[index] : keys_end[index] + 8].view("<u8")[0])
        start = first * meta.page_size + _HEADER
        last = (start + int(size[index]) - 1) // meta.page_size
        if not 2 <= first <= last < pages:
            raise ValueError(f"{damage}: the value on page {first} of {pages} pages is not there")
        starts[index] = start
    values += zip(starts.tolist(), size.tolist())
    return []
