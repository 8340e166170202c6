"""Features as flat arrays in a folder: bua's own format, for reading at the speed of memory.

    header.json   format, version, dtype and dim of the features, and ``about``: vocabularies, configuration, weights
    features.bin  [R, dim] float16 or float32, the regions of all images one after another
    regions.bin   [R] boxes and labels (``REGION``)
    ids.bin       the ids that are no 64-bit integers, as text
    index.bin     [N] a record of fixed size for each image (``RECORD``)
    synced        how many records were on the disk for certain, a 64-bit integer
    lookup.npy    [2, N] the keys of the images in order, and their rows; made anew where it is missing

Everything is little-endian and only ever appended to. An image is there when its record is, which is written last.
Its checksum is for a machine that dies, which may leave any part of what was not synced: from ``synced`` on, records
count up to the first whose checksum fails.
"""

import json
import logging
import mmap
import os
import zlib
from bisect import bisect_right
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bua.errors import InputError
from bua.features.ids import parse_id
from bua.io.files import whole_file

HEADER = "header.json"
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
# offset: the image's first region; text: its id in ids.bin, of no bytes where ``key`` is the id itself, otherwise
# the key is a hash of it; labels: bit i for LABELS[i]; checksum: CRC-32 of its features, regions, id and record.
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
LABELS = ("object_ids", "object_scores", "attribute_ids", "attribute_scores")

FORMAT, VERSION = "bua-flat", 1
FILES = ("features.bin", "regions.bin", "ids.bin", "index.bin")
MARK, LOOKUP = "synced", "lookup.npy"

logger = logging.getLogger(__name__)


class FlatFiles:
    """The files of a folder, mapped into memory."""

    def __init__(self, folder: Path, dtype: np.dtype, dim: int):
        self.folder = folder
        self.row_bytes = dim * dtype.itemsize
        # The index first: what its records speak of was written before them.
        self.index = _map(folder / "index.bin", RECORD)
        self.regions = _map(folder / "regions.bin", REGION)
        self.texts = _map(folder / "ids.bin", np.dtype(np.uint8))
        values = _map(folder / "features.bin", dtype.newbyteorder("<"))
        self.features = values[: len(values) // dim * dim].reshape(-1, dim) if dim else values[:0].reshape(0, 0)
        self.text_offsets, self.text_lengths = self.index["text_offset"], self.index["text_length"]

    def open(self, name: str) -> BinaryIO:
        return open(self.folder / name, "rb")

    def text(self, row: int) -> bytes:
        start = self.text_offsets.item(row)
        return self.texts[start : start + self.text_lengths.item(row)].tobytes()

    def ends(self, records: int) -> dict[str, int]:
        """The sizes in bytes of the files that hold that many images and nothing more."""
        if not records:
            return dict.fromkeys(FILES, 0)
        last = self.index[records - 1]
        rows = int(last["offset"]) + int(last["count"])
        text = int(last["text_offset"]) + int(last["text_length"])
        return dict(zip(FILES, (rows * self.row_bytes, rows * REGION.itemsize, text, records * RECORD.itemsize)))

    def ids(self, records: int) -> set[int | str]:
        index = self.index[:records]
        ids: set[int | str] = set(index["key"][index["text_length"] == 0].tolist())
        for row in np.flatnonzero(index["text_length"]).tolist():
            ids.add(parse_id(self.text(row).decode(errors="surrogateescape")))
        return ids

    def whole_records(self) -> int:
        """How many images, from the first, are there whole."""
        sizes = {"features.bin": self.features.nbytes, "regions.bin": self.regions.nbytes, "ids.bin": self.texts.nbytes}

        def lacking(row: int) -> bool:
            ends = self.ends(row + 1)
            return any(ends[name] > size for name, size in sizes.items())

        synced = min(_read_mark(self.folder), len(self.index))
        # Ends only grow: the first image that lacks bytes is found without a look at all of them.
        row = bisect_right(range(synced), False, key=lacking)
        while row >= synced and row < len(self.index) and not lacking(row) and self.is_whole(row):
            row += 1
        return row

    def is_whole(self, row: int) -> bool:
        record = self.index[row]
        start = int(record["offset"])
        span = slice(start, start + int(record["count"]))
        begins = start * REGION.itemsize == self.ends(row)["regions.bin"]
        features = np.ascontiguousarray(self.features[span])
        return begins and checksum(features, self.regions[span], self.text(row), record) == record["checksum"]


def is_flat(folder: Path) -> bool:
    """Whether a folder is in this format."""
    try:
        return json.loads((folder / HEADER).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_header(folder: Path) -> dict:
    """What header.json says: ``dtype``, ``dim`` (None before the first region), ``about``.

    Raises:
        InputError: it cannot be read, or is of another format or version.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); not a folder of flat features") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path}: format is not {FORMAT}; not a folder of flat features")
    if header.get("version") != VERSION:
        raise InputError(f"{path}: version {header.get('version')}; this bua reads {VERSION}, update it")
    dtype, dim = header.get("dtype"), header.get("dim")
    if dtype not in DTYPES or not (dim is None or (isinstance(dim, int) and dim > 0)):
        raise InputError(f"{path}: dtype {dtype!r}, dim {dim!r}; need one of {', '.join(DTYPES)} and a number")
    return {**header, "about": header.get("about") or {}}


def write_header(folder: Path, header: dict) -> None:
    with whole_file(folder / HEADER, durable=True) as file:
        file.write(json.dumps(header, indent=1).encode())


def key_and_text(image_id: int | str) -> tuple[int, bytes]:
    """The number that an image is looked up by, and the text that tells it from others with that number."""
    if type(image_id) is int and -(2**63) <= image_id < 2**63:
        return image_id, b""
    text = str(image_id).encode(errors="surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True), text


def checksum(features, regions, text: bytes, record) -> int:
    value = 0
    for content in (features, regions, text, record.tobytes()[: RECORD.fields["checksum"][1]]):
        value = zlib.crc32(content, value)
    return value


def make_lookup(index: np.ndarray) -> np.ndarray:
    keys = index["key"].astype(np.int64)
    rows = np.argsort(keys, kind="stable")
    return np.stack([keys[rows], rows])


def save_lookup(folder: Path, lookup: np.ndarray) -> None:
    with whole_file(folder / LOOKUP, durable=True, shared=True) as file:
        np.save(file, lookup)


def load_lookup(folder: Path, index: np.ndarray) -> np.ndarray:
    try:
        lookup = np.asarray(np.load(folder / LOOKUP, mmap_mode="r", allow_pickle=False))
        # A writer removes it before it changes anything, so that the length tells whether it is of these images.
        if lookup.shape == (2, len(index)) and lookup.dtype == np.int64:
            return lookup
    except (OSError, ValueError, EOFError) as error:
        logger.debug("%s/%s: %s; making it", folder, LOOKUP, error)
    lookup = make_lookup(index)
    try:
        save_lookup(folder, lookup)
    except OSError as error:
        logger.debug("%s/%s: not kept: %s", folder, LOOKUP, error)
    return lookup


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """The whole elements of a file, read-only. Not numpy.memmap, whose slices take ten times as long."""
    try:
        with open(path, "rb") as file:
            count = os.fstat(file.fileno()).st_size // dtype.itemsize
            if not count:
                return np.empty(0, dtype)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype, count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; copy the whole folder") from error


def _read_mark(folder: Path) -> int:
    try:
        mark = (folder / MARK).read_bytes()
    except OSError as error:
        logger.debug("%s: %s; all images are checked", folder, error)
        return 0
    return int.from_bytes(mark, "little") if len(mark) == 8 else 0
