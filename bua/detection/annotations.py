"""Reads and writes the annotation file of a detection data set: COCO's JSON with attributes.

The file has ``images`` (id, file_name relative to the data set's folder, width, height, and for Visual Genome
zero_rows, see ``bua.detection.evaluation.zero_rows``), ``annotations`` (id, image_id, category_id from 0, bbox as x, y,
width, height in pixels, area, iscrowd, attribute_ids from 0), ``categories`` and ``attribute_categories`` (id from 0,
name, aliases). If the relations of the data set are prepared, it also has ``relations`` (id, image_id, subject_id and
object_id, which are ids of annotations, and predicate_id from 0) and ``relation_categories`` (as the other categories).
Programs that read COCO files can read it. The field ``attribute_ids`` is named as in grid-feats-vqa, which can read the
file too. Ordinary COCO files are read, too (``bua.detection.coco_files``).
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import orjson

from bua.detection.annotation_fields import check_records, read_column, read_vocabulary
from bua.detection.coco_files import is_ordinary, with_ids_from_zero
from bua.detection.relations import read_relations
from bua.errors import InputError, make_folder
from bua.io.files import whole_file
from bua.io.json_records import without_gc
from bua.regular_files import read_regular
from bua.vocabulary import Vocabulary

MAX_ATTRIBUTES = 16  # per box, as in the original (lib/datasets/vg.py)
MAX_ZERO_ROWS = 10_000  # of an image; images of Visual Genome have a few hundred objects at most
XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS

logger = logging.getLogger(__name__)


class DetectionDataset(Sequence[dict]):
    """Images with boxes, object classes and attributes, as a sequence of Detectron2's standard dataset dicts.

    The data is held in a few numpy arrays (about 50 bytes per box and 12 per relation), which forked worker processes
    share with their parent. A dict is only created when it is accessed.

    Args:
        annotation_file: The file, in the format that the module's docstring describes.
        image_folder: Folder that the file names in the annotation file are relative to.
        name: Name of the data set in messages and logs. By default this is the file's name without its suffix.
        attributes: For an ordinary COCO file whose annotations hold names of attributes: all names, in the order of
            their ids; by default the names in the file, in alphabetical order.

    Attributes:
        name: Name of the data set.
        objects, attribute_names: Vocabularies of ``category_id`` and ``attribute_ids``.
        relation_names: Vocabulary of the relations, which is empty if the file has none.
        image_ids: [N] int64.
        sizes: [N, 2] int64, (height, width) in pixels.
        category_ids: The id that each class has in the file, which counts from 0 only in bua's own files.
        zero_rows: [N] int64, the number of the original's rows of zeros for an image
            (``bua.detection.evaluation.zero_rows``), or None if the file does not say it.

    Raises:
        InputError: The file is missing, truncated or has another format, or an id in it is out of range.
    """

    name: str
    objects: Vocabulary
    attribute_names: Vocabulary
    relation_names: Vocabulary
    image_ids: np.ndarray
    sizes: np.ndarray
    category_ids: list[int]
    zero_rows: np.ndarray | None

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path,
        name: str | None = None,
        attributes: Sequence[str] | None = None,
    ):
        path = Path(annotation_file)
        self.name = name or path.stem
        self._image_folder = os.fspath(image_folder)
        with without_gc():
            self._read(path, attributes)

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> dict: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        """Returns a dict with ``file_name``, ``image_id``, ``height``, ``width`` and ``annotations`` for one image.

        ``annotations`` is a list of dicts with ``bbox`` ([x1, y1, x2, y2] in pixels), ``bbox_mode``, ``category_id``
        and ``attribute_ids`` (without padding).
        """
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
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
        """Returns the boxes of an image, [G, 4] float32 x1y1x2y2 in pixels."""
        return self._boxes[self._rows(index)]

    def classes(self, index: int) -> np.ndarray:
        """Returns the class ids of an image's boxes, [G] int64."""
        return self._classes[self._rows(index)].astype(np.int64)

    def attributes(self, index: int) -> np.ndarray:
        """Returns the attribute ids of an image's boxes, [G, 16] int64, padded with -1."""
        return self._attributes[self._rows(index)].astype(np.int64)

    def relations(self, index: int) -> np.ndarray:
        """Returns the relations between an image's boxes, [R, 3] int64: the row of the subject's box, the id of the
        relation, and the row of the object's box. No model of bua is trained on them."""
        index = range(len(self))[index]
        rows = slice(self._relation_offsets[index], self._relation_offsets[index + 1])
        return self._relations[rows].astype(np.int64)

    def file_name(self, index: int) -> str:
        """Returns the path of an image."""
        return os.path.join(self._image_folder, str(self._file_names[index]))

    def _rows(self, index: int) -> slice:
        index = range(len(self))[index]
        return slice(self._offsets[index], self._offsets[index + 1])

    def _read(self, path: Path, attributes: Sequence[str] | None) -> None:
        tree = read_coco(path)
        listed = tree["categories"]
        if ordinary := is_ordinary(tree):
            tree = with_ids_from_zero(tree, path, attributes)
        self.category_ids = sorted(category["id"] for category in listed)
        self.objects = read_vocabulary(tree["categories"], path, "categories")
        self.attribute_names = read_vocabulary(tree["attribute_categories"], path, "attribute_categories")
        images, annotations = tree.pop("images"), tree.pop("annotations")

        self.image_ids = np.array(read_column(images, "id", int, path, "images"), dtype=np.int64)
        self._file_names = np.array(read_column(images, "file_name", str, path, "images"), dtype=np.str_)
        self.sizes = np.array(
            [read_column(images, "height", int, path, "images"), read_column(images, "width", int, path, "images")],
            dtype=np.int64,
        ).T
        check_records(self.sizes.min(axis=1, initial=1) > 0, path, "width, height", "not above 0", where="images")
        self.zero_rows = None
        if images and all("zero_rows" in image for image in images):
            self.zero_rows = np.array(read_column(images, "zero_rows", int, path, "images"), dtype=np.int64)
            good = (self.zero_rows >= 0) & (self.zero_rows <= MAX_ZERO_ROWS)
            check_records(good, path, "zero_rows", f"not in 0..{MAX_ZERO_ROWS}", where="images")
        position_of = {image_id: position for position, image_id in enumerate(self.image_ids.tolist())}
        if len(position_of) < len(images):
            raise InputError(f"{path}: images: the same id appears twice; give each image an id of its own")

        image_ids = read_column(annotations, "image_id", int, path, "annotations")
        positions = np.array([position_of.get(image_id, -1) for image_id in image_ids], dtype=np.int32)
        check_records(positions >= 0, path, "image_id", "no entry of images has this id")
        classes = np.array(read_column(annotations, "category_id", int, path, "annotations"), dtype=np.int64)
        check_records(
            (classes >= 0) & (classes < len(self.objects)), path, "category_id", f"not in 0..{len(self.objects) - 1}"
        )
        boxes = _boxes(annotations, path)
        attribute_ids = _attributes(annotations, len(self.attribute_names), path)

        if ordinary:
            _warn_of_boxes_outside(boxes, self.sizes[positions], self.image_ids[positions], path)

        order = np.argsort(positions, kind="stable")
        self._boxes = boxes[order]
        self._classes = classes[order].astype(np.int32)
        self._attributes = attribute_ids[order]
        offsets = _offsets(positions, len(images))
        self._offsets = offsets.tolist()

        self.relation_names, relations = read_relations({} if ordinary else tree, annotations, image_ids, path)
        row_of = np.empty_like(order)
        row_of[order] = np.arange(len(order)) - offsets[positions[order]]
        positions = positions[relations[:, 0]]
        order = np.argsort(positions, kind="stable")
        relations[:, [0, 2]] = row_of[relations[:, [0, 2]]]
        self._relations = relations[order].astype(np.int32)
        self._relation_offsets = _offsets(positions, len(images)).tolist()


@dataclass
class ImageAnnotations:
    """One image and its boxes, as ``write_annotations`` writes them.

    Attributes:
        image_id: The image's id in the data set.
        file_name: Name of the image file, relative to the data set's folder.
        width, height: Size of the image in pixels.
        boxes: [G, 4] int x1y1x2y2 in pixels.
        classes: G class ids.
        attributes: G sequences of at most 16 attribute ids.
        zero_rows: Number of the original's rows of zeros (``bua.detection.evaluation.zero_rows``), or None if it is not
            known.
        relations: [R, 3] int, or a list of as many triples: the row of the subject's box, the id of the relation, and
            the row of the object's box.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    boxes: np.ndarray
    classes: Sequence[int]
    attributes: Sequence[Sequence[int]]
    zero_rows: int | None = None
    relations: np.ndarray | Sequence[tuple[int, int, int]] = ()


def write_annotations(
    path: str | Path,
    images: Iterable[ImageAnnotations],
    objects: Vocabulary,
    attributes: Vocabulary,
    relations: Vocabulary | None = None,
) -> None:
    """Writes an annotation file. An older file of this name is replaced only when the new one is complete.

    Args:
        path: The file.
        images: The images.
        objects, attributes: The vocabularies.
        relations: Vocabulary of the relations. With None, the file gets no relations.
    """
    path = Path(path)
    make_folder(path.parent)
    described: list[dict] = []
    related: list[bytes] = []
    count = relation_count = 0
    with whole_file(path) as file:
        # Each image gets a line of its own, so that the file can be inspected with head and grep.
        file.write(b'{"annotations":[')
        for image in images:
            more = {} if image.zero_rows is None else {"zero_rows": image.zero_rows}
            described.append(
                {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
                | more
            )
            records = _records(image, count)
            if records:
                file.write(b",\n" if count else b"\n")
                file.write(orjson.dumps(records)[1:-1])
            if relations is not None and len(image.relations):
                found = _relation_records(image, relation_count, count)
                related.append(orjson.dumps(found)[1:-1])
                relation_count += len(found)
            count += len(records)
        file.write(b'\n],\n"images":')
        file.write(orjson.dumps(described))
        vocabularies = {"categories": objects, "attribute_categories": attributes}
        if relations is not None:
            file.write(b',\n"relations":[\n' + b",\n".join(related) + b"\n]")
            vocabularies["relation_categories"] = relations
        for field, vocabulary in vocabularies.items():
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


def _relation_records(image: ImageAnnotations, first_id: int, first_box_id: int) -> list[dict]:
    triples = np.asarray(image.relations).tolist()
    return [
        {
            "id": number,
            "image_id": image.image_id,
            "subject_id": first_box_id + subject,
            "predicate_id": relation,
            "object_id": first_box_id + target,
        }
        for number, (subject, relation, target) in enumerate(triples, start=first_id)
    ]


def _categories(vocabulary: Vocabulary) -> list[dict]:
    named = zip(vocabulary.names, vocabulary.aliases)
    return [{"id": number, "name": name, "aliases": aliases} for number, (name, aliases) in enumerate(named)]


def read_coco(path: Path) -> dict:
    """Returns the content of a COCO file, which has lists ``images``, ``annotations`` and ``categories``.

    Raises:
        InputError: The file does not exist, is not JSON, or lacks one of the lists.
    """
    try:
        tree = orjson.loads(read_regular(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: this annotation file does not exist") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not a complete JSON file ({error}); create it again") from error
    for field in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(field), list):
            raise InputError(
                f"{path}: has no list {field!r}, so it is not a COCO file of boxes; give one, or prepare Visual Genome "
                "with bua prepare-visual-genome"
            )
    return tree


def _offsets(positions: np.ndarray, num_images: int) -> np.ndarray:
    """Returns where the rows of each image begin, and their end: [N + 1], for rows sorted by the image's position."""
    return np.concatenate([[0], np.cumsum(np.bincount(positions, minlength=num_images))])


def _boxes(annotations: list, path: Path) -> np.ndarray:
    values = read_column(annotations, "bbox", list, path, "annotations")
    try:
        with np.errstate(over="ignore"):  # numbers that are too large become infinite, and are refused
            boxes = np.array(values, dtype=np.float32).reshape(len(values), 4)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: annotations: a bbox does not consist of four numbers x, y, width, height") from error
    good = np.isfinite(boxes) & (boxes >= [-np.inf, -np.inf, 0, 0])
    check_records(np.asarray(good.all(axis=1)), path, "bbox", "not four numbers x, y, width >= 0, height >= 0")
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _warn_of_boxes_outside(boxes: np.ndarray, sizes: np.ndarray, image_ids: np.ndarray, path: Path) -> None:
    """Logs a warning if boxes [N, 4] lie outside of their images, whose sizes are (height, width) [N, 2]."""
    outside = (boxes[:, :2] >= sizes[:, ::-1]).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    if outside.any():
        logger.warning(
            "%s: %d boxes lie outside of their images, the first one in image %d; correct or remove them",
            path,
            outside.sum(),
            image_ids[np.argmax(outside)],
        )


def _attributes(annotations: list, num_classes: int, path: Path) -> np.ndarray:
    lists = read_column(annotations, "attribute_ids", list, path, "annotations")
    padded = np.full((len(lists), MAX_ATTRIBUTES), -1, dtype=np.int16)
    lengths = np.array([min(len(ids), MAX_ATTRIBUTES) for ids in lists], dtype=np.int64)
    try:
        flat = np.array([number for ids in lists for number in ids[:MAX_ATTRIBUTES]], dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: annotations: attribute_ids must all be whole numbers") from error
    good = (flat >= 0) & (flat < num_classes)
    rows = np.repeat(np.arange(len(lists)), lengths)
    if not good.all():
        bad = rows[np.argmin(good)]
        raise InputError(f"{path}: annotations[{bad}]: attribute_ids: not in 0..{num_classes - 1}")
    padded[np.arange(MAX_ATTRIBUTES) < lengths[:, None]] = flat
    return padded
