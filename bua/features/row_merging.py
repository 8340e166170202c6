"""Appends the rows of one text file to another as they are, without decoding them."""

import mmap
import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from bua.features.ids import parse_id
from bua.features.text_rows import append_line, open_for_reading

# Size of the stretches of rows that are written at once. If the disk gets full, the stretch is cut off again.
_STRETCH_BYTES = 64 << 20


def append_rows_of(
    part: Path, file: int, done: set[int | str], id_of: Callable[[bytes], str]
) -> Iterator[dict[int | str, int]]:
    """Appends the complete rows of ``part`` to ``file`` (a descriptor that appends), except those of images in
    ``done``, to which their ids are added.

    Args:
        id_of: Returns the id in the first column of a row.

    Yields:
        The length in bytes of each row that was appended, by its id, in their order, for some rows at a time.
    """
    with open_for_reading(part) as rows:
        if not os.fstat(rows.fileno()).st_size:
            return
        # It is not closed explicitly, since an error may keep references to a part of it.
        content = mmap.mmap(rows.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(content)
    for start, end, lengths in _stretches(content, done, id_of):
        append_line(file, view[start:end])
        done.update(lengths)
        yield lengths


def _stretches(
    content: mmap.mmap, done: Container[int | str], id_of: Callable[[bytes], str]
) -> Iterator[tuple[int, int, dict[int | str, int]]]:
    """Yields the start, the end and the length of each row of stretches of rows whose ids are not in ``done``."""
    start = position = 0
    lengths: dict[int | str, int] = {}
    while end := content.find(b"\n", position) + 1:
        tab = content.find(b"\t", position, end)
        image_id = parse_id(id_of(content[position : max(tab, position)]))
        new = tab >= 0 and image_id not in done and image_id not in lengths
        if lengths and (not new or end - start > _STRETCH_BYTES):
            yield start, position, lengths
            lengths = {}
        if not lengths:
            start = position
        if new:
            lengths[image_id] = end - position
        position = end
    if lengths:
        yield start, position, lengths
