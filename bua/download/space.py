"""Space on disks: how much is free, how it is written in messages, and what happens when there is none."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bua.errors import InputError


class NoSpace(InputError):
    """Raised when the disk is full, or too small. Other files need not be tried."""


def free_space(path: Path) -> int:
    """Returns the free space in bytes on the disk of a file or folder, which need not exist yet."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """Returns a file or folder if it exists, else the nearest folder above it that does."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def readable(size: float) -> str:
    """Returns a number of bytes in words, such as "13.5 GB"."""
    units = ["GB", "MB", "kB", "bytes"]
    unit = units.pop()
    while size >= 999.5 and units:
        size, unit = size / 1000, units.pop()
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 99.95 else f"{size:.1f} {unit}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the errors of writing a file into one line that names it.

    Raises:
        NoSpace: The disk is full.
        InputError: The file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{path}: the disk is full; free some space, and run the same command to go on") from error
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error
