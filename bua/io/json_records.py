"""Reads JSON files, and lists of records whole or piece by piece.

Visual Genome's files are read piece by piece: they have 0.4 to 1 GB, and take ten times as much memory when they are
parsed as a whole.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from tqdm import tqdm

from bua.errors import InputError, shown
from bua.regular_files import open_regular, read_regular
from bua.terminal import printable

PIECE_BYTES = 2**20  # larger pieces are slower, since their records do not fit into the CPU's cache
# A list whose record does not end would be read, and searched again with each piece, up to the end of the file.
MAX_RECORD_BYTES = 64 * 2**20
_BLANKS = b" \t\r\n"
# By how much each byte changes the depth of nesting.
_DEPTH_CHANGE = np.zeros(256, dtype=np.int8)
_DEPTH_CHANGE[[ord("["), ord("{")]] = 1
_DEPTH_CHANGE[[ord("]"), ord("}")]] = -1


def iter_records(path: str | Path, progress: bool = True, piece_bytes: int = PIECE_BYTES) -> Iterator[dict]:
    """Yields the records of a file that holds one JSON list of objects, in the order of the file.

    Args:
        path: The file.
        progress: Whether to show a progress bar.
        piece_bytes: Number of bytes that are read and parsed at a time. About ten times as much memory is used.

    Raises:
        InputError: There is no such file, or it is not a JSON list of objects, truncated, or damaged, or a record has
            more than ``MAX_RECORD_BYTES`` bytes.
    """
    path = Path(path)
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    size = os.fstat(file.fileno()).st_size
    with file, tqdm(total=size, desc=printable(path.name), unit="B", unit_scale=True, disable=not progress) as bar:
        head = file.read(piece_bytes).lstrip(_BLANKS)
        if not head.startswith(b"["):
            raise InputError(f"{path}: the top level must be a list of records, as in files of Visual Genome")
        pending, closed = head[1:], False
        while not closed:
            cut, closed = _cut(pending)
            for record in _parse(pending[:cut], path, file.tell()):
                if not isinstance(record, dict):
                    raise InputError(f"{path}: the list must hold objects {{...}}, as in files of Visual Genome")
                yield record
            if not closed:
                more = file.read(piece_bytes)
                if not more:
                    raise InputError(f"{path}: is truncated at byte {file.tell()}: the list does not end; get it again")
                pending = pending[cut:] + more
                if len(pending) > MAX_RECORD_BYTES + 2 * piece_bytes:
                    raise InputError(
                        f"{path}: the record before byte {file.tell()} has more than {MAX_RECORD_BYTES >> 20} MiB; "
                        "is this the right file?"
                    )
            bar.update(file.tell() - bar.n)


def read_json(path: str | Path, advice: str = "get it again", missing: str = "name another file") -> object:
    """Returns the content of a JSON file.

    orjson refuses values that are nested deeper than 1024 times, whereas Python's own parser would exceed the limit of
    the interpreter's stack. It reads integers of more than 64 bits as floating-point numbers.

    Args:
        advice: What to do about a file that cannot be read, for messages.
        missing: What to do if there is no such file, for messages.

    Raises:
        InputError: There is no such file, it is no regular file, or it is not JSON.
    """
    try:
        with without_gc():
            content: object = orjson.loads(read_regular(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {missing}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; {advice}") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON ({error}); {advice}") from error
    return content


def read_records(source: str | Path | dict | list, key: str | None) -> tuple[str, list]:
    """Returns the name of a JSON file for messages, and the list of records in it.

    Args:
        source: The file, or its parsed content.
        key: The key of the list in the file, such as "annotations". None if the file holds only the list.

    Raises:
        InputError: There is no such file, it is not JSON, or it has no such list.
    """
    kind = f"a list of {key} under {key!r}" if key else "a list of results"
    name = key or "results"
    content: object = source
    if isinstance(source, str | Path):
        name = str(source)
        missing = "name another file, or fetch the data set with `bua download`" if key else "name another file"
        content = read_json(source, f"give a file with {kind}", missing)
    if key and isinstance(content, dict):
        content = content.get(key)
    if not isinstance(content, list):
        raise InputError(f"{name}: does not hold {kind}; give another file")
    return name, content


def column(name: str, records: list, field: str, kind: type) -> list:
    """Returns the values of one field of all records.

    Args:
        name: Name of the file, for messages.
        kind: Type of the values: int (of at most 64 bits), str or list.

    Raises:
        InputError: A record lacks the field, or has it with another type. The message names the file, the record and
            the field.
    """
    try:
        values = [record[field] for record in records]
    except (TypeError, KeyError):
        values = [record.get(field) if isinstance(record, dict) else None for record in records]
    for number, value in enumerate(values):
        if type(value) is not kind:
            words = {int: "an integer", str: "a string", list: "a list"}[kind]
            raise InputError(f"{name}: record {number}: {field} is {shown(value)}; it must be {words}")
    if kind is int and values and not -(2**63) <= min(values) <= max(values) < 2**63:
        raise InputError(f"{name}: {field} is {max(values, key=abs)} in a record; it must have at most 64 bits")
    return values


@contextmanager
def without_gc() -> Iterator[None]:
    """Disables Python's garbage collector for the duration of the block.

    While millions of records are parsed, it would examine all of them again and again, which would take most of the
    time, and find nothing: the records have no reference cycles.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cut(text: bytes) -> tuple[int, bool]:
    """Finds where the text after the opening bracket of a list can be cut.

    Returns:
        The position at which the list ends, and True; or, if it does not end in this text, the position at which the
        last complete record ends (0 if there is none), and False.
    """
    # Escaped quotes do not end a string. Pairs of backslashes are replaced first, since a quote after a pair is not
    # escaped.
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    codes = np.frombuffer(plain, dtype=np.uint8)
    brackets = np.flatnonzero(_DEPTH_CHANGE[codes])
    in_string = np.searchsorted(np.flatnonzero(codes == ord('"')), brackets) % 2 == 1
    brackets = brackets[~in_string]
    depth = np.cumsum(_DEPTH_CHANGE[codes[brackets]], dtype=np.int64)
    closing = np.flatnonzero(depth < 0)
    if len(closing):
        return int(brackets[closing[0]]), True
    ends = np.flatnonzero(depth == 0)
    return (int(brackets[ends[-1]]) + 1 if len(ends) else 0), False


def _parse(text: bytes, path: Path, end: int) -> list:
    try:
        return orjson.loads(b"[" + text.lstrip(_BLANKS + b",") + b"]")
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON somewhere before byte {end} ({error}); get it again") from error
