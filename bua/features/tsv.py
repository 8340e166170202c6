"""Features as tab-separated rows: the original's format and LXMERT's.

One image a row, no header, rows end in CR LF as Python's csv writes them; arrays are base64 of their bytes in C
order. The original's columns (tools/generate_tsv.py) have the width before the height and no place for labels;
LXMERT's have the height before the width, and object and attribute labels with their scores. Ids are written as they
are given: the original's readers want numbers, LXMERT's the names of the images' files without their suffix, as its
questions have them (``COCO_val2014_000000000042``).
"""

import csv
import io
import logging
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.features.encoding import decode_array, encode_array
from bua.features.ids import parse_id
from bua.features.synced import SyncedMark
from bua.io.files import whole_file
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
    object, also one that was forked or pickled to them. Of rows with one id, the first is read.

    Attributes:
        format: "tsv" or "lxmert-tsv".

    Raises:
        InputError: when opened: no such file, or its first row has the columns of neither format; when a row is
            read: names its line and the field that does not decode.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = _open_for_reading(self.path)
        self._fields = _fields_of(self.path, self._file)
        self.format = next(format for format, fields in FIELDS.items() if fields == self._fields)
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

    def problems(self) -> Iterator[str]:
        """A line for each row that is not read: one without an id or with that of an earlier row, or incomplete."""
        ids, _ = _load_index(self.path, self._file)
        for row, image_id in enumerate(ids):
            earlier = self._rows.get(parse_id(image_id))
            if image_id == "":
                yield f"line {row + 1}: no columns"
            elif earlier is None:
                yield f"line {row + 1}: incomplete"
            elif earlier != row:
                yield f"line {row + 1}: image {image_id} again, which line {earlier + 1} has"

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
            raise InputError(f"{self.path}: line {row + 1}: {error}; extract this image again") from error

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
    """Appends rows to a TSV file, each whole or not at all.

    ``<file>.synced`` beside the file says how many bytes of it are on the disk for certain, until ``finish`` removes
    it. What lies behind, which a killed writer or a machine that died leaves, is cut off at the first row that is not
    whole.

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
        self._mark = SyncedMark(self.path)
        if self.path.exists():
            self._continue()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.sync()

    def append(self, regions: Regions) -> None:
        """Writes one image's row.

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

    def sync(self) -> None:
        """Returns when the rows are on the disk."""
        self._mark.sync(self._file)

    def finish(self) -> None:
        """Returns when the rows are on the disk; all there is of the file."""
        self._mark.finish(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _continue(self) -> None:
        with _open_for_reading(self.path) as file:
            ids, offsets = _scan(file)
            whole = len(ids)
            if whole and os.pread(file.fileno(), 1, int(offsets[-1]) - 1) != b"\n":
                whole -= 1
            synced = int(np.searchsorted(offsets, self._mark.read(int(offsets[-1]))))
            lines = (
                os.pread(file.fileno(), int(offsets[row + 1] - offsets[row]), int(offsets[row]))
                for row in range(synced, whole)
            )
            broken = next((row for row, line in enumerate(lines, synced) if not _is_whole(line, self.fields)), whole)
            if broken or (whole and _is_of_a_format(file)):
                self._check_fields(file)
            whole = broken
        if whole < len(ids):
            logger.warning("%s: not whole from line %d on; cut off and extracted again", self.path, whole + 1)
            os.truncate(self.path, int(offsets[whole]))
        self.done = {parse_id(image_id) for image_id in ids[:whole] if image_id}

    def _check_fields(self, file: io.BufferedReader) -> None:
        if _fields_of(self.path, file) != self.fields:
            raise InputError(
                f"{self.path}: line 1: not the columns {','.join(self.fields)}; choose another output or format"
            )


def encode_row(regions: Regions, fields: tuple[str, ...]) -> bytes:
    """One image's row with its line end; ``fields`` is ORIGINAL_FIELDS or LXMERT_FIELDS."""
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
        "boxes": encode_array(regions.boxes, _FLOAT),
        "features": encode_array(regions.features, _FLOAT),
    }
    for field, (attribute, dtype) in LABELS.items():
        if field not in fields:
            continue
        labels = getattr(regions, attribute)
        if labels is None:
            raise InputError(
                f"image {image_id}: has no {attribute}, which {field} of LXMERT's TSV needs; use tsv or npz"
            )
        values[field] = encode_array(labels, dtype)
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


def _decode(row: dict[str, bytes], field: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if shape[0] and not row[field]:
        raise ValueError(f"{field}: 0 bytes do not fit {shape[0]} boxes")
    return decode_array(row[field], dtype, shape, field)


def _is_whole(line: bytes, fields: tuple[str, ...]) -> bool:
    try:
        decode_row(line, fields)
    except ValueError:
        return False
    return b"\0" not in line  # what a dead machine leaves for what was not on the disk


def _is_of_a_format(file: io.BufferedReader) -> bool:
    file.seek(0)
    line = file.readline()
    return any(_is_whole(line, fields) for fields in FIELDS.values())


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


def _columns_of(file: io.BufferedReader) -> int:
    file.seek(0)
    return file.readline().count(b"\t") + 1


def _fields_of(path: Path, file: io.BufferedReader) -> tuple[str, ...]:
    if os.fstat(file.fileno()).st_size == 0:
        raise InputError(f"{path}: empty; no features were written to it")
    columns = _columns_of(file)
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
