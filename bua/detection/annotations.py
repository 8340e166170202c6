"""The annotation file of a detection data set: COCO's JSON with attributes, in memory as numpy arrays.

The file has ``images`` (id, file_name relative to the data set's folder, width, height), ``annotations`` (id,
image_id, category_id from 0, bbox as x, y, width, height in pixels, area, iscrowd, attribute_ids from 0),
``categories`` and ``attribute_categories`` (id from 0, name, aliases). Programs that read COCO files read it, and
so does grid-feats-vqa, whose field ``attribute_ids`` is.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError, make_folder
from bua.io.files import whole_file
from bua.io.json_records import without_gc
from bua.vocabulary import Vocabulary

MAX_ATTRIBUTES = 16  # of a box; the original's (lib/datasets/vg.py)
XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS


class DetectionDataset(Sequence):
    """Images with boxes, object classes and attributes, as a sequence of Detectron2's standard dataset dicts.

    The data is held in a few numpy arrays (about 50 bytes a box), which worker processes share by fork; the
    dicts are made when asked for.

    Args:
        annotation_file: see the module.
        image_folder: what the file names in it are relative to.
        name: what messages and logs call the data set; the file's name by default.

    Attributes:
        name: as given.
        objects, attribute_names: the vocabularies of ``category_id`` and ``attribute_ids``.
        image_ids: [N] int64.
        sizes: [N, 2] int64, (height, width) in pixels.

    Raises:
        InputError: the file is missing, truncated or of another format, or an id in it is out of range.
    """

    def __init__(self, annotation_file: str | Path, image_folder: str | Path, name: str | None = None):
        path = Path(annotation_file)
        self.name = name or path.stem
        self._image_folder = os.fspath(image_folder)
        with without_gc():
            self._read(path)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict:
        """The image's ``file_name``, ``image_id``, ``height``, ``width`` and ``annotations``, a list of ``bbox``
        ([x1, y1, x2, y2] in pixels), ``bbox_mode``, ``category_id`` and ``attribute_ids`` (without padding)."""
        index = range(len(self))[index]
        height, width = self.sizes[index].tolist()
        rows = zip(self.boxes(index).tolist(), self.classes(index).tolist(), self.attributes(index).tolist())
        return {
            "file_name": self.file_name(index),
            "image_id": int(self.image_ids[index]),
            "height": height,
            "width": width,
            "annotations": [
                {
                    "bbox": box,
                    "bbox_mode": XYXY_ABS,
                    "category_id": class_id,
                    "attribute_ids": [attribute for attribute in attributes if attribute >= 0],
                }
                for box, class_id, attributes in rows
            ],
        }

    def boxes(self, index: int) -> np.ndarray:
        """[G, 4] float32 x1y1x2y2 in pixels."""
        return self._boxes[self._rows(index)]

    def classes(self, index: int) -> np.ndarray:
        """[G] int64."""
        return self._classes[self._rows(index)].astype(np.int64)

    def attributes(self, index: int) -> np.ndarray:
        """[G, 16] int64, padded with -1."""
        return self._attributes[self._rows(index)].astype(np.int64)

    def file_name(self, index: int) -> str:
        """The path of the image."""
        return os.path.join(self._image_folder, str(self._file_names[index]))

    def _rows(self, index: int) -> slice:
        index = range(len(self))[index]
        return slice(self._offsets[index], self._offsets[index + 1])

    def _read(self, path: Path) -> None:
        tree = _parse(path)
        self.objects = _vocabulary(tree["categories"], path, "categories")
        self.attribute_names = _vocabulary(tree["attribute_categories"], path, "attribute_categories")
        images, annotations = tree.pop("images"), tree.pop("annotations")

        self.image_ids = np.array(_column(images, "id", int, path, "images"), dtype=np.int64)
        self._file_names = np.array(_column(images, "file_name", str, path, "images"), dtype=np.str_)
        self.sizes = np.array(
            [_column(images, "height", int, path, "images"), _column(images, "width", int, path, "images")],
            dtype=np.int64,
        ).T
        position_of = {image_id: position for position, image_id in enumerate(self.image_ids.tolist())}
        if len(position_of) < len(images):
            raise InputError(f"{path}: images: an id is there twice; each image needs its own")

        image_ids = _column(annotations, "image_id", int, path, "annotations")
        positions = np.array([position_of.get(image_id, -1) for image_id in image_ids], dtype=np.int32)
        _check(positions >= 0, path, "image_id", "is of no image in images")
        classes = np.array(_column(annotations, "category_id", int, path, "annotations"), dtype=np.int64)
        _check(
            (classes >= 0) & (classes < len(self.objects)), path, "category_id", f"not in 0..{len(self.objects) - 1}"
        )
        boxes = _boxes(annotations, path)
        attributes = _attributes(annotations, len(self.attribute_names), path)

        order = np.argsort(positions, kind="stable")
        self._boxes = boxes[order]
        self._classes = classes[order].astype(np.int32)
        self._attributes = attributes[order]
        counts = np.bincount(positions, minlength=len(images))
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).tolist()


@dataclass
class ImageAnnotations:
    """One image and its boxes, to be written.

    Attributes:
        image_id, file_name, width, height: of the image; the name is relative to the data set's folder.
        boxes: [G, 4] int x1y1x2y2 in pixels.
        classes: G class ids.
        attributes: G sequences of at most 16 attribute ids.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    boxes: np.ndarray
    classes: Sequence[int]
    attributes: Sequence[Sequence[int]]


def write_annotations(
    path: str | Path, images: Iterable[ImageAnnotations], objects: Vocabulary, attributes: Vocabulary
) -> None:
    """Writes an annotation file; an older one stays in place until the new one is whole."""
    path = Path(path)
    make_folder(path.parent)
    described = []
    count = 0
    with whole_file(path) as file:
        # A line an image, so that the file can be looked at with head and grep.
        file.write(b'{"annotations":[')
        for image in images:
            described.append(
                {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            )
            records = _records(image, count)
            if records:
                file.write(b",\n" if count else b"\n")
                file.write(orjson.dumps(records)[1:-1])
                count += len(records)
        file.write(b'\n],\n"images":')
        file.write(orjson.dumps(described))
        for field, vocabulary in (("categories", objects), ("attribute_categories", attributes)):
            file.write(b',\n"%b":' % field.encode())
            file.write(orjson.dumps(_categories(vocabulary)))
        file.write(b"}\n")


def _records(image: ImageAnnotations, first_id: int) -> list[dict]:
    records = []
    for number, ((x1, y1, x2, y2), class_id, attributes) in enumerate(
        zip(image.boxes.tolist(), image.classes, image.attributes), start=first_id
    ):
        width, height = x2 - x1, y2 - y1
        records.append(
            {
                "id": number,
                "image_id": image.image_id,
                "category_id": class_id,
                "bbox": (x1, y1, width, height),
                "area": width * height,
                "iscrowd": 0,
                "attribute_ids": attributes,
            }
        )
    return records


def _categories(vocabulary: Vocabulary) -> list[dict]:
    named = zip(vocabulary.names, vocabulary.aliases)
    return [{"id": number, "name": name, "aliases": aliases} for number, (name, aliases) in enumerate(named)]


def _parse(path: Path) -> dict:
    try:
        tree = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such annotation file") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not a whole JSON file ({error}); write it again") from error
    for field in ("images", "annotations", "categories", "attribute_categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(field), list):
            raise InputError(
                f"{path}: no list {field!r}: not an annotation file of bua; make one with prepare_visual_genome.py"
            )
    return tree


def _vocabulary(categories: list, path: Path, field: str) -> Vocabulary:
    ids = _column(categories, "id", int, path, field)
    names = _column(categories, "name", str, path, field)
    if ids != list(range(len(ids))):
        raise InputError(f"{path}: {field}: ids must be 0, 1, 2, ... in this order")
    aliases = [category.get("aliases", ()) for category in categories]
    return Vocabulary([",".join([name, *more]) for name, more in zip(names, aliases)], source=f"{path}: {field}")


def _column(records: list, field: str, kind: type, path: Path, where: str) -> list:
    try:
        column = [record[field] for record in records]
    except (KeyError, TypeError, IndexError) as error:
        bad = next(n for n, record in enumerate(records) if not isinstance(record, dict) or field not in record)
        raise InputError(f"{path}: {where}[{bad}] has no {field!r}; see bua/detection/annotations.py") from error
    for number, value in enumerate(column):
        if type(value) is not kind:
            raise InputError(f"{path}: {where}[{number}]: {field} is {value!r}, not {kind.__name__}")
    return column


def _boxes(annotations: list, path: Path) -> np.ndarray:
    column = _column(annotations, "bbox", list, path, "annotations")
    try:
        boxes = np.array(column, dtype=np.float32).reshape(len(column), 4)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: annotations: a bbox is not four numbers x, y, width, height") from error
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= 0).all(axis=1)
    _check(good, path, "bbox", "not four numbers x, y, width >= 0, height >= 0")
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _attributes(annotations: list, num_classes: int, path: Path) -> np.ndarray:
    lists = _column(annotations, "attribute_ids", list, path, "annotations")
    padded = np.full((len(lists), MAX_ATTRIBUTES), -1, dtype=np.int16)
    lengths = np.array([min(len(ids), MAX_ATTRIBUTES) for ids in lists], dtype=np.int64)
    try:
        flat = np.array([number for ids in lists for number in ids[:MAX_ATTRIBUTES]], dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: annotations: attribute_ids are not all whole numbers") from error
    good = (flat >= 0) & (flat < num_classes)
    rows = np.repeat(np.arange(len(lists)), lengths)
    if not good.all():
        bad = rows[np.argmin(good)]
        raise InputError(f"{path}: annotations[{bad}]: attribute_ids: not in 0..{num_classes - 1}")
    padded[np.arange(MAX_ATTRIBUTES) < lengths[:, None]] = flat
    return padded


def _check(good: np.ndarray, path: Path, field: str, complaint: str) -> None:
    if not good.all():
        raise InputError(f"{path}: annotations[{np.argmin(good)}]: {field}: {complaint}")
