"""How bad input is reported: one line that names the file, the field and what to do."""

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

INPUT_ERROR = 2
INTERRUPTED = 130

_SHOWN = 5


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the file (or option) first, then the field, then what to do.
    """


def make_folder(path: str | Path) -> Path:
    """Makes a folder, and those above it, where they are missing.

    Raises:
        InputError: names the path: it is a file, or may not be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder: {error.strerror}; name another place") from error
    return path


def first_of(ids: Iterable[int | str]) -> str:
    """The first few of a list of ids, for messages."""
    ids = list(ids)
    return ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turns the main function of a tool into one that returns its exit code.

    ``InputError`` becomes one line on standard error and exit code 2, Ctrl-C becomes exit code 130.
    Anything else is a defect of bua and keeps its traceback.
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
