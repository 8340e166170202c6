"""Reads the boxes that a user gives, which the detector describes instead of its proposals."""

import lzma
import os
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np

from bua.errors import InputError, shown
from bua.features import open_features
from bua.features.flat_files import HEADER_FILE
from bua.features.ids import id_of_file_stem, parse_id
from bua.features.npy import read_array
from bua.io.json_records import iter_records, read_json, without_gc
from bua.regular_files import open_regular
from bua.structures import Regions

ROW_COLUMNS = 5  # id, x1, y1, x2, y2
HEAD_BYTES = 4096  # first bytes of a file, from which its format is recognised
MAX_ARRAY_BYTES = 64 << 20  # of the boxes of one image; a compressed file can claim any size

# What numpy and zipfile raise for damaged, encrypted and unusually compressed files.
DAMAGE = (
    *(OSError, ValueError, EOFError, OverflowError, MemoryError, RuntimeError, TypeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)


def load_boxes(path: str | Path) -> Mapping[int | str, np.ndarray]:
    """Returns the boxes of each image: a mapping from image id to [N, 4] float32 x1y1x2y2 in pixels of the original
    image, in the file's order.

    Boxes are not changed, even if they extend beyond the image: the part outside adds nothing to the pooled features,
    and the boxes are written as they were given. MILVLG's port does the same (its mode 3).

    Args:
        path: One of
            a JSON ``{"id": [[x1, y1, x2, y2], ...], ...}``;
            a COCO JSON, either a list of detections or a file with ``annotations``, each with ``image_id`` and
            ``bbox``, which is x, y, width, height there;
            a TSV with one row ``id<TAB>x1<TAB>y1<TAB>x2<TAB>y2`` per box;
            an npz archive with one array per id, or a folder of ``<id>.npy``;
            a folder of ``<id>.npz`` with the boxes under ``bbox``, such as MILVLG's;
            any other file or folder of features that ``bua.features.open_features`` reads.
            Folders and features are read one image at a time. JSON, TSV and archives are kept in memory, where a box
            takes 16 bytes (about 400 bytes while a JSON other than COCO's list is read).

    Raises:
        InputError: At once, or when the boxes of an image are looked up: they are not [N, 4], not numbers, or have
            x2 < x1 or y2 < y1. The message names the file and the image.
        KeyError: An image is looked up that has no boxes in the file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith(b"PK"):
        return _read_archive(path)
    if head.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: contains the boxes of one image; give the folder of such files, named <id>.npy")
    with without_gc():
        if head.lstrip().startswith(b"["):
            return _read_coco(iter_records(path, progress=False), path)
        if head.lstrip().startswith(b"{"):
            return _read_json(path)
        # A row of features can be longer than the part that was read.
        first_line, newline, _ = head.partition(b"\n")
        if (newline or len(head) < HEAD_BYTES) and first_line.count(b"\t") == ROW_COLUMNS - 1:
            return _read_rows(path)
    return _open_features(path)


Source = TypeVar("Source")


class _BoxesOnDemand(Mapping[int | str, np.ndarray], Generic[Source]):
    """A mapping from image id to boxes, which reads the boxes of an image when they are looked up.

    Args:
        path: The file or folder, for messages.
        sources: Where to read the boxes of each image from.
        read: Returns the boxes of one source.
    """

    def __init__(self, path: Path, sources: Mapping[int | str, Source], read: Callable[[Source], np.ndarray]):
        self.path, self.sources, self.read = path, sources, read

    def __getitem__(self, image_id: int | str) -> np.ndarray:
        return _checked(self.read(self.sources[parse_id(image_id)]), f"{self.path}: image {image_id}")

    def __contains__(self, image_id: object) -> bool:
        return parse_id(str(image_id)) in self.sources

    def __iter__(self) -> Iterator[int | str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def _open_features(path: Path) -> Mapping[int | str, np.ndarray]:
    return _BoxesOnDemand(path, open_features(path), _boxes_of)


def _boxes_of(regions: Regions) -> np.ndarray:
    return regions.boxes


def _open_folder(folder: Path) -> Mapping[int | str, np.ndarray]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    # MMF's features are npy files too, but their boxes are in other files. A folder of flat features has other arrays.
    if HEADER_FILE not in names and not any(name.endswith("_info.npy") for name in names):
        for suffix, read in ((".npy", _read_npy), (".npz", _read_npz)):
            files = {
                id_of_file_stem(name.removesuffix(suffix)): str(folder / name)
                for name in names
                if name.endswith(suffix)
            }
            if files:
                return _BoxesOnDemand(folder, files, read)
    return _open_features(folder)


def _read_npy(path: str) -> np.ndarray:
    try:
        with open_regular(path) as file:
            return _array(file, os.fstat(file.fileno()).st_size)
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read as npy ({_reason(error)}); make it again") from error


def _read_npz(path: str) -> np.ndarray:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return _member(archive, "bbox.npy")
    except KeyError as error:
        raise InputError(f"{path}: has no array bbox, [N, 4] x1y1x2y2") from error
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read as npz ({_reason(error)}); make it again") from error


def _read_archive(path: Path) -> dict[int | str, np.ndarray]:
    boxes = {}
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                key = name.removesuffix(".npy")
                boxes[parse_id(key)] = _checked(_member(archive, name), f"{path}: image {key}")
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read as npz ({_reason(error)}); make it again") from error
    return boxes


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        return _array(member, archive.getinfo(name).file_size)


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """Returns the array of an npy file of ``size`` bytes, or raises one of ``DAMAGE``."""
    if size > MAX_ARRAY_BYTES:
        raise ValueError(f"an array of {size} bytes is not boxes of one image")
    return read_array(file, size)  # type: ignore[arg-type]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_json(path: Path) -> dict[int | str, np.ndarray]:
    content: Any = read_json(path)
    if "annotations" in content:
        if not isinstance(content["annotations"], list):
            raise InputError(f"{path}: annotations must be a list of records with image_id and bbox")
        return _read_coco(content["annotations"], path)
    return {parse_id(image_id): _checked(boxes, f"{path}: image {image_id}") for image_id, boxes in content.items()}


def _read_coco(records: Iterable[dict[str, Any]], path: Path) -> dict[int | str, np.ndarray]:
    """Returns the boxes of records with image_id and bbox."""
    flat: dict[int | str, array[float]] = {}
    for number, record in enumerate(records, start=1):
        try:
            x, y, width, height = record["bbox"]
            if type(record["image_id"]) not in (int, str):
                raise TypeError("image_id")
            flat.setdefault(parse_id(record["image_id"]), array("f")).extend((x, y, x + width, y + height))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: record {number}: {shown(record)} needs image_id and bbox (x, y, width, height)"
            ) from error
    return _arrays(flat, path)


def _read_rows(path: Path) -> dict[int | str, np.ndarray]:
    flat: dict[int | str, array[float]] = {}
    last_id, corners = None, array("f")
    with open_regular(path) as lines:
        for number, line in enumerate(lines, start=1):
            image_id, *cells = line.rstrip(b"\r\n").split(b"\t")
            if not image_id and not cells:
                continue
            try:
                if image_id != last_id:
                    corners = flat.setdefault(parse_id(image_id.decode()), array("f"))
                    last_id = image_id
                if len(cells) != 4 or not image_id:
                    raise ValueError(f"{len(cells) + 1} columns")
                corners.extend(map(float, cells))
            except ValueError as error:
                raise InputError(f"{path}: line {number}: need id<TAB>x1<TAB>y1<TAB>x2<TAB>y2") from error
    return _arrays(flat, path)


def _arrays(flat: "dict[int | str, array[float]]", path: Path) -> dict[int | str, np.ndarray]:
    return {
        image_id: _checked(np.frombuffer(numbers, np.float32).reshape(-1, 4), f"{path}: image {image_id}")
        for image_id, numbers in flat.items()
    }


def _checked(boxes: object, where: str) -> np.ndarray:
    """Returns boxes as [N, 4] float32, or raises an InputError that begins with ``where``."""
    try:
        checked = np.asarray(boxes, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: not boxes: need a list of [x1, y1, x2, y2] in numbers") from error
    if checked.shape == (0,):
        checked = checked.reshape(0, 4)
    if checked.ndim != 2 or checked.shape[1] != 4:
        raise InputError(f"{where}: an array of shape {checked.shape}; boxes are (N, 4), x1 y1 x2 y2")
    _check_rows(checked, np.all(np.isfinite(checked), axis=1), where, "its coordinates must be finite numbers")
    ordered = np.all(checked[:, 2:] >= checked[:, :2], axis=1)
    _check_rows(checked, ordered, where, "x1 y1 x2 y2 need x1 <= x2 and y1 <= y2 (not a width and height)")
    return checked


def _check_rows(boxes: np.ndarray, valid: np.ndarray, where: str, rule: str) -> None:
    """Raises an InputError for the first box that is not valid."""
    if not valid.all():
        row = int(valid.argmin())
        numbers = " ".join(f"{number:g}" for number in boxes[row].tolist())
        raise InputError(f"{where}: box {row} (counted from 0) is {numbers}; {rule}")
