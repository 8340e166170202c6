"""Reads and writes features as tab-separated rows, in the original's format and in LXMERT's.

A file has one row per image and no header. Rows end with CR LF, as Python's csv module writes them. Arrays are base64
of their bytes in C order. The original's columns (tools/generate_tsv.py) have the width before the height, and no
labels; LXMERT's have the height before the width, and the labels of objects and attributes with their scores. Ids are
written as they are given. The original's readers expect numbers, and LXMERT's the names of the images' files without
suffix, as in its questions (``COCO_val2014_000000000042``).
"""

import csv
import io
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bua.errors import InputError, shown
from bua.features.checks import check_regions
from bua.features.encoding import decode_array, encode_array_as_bytes
from bua.features.ids import NOT_UTF8, MissedIds, is_utf8, parse_id
from bua.features.indexed import IndexedFeatures
from bua.features.labels import FLOAT, LXMERT_LABELS, best_objects
from bua.features.npy import NpzFile
from bua.features.row_merging import append_rows_of
from bua.features.synced_size import SyncedSize
from bua.features.text_rows import append_line, open_for_reading, read_line, unread_lines
from bua.io.files import check_in_place, whole_file
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
# What vilbert_beta's scripts read: the original's columns, and the probabilities of all classes.
_VILBERT_FIELDS = (*ORIGINAL_FIELDS, "cls_prob")
_READ_FIELDS = {ORIGINAL_FIELDS: "tsv", _VILBERT_FIELDS: "tsv", LXMERT_FIELDS: "lxmert-tsv"}

logger = logging.getLogger(__name__)


class TsvFeatures(IndexedFeatures[int]):
    """The features in a TSV file, which are read row by row. Besides bua's columns, those of vilbert_beta are read: the
    original's, and ``cls_prob`` [n, 1601] as base64 of float32, of which the first column is the background.

    The positions of the rows are determined once and saved in ``<file>.index`` next to the file, if its folder is
    writable. They are determined again if the size or the modification time of the file differ. Many processes and
    threads can read from the same object, also after it was forked or pickled to them. If several rows have the same
    id, the first one is read.

    Attributes:
        format: "tsv" or "lxmert-tsv".

    Raises:
        InputError: When it is opened: there is no such file, or its first row does not have the columns of
            any of them. When a row is read: a field cannot be decoded; the message names the line and the field.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = open_for_reading(self.path)
        self._fields = _fields_of(self.path, self._file)
        self.format = _READ_FIELDS[self._fields]
        ids, self._offsets = _load_index(self.path, self._file)
        self._places = {}
        for row, image_id in enumerate(ids):
            if image_id != "":
                self._places.setdefault(parse_id(image_id), row)
        self._leave_out_incomplete_row()

    def problems(self) -> Iterator[str]:
        """Yields a message for each row that is not read: it has no id, the id of an earlier row, or is incomplete."""
        ids, _ = _load_index(self.path, self._file)
        return unread_lines(ids, self._places)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=open_for_reading(state["path"]))

    def _read(self, image_id: int | str, place: int) -> Regions:
        regions = self._read_row(place)
        if regions.image_id != image_id:
            raise InputError(
                f"{self.path}: line {place + 1}: is of another image than {str(image_id)[:40]}; remove {self.path.name}"
                ".index, which does not fit this file"
            )
        return regions

    def _read_row(self, row: int) -> Regions:
        line = read_line(self._file, int(self._offsets[row]), int(self._offsets[row + 1]))
        try:
            return decode_row(line, self._fields)
        except ValueError as error:
            raise InputError(f"{self.path}: line {row + 1}: {error}; extract this image again") from error

    def _leave_out_incomplete_row(self) -> None:
        """Leaves out a last row that is still being written, or whose writer was stopped.

        Such a row lacks its line end. If only the line end is missing, as in files that were saved by an editor, the
        row is read.
        """
        last = len(self._offsets) - 2
        if read_line(self._file, int(self._offsets[-1]) - 1, int(self._offsets[-1])) == b"\n":
            return
        try:
            # A truncated row may still decode, but to features of a smaller dimension than those of other rows.
            if last > 0 and self._read_row(last).features.shape[1] == self._read_row(0).features.shape[1]:
                return
        except InputError as error:
            logger.debug("%s", error)
        logger.warning("%s: line %d is incomplete and is left out", self.path, last + 1)
        self._places = {image_id: row for image_id, row in self._places.items() if row != last}


class TsvWriter:
    """Appends rows to a TSV file, each of them completely or not at all.

    ``<file>.synced`` next to the file holds the number of bytes that are certainly on the disk, until ``finish``
    deletes it. Rows after that, which may be incomplete after a crash, are checked, and those from the first
    incomplete one on are deleted.

    Args:
        path: The file, which is created if it does not exist.
        format: "tsv" (the original's columns) or "lxmert-tsv".

    Attributes:
        done: Ids of the images in the file.

    Raises:
        InputError: The file holds something else.
    """

    def __init__(self, path: str | Path, format: str = "tsv"):
        self.path = Path(path)
        self.fields = FIELDS[format]
        self.done: set[int | str] = set()
        self._missed = MissedIds(self.path, NOT_UTF8)
        self._synced_size = SyncedSize(self.path)
        if self.path.exists():
            self._continue()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.sync()

    def append(self, regions: Regions) -> None:
        """Writes one image's row.

        Raises:
            InputError: The id is not possible in a TSV file, labels for LXMERT's columns are missing, or a number is
                not finite.
        """
        check_regions(regions)
        append_line(self._file, encode_row(regions, self.fields))
        self.done.add(parse_id(regions.image_id))
        if not is_utf8(regions.image_id):
            self._missed.add(regions.image_id)

    def merge(self, part: Path) -> None:
        """Appends the rows of another file with the same columns, as they are, except those of images in ``done``."""
        for _ in append_rows_of(part, self._file, self.done, _id_text):
            pass

    def sync(self) -> None:
        """Syncs all rows to the disk."""
        check_in_place(self.path, self._file)
        self._synced_size.sync(self._file)

    def finish(self) -> None:
        """Syncs all rows to the disk. The format has no other files."""
        check_in_place(self.path, self._file)
        self._synced_size.finish(self._file)
        self._missed.report()

    def close(self) -> None:
        os.close(self._file)

    def _continue(self) -> None:
        with open_for_reading(self.path) as file:
            ids, offsets = _scan(file)
            whole = len(ids)
            if whole and read_line(file, int(offsets[-1]) - 1, int(offsets[-1])) != b"\n":
                whole -= 1
            synced = int(np.searchsorted(offsets, self._synced_size.read(int(offsets[-1]))))
            lines = (read_line(file, int(offsets[row]), int(offsets[row + 1])) for row in range(synced, whole))
            broken = next((row for row, line in enumerate(lines, synced) if not _is_whole(line, self.fields)), whole)
            if broken or (whole and _is_of_a_format(file)):
                self._check_fields(file)
            whole = broken
        if whole < len(ids):
            logger.warning("%s: the rows from line %d on are incomplete and are deleted", self.path, whole + 1)
            os.truncate(self.path, int(offsets[whole]))
        self.done = {parse_id(image_id) for image_id in ids[:whole] if image_id}

    def _check_fields(self, file: BinaryIO) -> None:
        if _fields_of(self.path, file) != self.fields:
            raise InputError(
                f"{self.path}: line 1: the columns are not {','.join(self.fields)}; choose another output or format"
            )


def encode_row(regions: Regions, fields: tuple[str, ...]) -> bytes:
    """Returns the row of one image with its line end.

    Args:
        fields: ORIGINAL_FIELDS or LXMERT_FIELDS.

    Raises:
        InputError: The id is not possible in a TSV file, or labels for LXMERT's columns are missing.
    """
    image_id = str(regions.image_id)
    if not image_id or any(character in image_id for character in "\t\r\n"):
        raise InputError(f"image id {image_id!r}: is empty or has a tab or line break; give another id in a list file")
    width, height = str(regions.width).encode(), str(regions.height).encode()
    cells = {
        fields[0]: _id_cell(image_id),
        "image_w": width,
        "image_h": height,
        "img_w": width,
        "img_h": height,
        "num_boxes": b"%d" % len(regions),
        "boxes": encode_array_as_bytes(regions.boxes, FLOAT),
        "features": encode_array_as_bytes(regions.features, FLOAT),
    }
    for field, (attribute, dtype) in LXMERT_LABELS.items():
        if field not in fields:
            continue
        labels = getattr(regions, attribute)
        if labels is None:
            raise InputError(
                f"image {image_id}: has no {attribute}, which LXMERT's TSV needs as {field}; use tsv or npz"
            )
        cells[field] = encode_array_as_bytes(labels, dtype)
    # The csv module would give the same row, but it looks at each character of the base64.
    return b"\t".join([cells[field] for field in fields]) + b"\r\n"


def decode_row(line: bytes, fields: tuple[str, ...]) -> Regions:
    """Returns the regions in one row.

    Raises:
        ValueError: A field cannot be decoded. The message names it.
    """
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != len(fields):
        raise ValueError(f"{len(cells)} columns instead of {len(fields)}")
    row = dict(zip(fields, cells))
    count = _integer(row, "num_boxes")
    labels = {
        attribute: _decode(row, field, dtype, (count,))
        for field, (attribute, dtype) in LXMERT_LABELS.items()
        if field in row
    }
    if "cls_prob" in row:
        labels = best_objects(_decode(row, "cls_prob", FLOAT, (count, -1) if count else (0, 2)), count)
    return Regions(
        image_id=parse_id(_id_text(cells[0])),
        width=_integer(row, "image_w" if "image_w" in row else "img_w"),
        height=_integer(row, "image_h" if "image_h" in row else "img_h"),
        boxes=_decode(row, "boxes", FLOAT, (count, 4)),
        features=_decode(row, "features", FLOAT, (count, -1) if count else (0, 0)),
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
    return b"\0" not in line  # after a crash, the file may contain zeros in place of what was not on the disk


def _is_of_a_format(file: BinaryIO) -> bool:
    file.seek(0)
    line = file.readline()
    return any(_is_whole(line, fields) for fields in FIELDS.values())


def _integer(row: dict[str, bytes], field: str) -> int:
    if not row[field].isdigit():
        raise ValueError(f"{field}: {row[field][:20].decode(errors='replace')!r} is not a number")
    return int(row[field])


def _id_cell(image_id: str) -> bytes:
    """Returns the first cell of a row with this id, in quotes if csv puts it into quotes."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t").writerow([image_id, ""])
    return text.getvalue().removesuffix("\t\r\n").encode(errors="surrogateescape")


def _id_text(cell: bytes) -> str:
    # Only ids can contain characters that csv puts into quotes; the other columns are numbers and base64.
    # An id from a file name that is not UTF-8 keeps its bytes.
    text = cell.decode(errors="surrogateescape")
    try:
        return next(csv.reader([text]))[0] if text.startswith('"') else text
    except csv.Error:  # quotes that do not enclose the cell, followed by a carriage return
        return text


def _columns_of(file: BinaryIO) -> int:
    file.seek(0)
    return file.readline().count(b"\t") + 1


def _fields_of(path: Path, file: BinaryIO) -> tuple[str, ...]:
    if os.fstat(file.fileno()).st_size == 0:
        raise InputError(f"{path}: is empty; extract the features again")
    columns = _columns_of(file)
    for fields in _READ_FIELDS:
        if columns == len(fields):
            return fields
    raise InputError(
        f"{path}: line 1: has {columns} columns; features have {len(ORIGINAL_FIELDS)} (the original), "
        f"{len(_VILBERT_FIELDS)} (with cls_prob) or {len(LXMERT_FIELDS)} (LXMERT)"
    )


def _scan(file: BinaryIO) -> tuple[list[str], np.ndarray]:
    """Returns the id of each line, or "" if it has no columns, and the offsets [lines + 1] of the lines and the end."""
    ids: list[str] = []
    offsets = [0]
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


def _checked_index(ids: np.ndarray, offsets: np.ndarray, size: int) -> tuple[list[str], np.ndarray]:
    rising = offsets.dtype.kind == "i" and offsets.ndim == 1 and len(offsets) and (offsets[1:] > offsets[:-1]).all()
    if (
        ids.dtype.kind != "U"
        or ids.shape != (len(offsets) - 1,)
        or not rising
        or (offsets[0], offsets[-1]) != (0, size)
    ):
        raise ValueError("its ids and offsets are not those of the rows")
    return ids.tolist(), offsets


def _load_index(path: Path, file: BinaryIO) -> tuple[list[str], np.ndarray]:
    index = path.with_name(path.name + ".index")
    status = os.fstat(file.fileno())
    stamp = np.array([status.st_size, status.st_mtime_ns])
    try:
        with NpzFile(index) as saved:
            if np.array_equal(saved.array("stamp"), stamp):
                return _checked_index(saved.array("ids"), saved.array("offsets"), status.st_size)
    except FileNotFoundError:
        logger.debug("%s: is created", index)
    except Exception as error:  # A damaged npz file can raise almost any exception.
        logger.warning("%s: cannot be read; it is created again (%s)", index, shown(str(error)))
    ids, offsets = _scan(file)
    try:
        with whole_file(index) as kept:
            np.savez(kept, stamp=stamp, ids=np.array(ids, dtype=str), offsets=offsets)
    except OSError as error:
        logger.debug("%s: cannot be saved: %s", index, error)
    return ids, offsets
