"""Features as tab-separated rows: the original's format and LXMERT's.

One picture a row, no header, rows end in CR LF as Python's csv writes them; arrays are base64 of their bytes in C
order. The original's columns (tools/generate_tsv.py) have the width before the height and no place for labels;
LXMERT's have the height before the width, and object and attribute labels with their scores.
"""

import base64
import binascii
import csv
import io
import logging
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.features.ids import parse_id
from bua.files import whole_file
from bua.structures import Regions

ORIGINAL_FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_FIELDS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
FIELDS = {"tsv": ORIGINAL_FIELDS, "lxmert-tsv": LXMERT_FIELDS}

# Little-endian, whatever the machine.
_FLOAT, _INT = np.dtype("<f4"), np.dtype("<i8")

# LXMERT's names of the labels, which are MILVLG's too: the field of Regions and its type.
LABELS = {
    "objects_id": ("object_ids", _INT),
    "objects_conf": ("object_scores", _FLOAT),
    "attrs_id": ("attribute_ids", _INT),
    "attrs_conf": ("attribute_scores", _FLOAT),
}

logger = logging.getLogger(__name__)


class TsvFeatures(Mapping[int | str, Regions]):
    """The features in a TSV file in either column order, read a row at a time.

    Where each row begins is found once and kept in ``<file>.index`` beside the file, where that folder can be written
    to; it is found anew when the file's size or time of change differ. Many processes and threads may read from one
    object, also one that was forked or pickled to them.

    Raises:
        InputError: when opened: no such file, or its first row has the columns of neither format; when a row is
            read: names its line and the field that does not decode.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = _open_for_reading(self.path)
        self._fields = _fields_of(self.path, self._file)
        ids, self._offsets = _load_index(self.path, self._file)
        self._rows: dict[int | str, int] = {}
        for row, image_id in enumerate(ids):
            if image_id != "":
                self._rows.setdefault(parse_id(image_id), row)
        self._leave_out_incomplete_row()

    def __getitem__(self, image_id: int | str) -> Regions:
        return self._read(self._rows[parse_id(image_id)])

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self._rows

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _file=_open_for_reading(state["path"]))

    def _read(self, row: int) -> Regions:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        # pread has no file position that processes and threads would have to share.
        line = os.pread(self._file.fileno(), end - start, start)
        try:
            return decode_row(line, self._fields)
        except ValueError as error:
            raise InputError(f"{self.path}: line {row + 1}: {error}; extract this picture again") from error

    def _leave_out_incomplete_row(self) -> None:
        """A last row without its line end is being written, or its writer was stopped; unless nothing else of it is
        missing, as in files that went through an editor."""
        last = len(self._offsets) - 2
        if os.pread(self._file.fileno(), 1, int(self._offsets[-1]) - 1) == b"\n":
            return
        try:
            # A cut row may decode, to fewer features a region than the others have.
            if last > 0 and self._read(last).features.shape[1] == self._read(0).features.shape[1]:
                return
        except InputError as error:
            logger.debug("%s", error)
        logger.warning("%s: line %d is incomplete and is left out", self.path, last + 1)
        self._rows = {image_id: row for image_id, row in self._rows.items() if row != last}


class TsvWriter:
    """Appends rows to a TSV file, each whole or not at all; an incomplete last row, which a killed writer leaves, is
    cut off first.

    Args:
        path: the file; made where it does not exist.
        format: "tsv" (the original's columns) or "lxmert-tsv".

    Attributes:
        done: the ids in the file.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: str | Path, format: str = "tsv"):
        self.path = Path(path)
        self.fields = FIELDS[format]
        self.done: set[int | str] = set()
        if self.path.exists():
            self._continue()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, regions: Regions) -> None:
        """Writes one picture's row.

        Raises:
            InputError: the id cannot stand in a TSV file, or LXMERT's columns lack their labels.
        """
        row = memoryview(encode_row(regions, self.fields))
        start = os.fstat(self._file).st_size
        try:
            while row:
                row = row[os.write(self._file, row) :]
        except BaseException:
            os.ftruncate(self._file, start)
            raise
        self.done.add(parse_id(regions.image_id))

    def close(self) -> None:
        os.close(self._file)

    def _continue(self) -> None:
        with _open_for_reading(self.path) as file:
            ids, offsets = _scan(file)
            if offsets[-1] == 0:
                return
            whole = len(ids)
            if os.pread(file.fileno(), 1, int(offsets[-1]) - 1) != b"\n":
                whole -= 1
            if whole and _fields_of(self.path, file) != self.fields:
                raise InputError(
                    f"{self.path}: line 1: not the columns {','.join(self.fields)}; choose another output or format"
                )
        if whole < len(ids):
            logger.warning("%s: line %d is incomplete; cut off and extracted again", self.path, whole + 1)
            os.truncate(self.path, int(offsets[whole]))
        self.done = {parse_id(image_id) for image_id in ids[:whole] if image_id}


def encode_row(regions: Regions, fields: tuple[str, ...]) -> bytes:
    """One picture's row with its line end; ``fields`` is ORIGINAL_FIELDS or LXMERT_FIELDS."""
    image_id = str(regions.image_id)
    if not image_id or any(character in image_id for character in "\t\r\n"):
        raise InputError(f"image id {image_id!r}: empty or with a tab or line break; give another id in a list file")
    values = {
        fields[0]: image_id,
        "image_w": regions.width,
        "image_h": regions.height,
        "img_w": regions.width,
        "img_h": regions.height,
        "num_boxes": len(regions),
        "boxes": _encode(regions.boxes, _FLOAT),
        "features": _encode(regions.features, _FLOAT),
    }
    for field, (attribute, dtype) in LABELS.items():
        if field not in fields:
            continue
        labels = getattr(regions, attribute)
        if labels is None:
            raise InputError(
                f"image {image_id}: has no {attribute}, which {field} of LXMERT's TSV needs; use tsv or npz"
            )
        values[field] = _encode(labels, dtype)
    text = io.StringIO()
    csv.writer(text, delimiter="\t").writerow([values[field] for field in fields])
    return text.getvalue().encode(errors="surrogateescape")


def decode_row(line: bytes, fields: tuple[str, ...]) -> Regions:
    """The regions in one row; ValueError says which field is wrong."""
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != len(fields):
        raise ValueError(f"{len(cells)} columns instead of {len(fields)}")
    row = dict(zip(fields, cells))
    count = _integer(row, "num_boxes")
    labels = {
        attribute: _decode(row, field, dtype, (count,)) for field, (attribute, dtype) in LABELS.items() if field in row
    }
    return Regions(
        image_id=parse_id(_id_text(cells[0])),
        width=_integer(row, "image_w" if "image_w" in row else "img_w"),
        height=_integer(row, "image_h" if "image_h" in row else "img_h"),
        boxes=_decode(row, "boxes", _FLOAT, (count, 4)),
        features=_decode(row, "features", _FLOAT, (count, -1) if count else (0, 0)),
        **labels,
    )


def _encode(array: np.ndarray, dtype: np.dtype) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype)).decode()


def _decode(row: dict[str, bytes], field: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    try:
        data = base64.b64decode(row[field], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{field}: not base64 ({error})") from error
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError:
        array = None
    if array is None or (shape[0] and not data):
        raise ValueError(f"{field}: {len(data)} bytes do not fit num_boxes {shape[0]}")
    return array.copy()


def _integer(row: dict[str, bytes], field: str) -> int:
    if not row[field].isdigit():
        raise ValueError(f"{field}: {row[field][:20].decode(errors='replace')!r} is not a number")
    return int(row[field])


def _id_text(cell: bytes) -> str:
    # Only an id can hold what csv puts in quotes; the rest is numbers and base64.
    # A file name that is not UTF-8 keeps its bytes.
    text = cell.decode(errors="surrogateescape")
    return next(csv.reader([text]))[0] if text.startswith('"') else text


def _open_for_reading(path: Path) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _fields_of(path: Path, file: io.BufferedReader) -> tuple[str, ...]:
    file.seek(0)
    line = file.readline()
    if not line:
        raise InputError(f"{path}: empty; no features were written to it")
    columns = line.count(b"\t") + 1
    for fields in FIELDS.values():
        if columns == len(fields):
            return fields
    raise InputError(
        f"{path}: line 1: {columns} columns; features have {len(ORIGINAL_FIELDS)} (the original) or "
        f"{len(LXMERT_FIELDS)} (LXMERT)"
    )


def _scan(file: io.BufferedReader) -> tuple[list[str], np.ndarray]:
    """The id of every line, "" for empty lines, and the offsets [lines + 1] where they begin and the last ends."""
    ids, offsets = [], [0]
    if os.fstat(file.fileno()).st_size == 0:
        return ids, np.array(offsets)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while offsets[-1] < len(content):
            start = offsets[-1]
            end = content.find(b"\n", start) + 1 or len(content)
            tab = content.find(b"\t", start, end)
            ids.append(_id_text(content[start:tab]) if tab >= 0 else "")
            offsets.append(end)
    return ids, np.array(offsets)


def _load_index(path: Path, file: io.BufferedReader) -> tuple[list[str], np.ndarray]:
    index = path.with_name(path.name + ".index")
    status = os.fstat(file.fileno())
    stamp = np.array([status.st_size, status.st_mtime_ns])
    try:
        with np.load(index, allow_pickle=False) as saved:
            if np.array_equal(saved["stamp"], stamp):
                return saved["ids"].tolist(), saved["offsets"]
    except (OSError, ValueError, KeyError, EOFError):
        logger.debug("%s: none that can be read; making it", index)
    ids, offsets = _scan(file)
    try:
        with whole_file(index, shared=True) as kept:
            np.savez(kept, stamp=stamp, ids=np.array(ids, dtype=str), offsets=offsets)
    except OSError as error:
        logger.debug("%s: not kept: %s", index, error)
    return ids, offsets
