"""Errors about wrong input, which are reported in one line that names the file, the field and what to do."""

import errno
import functools
import reprlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bua.signals import ends_on_signals
from bua.terminal import printable, printable_output

INPUT_ERROR = 2

# Why a file cannot be written: the disk is full, it or the folder is read-only, or the user lacks the permission.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_IDS_SHOWN = 5
_NAME_SHOWN = 80  # characters of a name that is too long

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


class InputError(ValueError):
    """Raised when something that the user gave cannot be used.

    The message is one line: first the file (or option), then the field, then what to do. Names and values in it that
    come from files cannot act on the terminal that shows it (``bua.terminal``).
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def make_folder(path: str | Path) -> Path:
    """Creates a folder, and the folders above it, if they do not exist yet.

    Raises:
        InputError: The path is a file, or the folder cannot be created. The message names the path.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot create this folder: {error.strerror}; name another place") from error
    return path


def first_of(ids: Iterable[int | str]) -> str:
    """Returns the first few of many ids as text, for messages."""
    ids = list(ids)
    return ", ".join(map(str, ids[:_IDS_SHOWN])) + (", ..." if len(ids) > _IDS_SHOWN else "")


def shown(value: object) -> str:
    """Returns a value as Python writes it, cut to a short text, for messages about a value that a file holds. Such a
    value may be a list of any length and depth."""
    return _short.repr(value)


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turns the main function of a tool into one that returns its exit code.

    An ``InputError`` becomes one line on standard error and exit code 2, and so do a path that is too long for the file
    system, a full disk, and a place where one may not write; Ctrl-C becomes exit code 130, and SIGTERM 143. Any other
    exception is a defect of bua and keeps its traceback. Nothing that is printed can act on a terminal
    (``bua.terminal``).
    """

    stoppable = ends_on_signals(main)

    @functools.wraps(main)
    @printable_output()
    def run(*args, **kwargs) -> int:
        try:
            return stoppable(*args, **kwargs) or 0
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return INPUT_ERROR
        except OSError as error:
            # Every place that looks for a file can raise the first, also where only its existence is asked for.
            if error.errno == errno.ENAMETOOLONG:
                line = f"{printable(error.filename):.{_NAME_SHOWN}}...: this path is too long"
            elif error.errno in _NOT_WRITTEN:
                # An error that comes only with the data does not know its file.
                place = "the output" if error.filename is None else printable(error.filename)
                line = f"{place}: {error.strerror}; fix this and run the same command again, or choose another place"
            else:
                raise
            print(f"error: {line}", file=sys.stderr)
            return INPUT_ERROR

    return run
