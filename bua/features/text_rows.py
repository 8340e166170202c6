"""Functions that are common to the formats with one line of text per image."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from bua.errors import InputError
from bua.features.ids import parse_id
from bua.regular_files import open_regular


def open_for_reading(path: Path) -> BinaryIO:
    """Opens a file.

    Raises:
        InputError: The file cannot be opened.
    """
    try:
        return open_regular(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_line(file: BinaryIO, start: int, end: int) -> bytes:
    """Returns the bytes from ``start`` to ``end``.

    This reads without a file position, which processes and threads that use the same file would share.
    """
    return os.pread(file.fileno(), end - start, start)


def append_line(file: int, line: bytes | memoryview) -> None:
    """Appends a line to a file (a descriptor), which keeps its size if the line cannot be written completely."""
    start = os.fstat(file).st_size
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.ftruncate(file, start)
        raise


def unread_lines(ids: Iterable[str], rows: Mapping[int | str, int]) -> Iterator[str]:
    """Yields a message for each line that is not read: it has no id, the id of an earlier line, or is incomplete.

    Args:
        ids: The id in each line as text, or "" if the line has no id.
        rows: The number of the line that is read for each id, counted from 0.
    """
    for row, image_id in enumerate(ids):
        earlier = rows.get(parse_id(image_id))
        if image_id == "":
            yield f"line {row + 1}: no columns"
        elif earlier is None:
            yield f"line {row + 1}: incomplete"
        elif earlier != row:
            yield f"line {row + 1}: image {image_id} again, which line {earlier + 1} has"
