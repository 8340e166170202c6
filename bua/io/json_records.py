"""Reads JSON lists of records, whole or in pieces: a file of Visual Genome is 0.4 to 1 GB, ten times that parsed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from tqdm import tqdm

from bua.errors import InputError

PIECE_BYTES = 2**20  # larger pieces are slower: their records fit in no cache
_BLANKS = b" \t\r\n"
# What a byte does to the depth of nesting.
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1


def iter_records(path: str | Path, progress: bool = True, piece_bytes: int = PIECE_BYTES) -> Iterator[dict]:
    """Yields the records of a file that holds one JSON list of objects, in order.

    Args:
        path: the file.
        progress: whether to show a progress bar.
        piece_bytes: how much is read and parsed at a time; the memory in use is some ten times that.

    Raises:
        InputError: no such file, not a JSON list of objects, truncated, damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        head = file.read(piece_bytes).lstrip(_BLANKS)
        if not head.startswith(b"["):
            raise InputError(f"{path}: its top level must be a list of records, as in files of Visual Genome")
        pending, closed = head[1:], False
        while not closed:
            cut, closed = _cut(pending)
            for record in _parse(pending[:cut], path, file.tell()):
                if not isinstance(record, dict):
                    raise InputError(f"{path}: its list must hold objects {{...}}, as in files of Visual Genome")
                yield record
            if not closed:
                more = file.read(piece_bytes)
                if not more:
                    raise InputError(f"{path}: truncated at byte {file.tell()}: the list is not closed; get it again")
                pending = pending[cut:] + more
            bar.update(file.tell() - bar.n)


def read_records(source: str | Path | dict | list, key: str | None) -> tuple[str, list]:
    """The list of records in a JSON file, or under ``key`` in it, and the file's name for messages.

    Args:
        source: the file, or what it holds.
        key: such as "annotations"; None where the list is all.

    Raises:
        InputError: no such file, not JSON, no list of that name.
    """
    kind = f"a list of {key} under {key!r}" if key else "a list of results"
    name, content = key or "results", source
    if isinstance(source, str | Path):
        name = str(source)
        try:
            with without_gc():
                content = orjson.loads(Path(source).read_bytes())
        except OSError as error:
            raise InputError(f"{name}: cannot be read: {error.strerror}; give a file with {kind}") from error
        except orjson.JSONDecodeError as error:
            raise InputError(f"{name}: not JSON ({error}); get it again") from error
    if key and isinstance(content, dict):
        content = content.get(key)
    if not isinstance(content, list):
        raise InputError(f"{name}: does not hold {kind}")
    return name, content


def column(name: str, records: list, field: str, kind: type) -> list:
    """A field of all records.

    Args:
        name: of the file, for messages.
        kind: of the values: int, str or list.

    Raises:
        InputError: names the file, the record and the field: it is missing or of another type.
    """
    try:
        values = [record[field] for record in records]
    except (TypeError, KeyError):
        values = [record.get(field) if isinstance(record, dict) else None for record in records]
    for number, value in enumerate(values):
        if type(value) is not kind:
            words = {int: "an integer", str: "a string", list: "a list"}[kind]
            raise InputError(f"{name}: record {number}: {field} is {value!r}; it must be {words}")
    return values


@contextmanager
def without_gc() -> Iterator[None]:
    """Keeps the garbage collector from walking millions of parsed records, none in a cycle, again and again: it
    takes most of the time otherwise."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cut(text: bytes) -> tuple[int, bool]:
    """Where the last whole record in the inside of a list ends (0: there is none), or the list itself, and which."""
    # Escaped quotes do not end a string; pairs of backslashes go first, since a quote after a pair is not escaped.
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    codes = np.frombuffer(plain, dtype=np.uint8)
    brackets = np.flatnonzero(_STEP[codes])
    in_string = np.searchsorted(np.flatnonzero(codes == ord('"')), brackets) % 2 == 1
    brackets = brackets[~in_string]
    depth = np.cumsum(_STEP[codes[brackets]], dtype=np.int64)
    closing = np.flatnonzero(depth < 0)
    if len(closing):
        return int(brackets[closing[0]]), True
    ends = np.flatnonzero(depth == 0)
    return (int(brackets[ends[-1]]) + 1 if len(ends) else 0), False


def _parse(text: bytes, path: Path, read: int) -> list:
    try:
        return orjson.loads(b"[" + text.lstrip(_BLANKS + b",") + b"]")
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON somewhere before byte {read} ({error}); get it again") from error
