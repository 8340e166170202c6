"""Reads Visual Genome's official JSON files, and cleans them by the rules of the original.

The rules (data/genome/setup_vg.py and lib/datasets/vg.py of peteanderson80/bottom-up-attention):

- The name of an object is the first of its names, in lower case, without one dot at the end. If all words before the
  last one are among nineteen common adjectives ("small white dog"), the last word is the name and the others are
  attributes.
- An attribute is changed to lower case, loses one dot at the end, and is split at " and ", except "black and white".
- Objects and attributes that are not in the vocabulary are left out. So are images that then have no object.
- A box is x1 = max(0, x), y1 = max(0, y), x2 = min(W - 1, x + w), y2 = min(H - 1, y + h), truncated to whole pixels. If
  x2 < x1 or y2 < y1, the box is replaced by the whole image. A box with x2 = x1 or y2 = y1 is kept: it is one pixel
  wide in the original's convention, and has no area in Detectron2's. Boxes that were annotated twice are kept, too.
- A box keeps its first 16 attributes.

There are five differences from the original. The whole image ends at y = H - 1 (W - 1 in the original). Objects that
are left out leave no empty boxes behind. An attribute that a box has under two names ("gray", "grey") counts once.
Attributes keep the order of the files (in the original, that of a Python set). W and H come from image_data.json, not
from the headers of 108,077 images.

Versions 1.0 to 1.4 of Visual Genome name some fields differently. These functions accept ``image_id`` or ``id``,
``object_id`` or ``id``, and ``names`` (a list) or ``name``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bua.detection.annotations import MAX_ATTRIBUTES, ImageAnnotations
from bua.errors import InputError
from bua.io.json_records import iter_records
from bua.vocabulary import Vocabulary

COMMON_ADJECTIVES = frozenset(
    {"white", "black", "blue", "green", "red", "brown", "yellow", "silver", "orange", "gray", "grey", "pink"}
    | {"small", "large", "tall", "long", "dark", "wooden", "metal"}
)

AttributesOfObjects = Mapping[int, tuple[int, ...]]  # object id -> attribute ids


def clean_object_name(text: str) -> tuple[str, list[str]]:
    """Returns an object's name and the attributes in it: "Small white dog." -> ("dog", ["small", "white"])."""
    name = _clean(text)
    words = name.split()
    if len(words) > 1 and COMMON_ADJECTIVES.issuperset(words[:-1]):
        return words[-1], words[:-1]
    return name, []


def clean_attribute(text: str) -> list[str]:
    """Returns the attributes in one entry: "Red and shiny." -> ["red", "shiny"]."""
    attribute = _clean(text)
    if attribute == "black and white":
        return [attribute]
    return [part.strip() for part in attribute.split(" and ")]


def clip_boxes(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, int]:
    """Clips boxes to their image.

    Args:
        boxes: [G, 4] x, y, width, height in pixels.
        width, height: Size of the image in pixels.

    Returns:
        Boxes [G, 4] int32 x1y1x2y2 with 0 <= x1 <= x2 <= width - 1 (y likewise), and the number of boxes that lay
        outside the image and were replaced by the whole image.
    """
    last = np.array([width - 1, height - 1])
    first_corner = np.maximum(boxes[:, :2], 0)
    second_corner = np.minimum(boxes[:, :2] + boxes[:, 2:], last)
    outside = (second_corner < first_corner).any(axis=1)
    first_corner[outside] = 0
    second_corner[outside] = last
    return np.concatenate([first_corner, second_corner], axis=1).astype(np.int32), int(outside.sum())


def read_sizes(path: Path, progress: bool = True) -> dict[int, tuple[int, int]]:
    """Reads image_data.json: image id -> (width, height) in pixels."""
    sizes: dict[int, tuple[int, int]] = {}
    for record in iter_records(path, progress):
        image_id = _image_id(record, path)
        width, height = record.get("width"), record.get("height")
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
            raise InputError(
                f"{path}: image {image_id}: width and height are {(width, height)}; they must be whole numbers above 0"
            )
        sizes[image_id] = width, height
    return sizes


def read_attributes(path: Path, vocabulary: Vocabulary, progress: bool = True) -> dict[int, AttributesOfObjects]:
    """Reads attributes.json: image id -> object id -> attribute ids. Objects without attributes are left out."""
    attributes_of: dict[int, AttributesOfObjects] = {}
    ids_of = _AttributeIds(vocabulary)
    for image_id, records in _images(path, "attributes", progress):
        of_objects: dict[int, tuple[int, ...]] = {}
        with _naming_image(path, image_id):
            for record in records:
                ids = ids_of(record)
                if ids:
                    object_id = _object_id(record)
                    of_objects[object_id] = of_objects.get(object_id, ()) + ids
        if of_objects:
            attributes_of[image_id] = of_objects
    return attributes_of


def read_objects(
    path: Path,
    file_names: Mapping[int, str],
    sizes: Mapping[int, tuple[int, int]],
    attributes_of: Mapping[int, AttributesOfObjects],
    objects: Vocabulary,
    attributes: Vocabulary,
    progress: bool = True,
) -> Iterator[tuple[ImageAnnotations, int]]:
    """Reads objects.json or scene_graphs.json, and yields images with the boxes of known classes.

    Args:
        path: The file.
        file_names: Image id -> file name of the image. Other images are skipped.
        sizes: See ``read_sizes``.
        attributes_of: See ``read_attributes``.
        objects, attributes: The vocabularies.
        progress: Whether to show a progress bar.

    Yields:
        An image, which may have no boxes, and the number of its boxes that lay outside and were replaced by the whole
        image.
    """
    class_of = _ObjectClass(objects, attributes)
    ids_of = _AttributeIds(attributes)
    for image_id, records in _images(path, "objects", progress):
        if image_id not in file_names:
            continue
        if image_id not in sizes:
            raise InputError(f"{path}: image {image_id} is not in image_data.json; use files of the same version")
        of_objects = attributes_of.get(image_id, {})
        classes: list[int] = []
        attribute_ids: list[tuple[int, ...]] = []
        boxes: list[tuple[float, float, float, float]] = []
        with _naming_image(path, image_id):
            for record in records:
                class_id, ids = class_of(_object_name(record))
                if class_id is None:
                    continue
                more = of_objects.get(_object_id(record), ()) + ids_of(record)
                if more:
                    ids = tuple(dict.fromkeys(ids + more))[:MAX_ATTRIBUTES]
                classes.append(class_id)
                attribute_ids.append(ids)
                boxes.append(_box(record))
        width, height = sizes[image_id]
        corners, outside = clip_boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), width, height)
        yield ImageAnnotations(image_id, file_names[image_id], width, height, corners, classes, attribute_ids), outside


def count_names(objects_path: Path, attributes_path: Path, progress: bool = True) -> tuple[Counter[str], Counter[str]]:
    """Counts the cleaned object names and the cleaned attributes in all images."""
    object_texts: Counter[str] = Counter()
    attribute_texts: Counter[str] = Counter()
    for image_id, records in _images(objects_path, "objects", progress):
        with _naming_image(objects_path, image_id):
            object_texts.update(map(_object_name, records))
    for image_id, records in _images(attributes_path, "attributes", progress):
        with _naming_image(attributes_path, image_id):
            for record in records:
                attribute_texts.update(_attribute_texts(record))
    objects: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    for text, count in object_texts.items():
        name, adjectives = clean_object_name(text)
        objects[name] += count
        for adjective in adjectives:
            attributes[adjective] += count
    for text, count in attribute_texts.items():
        for attribute in clean_attribute(text):
            attributes[attribute] += count
    return objects, attributes


class _ObjectClass:
    """Maps an object's name to its class id (None: not in the vocabulary) and the ids of the attributes in the name.

    The result for a text is cached, since most texts occur many times.
    """

    def __init__(self, objects: Vocabulary, attributes: Vocabulary):
        self._objects = objects
        self._attributes = attributes
        self._seen: dict[str, tuple[int | None, tuple[int, ...]]] = {}

    def __call__(self, text: str) -> tuple[int | None, tuple[int, ...]]:
        if text not in self._seen:
            name, adjectives = clean_object_name(text)
            self._seen[text] = self._objects.id(name), _known_ids(adjectives, self._attributes)[:MAX_ATTRIBUTES]
        return self._seen[text]


class _AttributeIds:
    """Maps a record with ``attributes`` to their ids. Caches the result for a text, as ``_ObjectClass`` does."""

    def __init__(self, attributes: Vocabulary):
        self._attributes = attributes
        self._seen: dict[str, tuple[int, ...]] = {}

    def __call__(self, record: dict) -> tuple[int, ...]:
        ids: tuple[int, ...] = ()
        for text in _attribute_texts(record):
            if text not in self._seen:
                self._seen[text] = _known_ids(clean_attribute(text), self._attributes)
            ids += self._seen[text]
        return ids


def _clean(text: str) -> str:
    text = text.lower().strip()
    return text[:-1].strip() if text.endswith(".") else text


def _known_ids(names: list[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    ids = map(vocabulary.id, names)
    return tuple(dict.fromkeys(number for number in ids if number is not None))


class _FieldError(Exception):
    """A record lacks a field, or the field has another type."""


@contextmanager
def _naming_image(path: Path, image_id: int) -> Iterator[None]:
    """Adds the file and the image to the message of a ``_FieldError``."""
    try:
        yield
    except _FieldError as error:
        raise InputError(f"{path}: image {image_id}: {error}; download the file again") from error


def _images(path: Path, field: str, progress: bool) -> Iterator[tuple[int, list[dict]]]:
    """Yields image ids with their records of objects or attributes."""
    for record in iter_records(path, progress):
        image_id = _image_id(record, path)
        records = record.get(field)
        if not isinstance(records, list) or not all(isinstance(entry, dict) for entry in records):
            raise InputError(
                f"{path}: image {image_id}: has no list {field!r}; check that this is Visual Genome's {path.name}"
            )
        yield image_id, records


def _image_id(record: dict, path: Path) -> int:
    image_id = record.get("image_id", record.get("id"))
    if not isinstance(image_id, int):
        raise InputError(
            f"{path}: an image has no 'image_id' (or 'id'); check that this is Visual Genome's {path.name}"
        )
    return image_id


def _object_id(record: dict) -> int:
    object_id = record.get("object_id", record.get("id"))
    if not isinstance(object_id, int):
        raise _FieldError("an object has no 'object_id' (or 'id')")
    return object_id


def _object_name(record: dict) -> str:
    """Returns the first name, or "" if the list of names is empty."""
    names = record.get("names", record.get("name"))
    if isinstance(names, list):
        names = names[0] if names else ""
    if not isinstance(names, str):
        raise _FieldError("an object has no 'names' (or 'name')")
    return names


def _attribute_texts(record: dict) -> list[str]:
    """Returns the entries of ``attributes``, which may be missing or null.

    Entries that are not texts are skipped, as in the original.
    """
    texts = record.get("attributes")
    if not texts:
        return []
    if not isinstance(texts, list):
        raise _FieldError(f"'attributes' is {texts!r}, not a list of texts")
    return [text for text in texts if isinstance(text, str)]


def _box(record: dict) -> tuple[float, float, float, float]:
    try:
        box = record["x"], record["y"], record["w"], record["h"]
    except KeyError as error:
        raise _FieldError(f"object {_object_id(record)} has no {error.args[0]!r}") from error
    if not all(isinstance(number, (int, float)) for number in box):
        raise _FieldError(f"object {_object_id(record)}: x, y, w, h are {box}, not numbers")
    return box
