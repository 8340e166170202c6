"""Boxes that the user gives, to be described instead of proposals."""

import json
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.features import open_features
from bua.features.ids import id_of_file_stem, parse_id
from bua.io.json_records import iter_records, without_gc

ROW_COLUMNS = 5  # id, x1, y1, x2, y2
HEAD = 4096  # bytes that tell what a file is


def load_boxes(path: str | Path) -> Mapping[int | str, np.ndarray]:
    """The boxes of each image, image id -> [N, 4] float32 x1y1x2y2 in pixels of the original image, in the
    file's order.

    They stay as they are, also where they reach over the image's edge: what lies outside adds nothing to the
    pooled features, and the boxes are written as they were given. So does MILVLG's port (its mode 3).

    Args:
        path: one of
            a JSON: ``{"id": [[x1, y1, x2, y2], ...], ...}``; or COCO's, as a list of detections or as a file with
            ``annotations``: ``image_id`` and ``bbox``, which is x, y, width, height there;
            a TSV with a row ``id<TAB>x1<TAB>y1<TAB>x2<TAB>y2`` for each box;
            an npz archive with an array for each id, or a folder of ``<id>.npy``;
            a folder of ``<id>.npz`` that have the boxes under ``bbox``, such as MILVLG's;
            any other file or folder of features that ``bua.features.open_features`` reads: their boxes.
            Folders and features are read an image at a time; JSON, rows and archives are held in memory, where a
            box takes 16 bytes (while a JSON other than COCO's list is read, some 400).

    Raises:
        InputError: now, or when an image's boxes are asked for: names the file, the image and what is wrong:
            not [N, 4], not a number, x2 < x1 or y2 < y1.
        KeyError: when the boxes of an image are asked for that has none.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _in_folder(path)
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith(b"PK"):
        return _in_archive(path)
    if head.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: the boxes of one image; give the folder of such files, named <id>.npy")
    with without_gc():
        if head.lstrip().startswith(b"["):
            return _from_coco(iter_records(path, progress=False), path)
        if head.lstrip().startswith(b"{"):
            return _in_json(path)
        # The columns of features may be longer than all that was read.
        first_line, newline, _ = head.partition(b"\n")
        if (newline or len(head) < HEAD) and first_line.count(b"\t") == ROW_COLUMNS - 1:
            return _in_rows(path)
    return _in_features(path)


class _OnDemand(Mapping[int | str, np.ndarray]):
    """Boxes that are read when they are asked for, ``read`` from what ``pictures`` has for an id."""

    def __init__(self, path: Path, images: Mapping, read: Callable[..., np.ndarray]):
        self.path, self.images, self.read = path, images, read

    def __getitem__(self, image_id: int | str) -> np.ndarray:
        return _checked(self.read(self.images[parse_id(image_id)]), f"{self.path}: image {image_id}")

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self.images

    def __iter__(self) -> Iterator[int | str]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)


def _in_features(path: Path) -> _OnDemand:
    return _OnDemand(path, open_features(path), attrgetter("boxes"))


def _in_folder(folder: Path) -> _OnDemand:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    # MMF's features are arrays too, each with its boxes in another file.
    if not any(name.endswith("_info.npy") for name in names):
        for suffix, read in ((".npy", _read_npy), (".npz", _read_npz)):
            files = {
                id_of_file_stem(name.removesuffix(suffix)): str(folder / name)
                for name in names
                if name.endswith(suffix)
            }
            if files:
                return _OnDemand(folder, files, read)
    return _in_features(folder)


def _read_npy(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as npy ({error}); make it again") from error


def _read_npz(path: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["bbox"]
    except KeyError as error:
        raise InputError(f"{path}: has no array bbox, [N, 4] x1y1x2y2") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as npz ({error}); make it again") from error


def _in_archive(path: Path) -> dict[int | str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {parse_id(key): _checked(arrays[key], f"{path}: image {key}") for key in arrays.files}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as npz ({error}); make it again") from error


def _in_json(path: Path) -> dict[int | str, np.ndarray]:
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if "annotations" in content:
        if not isinstance(content["annotations"], list):
            raise InputError(f"{path}: annotations must be a list of records with image_id and bbox")
        return _from_coco(content["annotations"], path)
    return {parse_id(image_id): _checked(boxes, f"{path}: image {image_id}") for image_id, boxes in content.items()}


def _from_coco(records: Iterable[dict], path: Path) -> dict[int | str, np.ndarray]:
    """Boxes from records with image_id and bbox."""
    flat: dict[int | str, array] = {}
    for number, record in enumerate(records, start=1):
        try:
            x, y, width, height = record["bbox"]
            flat.setdefault(parse_id(record["image_id"]), array("f")).extend((x, y, x + width, y + height))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: record {number}: {json.dumps(record)[:60]} needs image_id and bbox, x y width height"
            ) from error
    return _arrays(flat, path)


def _in_rows(path: Path) -> dict[int | str, np.ndarray]:
    flat: dict[int | str, array] = {}
    last, corners = None, array("f")
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            image_id, *cells = line.rstrip(b"\r\n").split(b"\t")
            if not image_id and not cells:
                continue
            try:
                if image_id != last:
                    corners = flat.setdefault(parse_id(image_id.decode()), array("f"))
                    last = image_id
                if len(cells) != 4 or not image_id:
                    raise ValueError(f"{len(cells) + 1} columns")
                corners.extend(map(float, cells))
            except ValueError as error:
                raise InputError(f"{path}: line {number}: need id<TAB>x1<TAB>y1<TAB>x2<TAB>y2") from error
    return _arrays(flat, path)


def _arrays(flat: dict[int | str, array], path: Path) -> dict[int | str, np.ndarray]:
    return {
        image_id: _checked(np.frombuffer(numbers, np.float32).reshape(-1, 4), f"{path}: image {image_id}")
        for image_id, numbers in flat.items()
    }


def _checked(boxes: np.ndarray | list, where: str) -> np.ndarray:
    """Boxes as [N, 4] float32; InputError says what is wrong ``where``."""
    try:
        boxes = np.asarray(boxes, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: not boxes: need a list of [x1, y1, x2, y2] in numbers") from error
    if boxes.shape == (0,):
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{where}: an array of shape {boxes.shape}; boxes are (N, 4), x1 y1 x2 y2")
    bad = ~np.isfinite(boxes).all(axis=1)
    if bad.any():
        raise InputError(f"{where}: box {int(bad.argmax())} (from 0) is {_text(boxes, bad)}; it must be finite numbers")
    bad = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if bad.any():
        raise InputError(
            f"{where}: box {int(bad.argmax())} (from 0) is {_text(boxes, bad)}; "
            "x1 y1 x2 y2 need x1 <= x2 and y1 <= y2 (not a width and height)"
        )
    return boxes


def _text(boxes: np.ndarray, rows: np.ndarray) -> str:
    return " ".join(f"{number:g}" for number in boxes[rows.argmax()].tolist())
