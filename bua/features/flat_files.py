"""The files of bua's own format: features as flat arrays in a folder, which are read at the speed of memory.

    header.json   format, version, dtype and dim of the features, and ``about``: vocabularies, configuration, weights
    features.bin  [R, dim] float16 or float32, the regions of all images one after another
    regions.bin   [R] boxes and labels (``REGION``)
    ids.bin       the ids that are not 64-bit integers, as text
    index.bin     [N] a record of fixed size for each image (``RECORD``)
    synced        the number of records that are certainly on the disk, a 64-bit integer
    lookup.npy    [2, N] the sorted keys of the images, and their rows; created again if it is missing

All numbers are little-endian, and the .bin files are only appended to. The record of an image is written after its
other data, so that an image exists as soon as its record does. If the machine crashes, any part of the data that was
not synced may be missing. Therefore the records after the first ``synced`` ones are checked by their checksums, and
those from the first wrong one on are ignored.
"""

import json
import logging
import mmap
import os
import zlib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bua.errors import InputError, shown
from bua.features.checks import LARGEST_NUMBER
from bua.features.ids import parse_id
from bua.features.labels import LABEL_FIELDS
from bua.io.files import sync_folder, whole_file
from bua.regular_files import open_regular, read_regular
from bua.structures import Regions

HEADER_FILE = "header.json"
DTYPES = ("float32", "float16")
REGION = np.dtype(
    [
        ("box", "<f4", 4),
        ("object_ids", "<i4"),
        ("object_scores", "<f4"),
        ("attribute_ids", "<i4"),
        ("attribute_scores", "<f4"),
    ]
)
# offset: the image's first region. text: the image's id in ids.bin; if it has no bytes, ``key`` is the id itself,
# otherwise ``key`` is a hash of the text. labels: bit i is set if the image has LABEL_FIELDS[i]. checksum: CRC-32 of
# the image's features, regions, id and record.
RECORD = np.dtype(
    [
        ("offset", "<u8"),
        ("text_offset", "<u8"),
        ("key", "<i8"),
        ("count", "<u4"),
        ("text_length", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("labels", "<u4"),
        ("checksum", "<u4"),
    ]
)
CHECKSUM_OFFSET = RECORD.itemsize - RECORD["checksum"].itemsize

FORMAT, VERSION = "bua-flat", 1
DATA_FILES = ("features.bin", "regions.bin", "ids.bin", "index.bin")
SYNCED_FILE, LOOKUP_FILE = "synced", "lookup.npy"

logger = logging.getLogger(__name__)


class FlatFiles:
    """The data files of a folder, mapped into memory."""

    def __init__(self, folder: Path, dtype: np.dtype, dim: int):
        self.folder = folder
        self.row_bytes = dim * dtype.itemsize
        # The number of records is read first, and then the index, since what they refer to was written before them.
        self._synced = _read_synced(folder)
        self.index = _map(folder / "index.bin", RECORD)
        self.regions = _map(folder / "regions.bin", REGION)
        self.texts = _map(folder / "ids.bin", np.dtype(np.uint8))
        values = _map(folder / "features.bin", dtype.newbyteorder("<"))
        self.features = values[: len(values) // dim * dim].reshape(-1, dim) if dim else values[:0].reshape(0, 0)
        self.text_offsets, self.text_lengths = self.index["text_offset"], self.index["text_length"]

    def open(self, name: str) -> BinaryIO:
        return open_regular(self.folder / name)

    def text(self, row: int) -> bytes:
        start = self.text_offsets.item(row)
        return self.texts[start : start + self.text_lengths.item(row)].tobytes()

    def id(self, row: int) -> int | str:
        if not self.text_lengths.item(row):
            return int(self.index["key"].item(row))
        return parse_id(self.text(row).decode(errors="surrogateescape"))

    def ends(self, records: int) -> dict[str, int]:
        """Returns the sizes in bytes that the data files have with exactly this number of images."""
        if not records:
            return dict.fromkeys(DATA_FILES, 0)
        last = self.index[records - 1]
        rows = int(last["offset"]) + int(last["count"])
        text = int(last["text_offset"]) + int(last["text_length"])
        return dict(zip(DATA_FILES, (rows * self.row_bytes, rows * REGION.itemsize, text, records * RECORD.itemsize)))

    def has_ends(self, records: int) -> bool:
        """Whether the data files have at least the sizes of ``ends``."""
        sizes = {"features.bin": self.features.nbytes, "regions.bin": self.regions.nbytes, "ids.bin": self.texts.nbytes}
        ends = self.ends(records)
        return all(ends[name] <= size for name, size in sizes.items())

    def contents(self, first: int, last: int, ends: Mapping[str, int]) -> tuple[memoryview, ...]:
        """Returns what the images of the rows ``first`` to ``last - 1`` have in each of DATA_FILES if they are
        appended to other files with the sizes ``ends``."""
        records = self.index[first:last]
        start, end = self.ends(first), self.ends(last)
        rows = slice(start["regions.bin"] // REGION.itemsize, end["regions.bin"] // REGION.itemsize)
        arrays = (
            self.features[rows],
            self.regions[rows],
            self.texts[start["ids.bin"] : end["ids.bin"]],
            moved_records(records, ends["regions.bin"] // REGION.itemsize, ends["ids.bin"]),
        )
        # The views have the bytes of the mapped files, without copying them.
        return tuple(array.reshape(-1).view(np.uint8).data for array in arrays)

    def ids(self, records: int) -> set[int | str]:
        index = self.index[:records]
        ids: set[int | str] = set(index["key"][index["text_length"] == 0].tolist())
        for row in np.flatnonzero(index["text_length"]).tolist():
            ids.add(self.id(row))
        return ids

    def whole_records(self) -> int:
        """Returns how many images, counted from the first, are there. One whose record is damaged counts if a later one
        is there; see ``damaged_records``."""
        synced = min(self._synced or 0, len(self.index))
        index, fits = self.index[:synced], np.ones(synced, bool)
        regions = min(len(self.regions), len(self.features)) if self.row_bytes else len(self.regions)
        # A sum of damaged numbers could be beyond 64 bits.
        for start, length, size in (("offset", "count", regions), ("text_offset", "text_length", len(self.texts))):
            fits &= (index[start] <= size) & (index[length] <= size - np.minimum(index[start], np.uint64(size)))
        row = int(np.flatnonzero(fits).max(initial=-1)) + 1
        while row >= synced and row < len(self.index) and self.has_ends(row + 1) and self.is_whole(row):
            row += 1
        return row

    def damaged_records(self) -> list[int]:
        """Returns the rows of the images whose records are damaged.

        Each record begins where the one before it ends. Where that is not so, and for the last one, the checksums show
        which of the two is damaged.
        """
        whole = self.whole_records()
        index = self.index[: max(whole, min(self._synced or 0, len(self.index)))]
        breaks = np.zeros(len(index), bool)
        for start, length in (("offset", "count"), ("text_offset", "text_length")):
            breaks |= index[start] != np.append(np.uint64(0), index[start][:-1] + index[length][:-1])[: len(index)]
        after = np.flatnonzero(breaks).tolist()
        suspects = {*after, *(row - 1 for row in after if row), *([whole - 1] if whole else [])}
        damaged = {row for row in suspects if not self.fits_checksum(row)}
        if self._synced is None and any(map(self.fits_checksum, range(whole, len(self.index)))):
            damaged.add(whole)  # a run that was killed leaves no whole images after one that is not
        return sorted(damaged)

    def check_unique(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Raises InputError if images have the same id. ``keys`` and ``rows`` are those of ``make_lookup``."""
        # Different ids can have the same key, though they hardly ever do.
        same = np.flatnonzero(keys[1:] == keys[:-1])
        rows = np.unique(rows[np.concatenate([same, same + 1])])
        if len({self.id(row) for row in rows.tolist()}) < len(rows):
            raise InputError(
                f"{self.folder}: index.bin is damaged: several records have the same image id; copy the folder again"
            )

    def lost_records(self) -> int:
        """Returns how many of the records that were certainly on the disk are not in the index any more."""
        return max((self._synced or 0) - len(self.index), 0)

    def is_whole(self, row: int) -> bool:
        """Whether the data of an image begin where those before it end, and fit its checksum."""
        begins = int(self.index[row]["offset"]) * REGION.itemsize == self.ends(row)["regions.bin"]
        return begins and self.fits_checksum(row)

    def fits_checksum(self, row: int) -> bool:
        """Whether the data of an image fit its checksum."""
        record = self.index[row]
        start = int(record["offset"])
        span = slice(start, start + int(record["count"]))
        features = np.ascontiguousarray(self.features[span])
        value = checksum(features.data, self.regions[span].data, self.text(row), record.tobytes())
        return value == int(record["checksum"])


def read_header(folder: Path) -> dict[str, Any]:
    """Returns the content of header.json: ``dtype``, ``dim`` (None before the first region), ``about``.

    Raises:
        InputError: The file cannot be read, or has another format or version.
    """
    path = folder / HEADER_FILE
    try:
        header = json.loads(read_regular(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); name a folder of flat features") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path}: format is not {FORMAT}; name a folder of flat features")
    if header.get("version") != VERSION:
        raise InputError(f"{path}: version is {shown(header.get('version'))}, but this bua reads {VERSION}; update bua")
    dtype, dim = header.get("dtype"), header.get("dim", "missing")
    if dtype not in DTYPES or not (dim is None or (type(dim) is int and 0 < dim <= LARGEST_NUMBER)):
        raise InputError(
            f"{path}: dtype {shown(dtype)}, dim {shown(dim)}: need one of {', '.join(DTYPES)}, and a positive number "
            "or null"
        )
    about = header.get("about") or {}
    if not isinstance(about, dict):
        raise InputError(f"{path}: about is {shown(about)}; it must be an object {{...}}, or missing")
    return {**header, "about": about}


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Writes the header of a folder, so that it is on the disk when the function returns."""
    with whole_file(folder / HEADER_FILE, durable=True, locked=True) as file:
        file.write(json.dumps(header, indent=1).encode())


def create_or_read_header(folder: Path, dtype: str, about: Mapping[str, object] | None) -> dict[str, Any]:
    """Returns the header of a folder that is written to, and creates both if they do not exist.

    Raises:
        InputError: The folder holds something else, or features with another dtype or another ``about``.
    """
    path = folder / HEADER_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the flat formats need a folder")
    if not path.exists():
        if folder.exists() and any(not name.endswith(".tmp") for name in os.listdir(folder)):
            raise InputError(f"{folder}: holds something other than flat features; choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        header = {"format": FORMAT, "version": VERSION, "dtype": dtype, "dim": None, "about": about or {}}
        write_header(folder, header)
        return header
    header = read_header(folder)
    if header["dtype"] != dtype:
        raise InputError(f"{path}: dtype is {header['dtype']}, not {dtype}; choose another output or format")
    if about is not None and header["about"] != json.loads(json.dumps(about)):
        raise InputError(f"{path}: about differs: the features were made with other settings; choose another output")
    return header


def region_rows(regions: Regions) -> np.ndarray:
    """Returns [n] REGION: the boxes and labels of an image."""
    rows = np.zeros(len(regions), REGION)
    rows["box"] = regions.boxes
    for name in LABEL_FIELDS:
        labels = getattr(regions, name)
        if labels is not None:
            rows[name] = labels
    return rows


def write_at(handle: int, content: bytes | memoryview, offset: int) -> None:
    """Writes all of the content at a position of a file (a descriptor)."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written


def key_and_text(image_id: int | str) -> tuple[int, bytes]:
    """Returns the number by which an image is looked up, and the text that distinguishes it from other images.

    For an id that is a 64-bit integer, the number is the id and the text is empty. For other ids, the number is a hash
    of the text.
    """
    if type(image_id) is int and -(2**63) <= image_id < 2**63:
        return image_id, b""
    text = str(image_id).encode(errors="surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True), text


def checksum(features: bytes | memoryview, regions: bytes | memoryview, text: bytes, record: bytes) -> int:
    """Returns the CRC-32 of an image's data and of its record without the checksum."""
    value = 0
    for content in (features, regions, text, record[:CHECKSUM_OFFSET]):
        value = zlib.crc32(content, value)
    return value


def moved_records(records: np.ndarray, region: int, text: int) -> np.ndarray:
    """Returns the records [N] of consecutive images as they are in other files.

    Args:
        region, text: Where the data of the first of the images begin there: the first region, and the byte in ids.bin.
    """
    moved = records.copy()
    for name, start in (("offset", region), ("text_offset", text)):
        offsets = records[name].astype(np.int64)
        moved[name] = offsets - offsets[:1] + start
    # CRC-32 is linear over XOR apart from its constants. Therefore the new checksum follows from the old one and the
    # change of the record, and damage to the features that happened before can still be found.
    before, after = (_without_checksums(array) for array in (records, moved))
    constant = zlib.crc32(bytes(CHECKSUM_OFFSET))
    changes = [zlib.crc32(change.data) ^ constant for change in before ^ after]
    moved["checksum"] ^= np.array(changes, np.uint32)
    return moved


def make_lookup(index: np.ndarray) -> np.ndarray:
    """Returns [2, N] int64: the keys of the images in ascending order, and their rows."""
    keys = index["key"].astype(np.int64)
    rows = np.argsort(keys, kind="stable")
    return np.stack([keys[rows], rows])


def save_lookup(folder: Path, lookup: np.ndarray) -> None:
    """Writes what ``make_lookup`` returned into the folder."""
    with whole_file(folder / LOOKUP_FILE, durable=True) as file:
        np.save(file, lookup)


def load_lookup(folder: Path, index: np.ndarray) -> np.ndarray:
    """Returns the look-up table of the folder, which is made again if its file is missing or out of date."""
    try:
        with open_regular(folder / LOOKUP_FILE):  # np.load would wait for a named pipe
            lookup = np.asarray(np.load(folder / LOOKUP_FILE, mmap_mode="r", allow_pickle=False))
        # A writer deletes the file before it changes anything, so that a file of the right length is up to date.
        if lookup.shape == (2, len(index)) and lookup.dtype == np.int64:
            if _is_lookup(lookup, index):
                return lookup
            logger.warning("%s/%s: is damaged; it is created again", folder, LOOKUP_FILE)
    except FileNotFoundError:
        logger.debug("%s/%s: is created", folder, LOOKUP_FILE)
    except Exception as error:  # A damaged header of npy can raise almost any exception.
        logger.warning("%s/%s: cannot be read; it is created again (%s)", folder, LOOKUP_FILE, shown(str(error)))
    lookup = make_lookup(index)
    try:
        save_lookup(folder, lookup)
    except OSError as error:
        logger.debug("%s/%s: cannot be saved: %s", folder, LOOKUP_FILE, error)
    return lookup


def _is_lookup(lookup: np.ndarray, index: np.ndarray) -> bool:
    """Whether a table has the keys of all records in ascending order, each of them with its row."""
    keys, rows = lookup
    in_range = not len(rows) or 0 <= rows.min() <= rows.max() < len(rows)
    return bool(
        in_range
        and (keys[1:] >= keys[:-1]).all()
        and (index["key"][rows] == keys).all()
        and (np.bincount(rows, minlength=len(rows)) == 1).all()
    )


def _without_checksums(records: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)[:, :CHECKSUM_OFFSET]


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """Maps the complete elements of a file, read-only. Slices of numpy.memmap would take ten times as long."""
    try:
        with open_regular(path) as file:
            count = os.fstat(file.fileno()).st_size // dtype.itemsize
            if not count:
                return np.empty(0, dtype)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype, count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; copy the whole folder") from error


def lost_records(folder: Path) -> int:
    """Returns how many records at the end the index of a flat folder has lost; 0 for features of another format."""
    if not os.path.isfile(folder / HEADER_FILE):
        return 0
    header = read_header(folder)
    return FlatFiles(folder, np.dtype(header["dtype"]), header["dim"] or 0).lost_records()


def _read_synced(folder: Path) -> int | None:
    """Returns the number of images that certainly are on the disk, or None if it is not known."""
    try:
        content = read_regular(folder / SYNCED_FILE)
    except OSError as error:
        logger.debug("%s: %s; all images are checked", folder, error)
        return None
    return int.from_bytes(content, "little") if len(content) == 8 else None
