"""Errors about wrong input, which are reported in one line that names the file, the field and what to do."""

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

INPUT_ERROR = 2
INTERRUPTED = 130

_IDS_SHOWN = 5


class InputError(ValueError):
    """Raised when something that the user gave cannot be used.

    The message is one line: first the file (or option), then the field, then what to do.
    """


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


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turns the main function of a tool into one that returns its exit code.

    An ``InputError`` becomes one line on standard error and exit code 2; Ctrl-C becomes exit code 130. Any other
    exception is a defect of bua and keeps its traceback.
    """

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return INPUT_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    return run
