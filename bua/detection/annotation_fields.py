"""Reads and checks the fields of the records in an annotation file."""

from pathlib import Path

import numpy as np

from bua.errors import InputError, shown
from bua.vocabulary import Vocabulary

# Longest name of an image file, in characters. All names take as much memory as the longest.
MAX_NAME = 4096


def read_vocabulary(categories: object, path: Path, field: str) -> Vocabulary:
    """Returns the vocabulary that a list of categories describes. Only ``categories`` must have at least one.

    Args:
        categories: Dictionaries with ``id`` (0, 1, 2, ...), ``name`` and ``aliases``, which may be missing.
        path: The annotation file, for messages.
        field: Name of the list in the file.
    """
    if not isinstance(categories, list):
        raise InputError(f"{path}: {field} is {shown(categories)}; it must be a list of categories")
    ids = read_column(categories, "id", int, path, field)
    names = read_column(categories, "name", str, path, field)
    if ids != list(range(len(ids))):
        raise InputError(f"{path}: {field}: the ids must be 0, 1, 2, ... in this order")
    aliases = [category.get("aliases", ()) for category in categories]
    if not all(isinstance(more, list | tuple) and all(isinstance(name, str) for name in more) for more in aliases):
        raise InputError(f"{path}: {field}: aliases must be lists of names")
    lines = [",".join([name, *more]) for name, more in zip(names, aliases)]
    return Vocabulary(lines, source=f"{path}: {field}", allow_empty=field != "categories")


def read_column(records: list, field: str, kind: type, path: Path, where: str) -> list:
    """Returns the values of one field of all records.

    Args:
        kind: Type of the values. Integers must have at most 64 bits, and texts at most ``MAX_NAME`` characters.
        path: The annotation file, for messages.
        where: Name of the list of records in the file.
    """
    try:
        column = [record[field] for record in records]
    except (KeyError, TypeError, IndexError) as error:
        bad = next(n for n, record in enumerate(records) if not isinstance(record, dict) or field not in record)
        raise InputError(f"{path}: {where}[{bad}] has no {field!r}; see bua/detection/annotations.py") from error
    for number, value in enumerate(column):
        if type(value) is not kind:
            raise InputError(f"{path}: {where}[{number}]: {field} is {shown(value)}, not {kind.__name__}")
    if kind is int and column and not -(2**63) <= min(column) <= max(column) < 2**63:
        raise InputError(f"{path}: {where}: {field} is {max(column, key=abs)} once; it must have at most 64 bits")
    if kind is str and column and max(map(len, column)) > MAX_NAME:
        raise InputError(f"{path}: {where}: {field} has more than {MAX_NAME} characters once; no file has such a name")
    return column


def check_records(good: np.ndarray, path: Path, field: str, complaint: str, where: str = "annotations") -> None:
    """Raises an InputError about the first record for which ``good`` [N] is false."""
    if not good.all():
        raise InputError(f"{path}: {where}[{np.argmin(good)}]: {field}: {complaint}")
