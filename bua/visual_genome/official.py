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
are left out leave no empty boxes behind; they are only counted (``bua.visual_genome.zero_rows``). An attribute that a
box has under two names ("gray", "grey") counts once. Attributes keep the order of the files (in the original, that of a
Python set). W and H come from image_data.json, not from the headers of 108,077 images.

``bua.visual_genome.relations`` has the rules for relations, and ``bua.visual_genome.records`` says which names of
fields are accepted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bua.detection.annotations import MAX_ATTRIBUTES, ImageAnnotations
from bua.errors import InputError
from bua.io.json_records import iter_records
from bua.visual_genome.names import clean_attribute, clean_object_name
from bua.visual_genome.records import (
    attribute_texts_of,
    box_of,
    image_id_of,
    iter_images,
    naming_image,
    object_id_of,
    object_name_of,
)
from bua.visual_genome.relations import Triple, relation_rows
from bua.vocabulary import Vocabulary

AttributesOfObjects = Mapping[int, tuple[int, ...]]  # object id -> attribute ids


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
        image_id = image_id_of(record, path)
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
    for image_id, image in iter_images(path, "attributes", progress):
        of_objects: dict[int, tuple[int, ...]] = {}
        with naming_image(path, image_id):
            for record in image["attributes"]:
                ids = ids_of(record)
                if ids:
                    object_id = object_id_of(record)
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
    collect: Callable[[int, Iterable[str]], None] | None = None,
    find_relations: Callable[[int, dict], Iterable[Triple]] | None = None,
) -> Iterator[tuple[ImageAnnotations, int]]:
    """Reads objects.json or scene_graphs.json, and yields images with the boxes of known classes.

    Args:
        path: The file.
        file_names: Image id -> file name of the image. Other images are skipped.
        sizes: See ``read_sizes``.
        attributes_of: See ``read_attributes``.
        objects, attributes: The vocabularies.
        progress: Whether to show a progress bar.
        collect: Is called with the id of each image in the file, also of those that are skipped, and with the names of
            its objects, as ``bua.visual_genome.zero_rows.ZeroRowCounter.add``.
        find_relations: Returns the relations of an image by the ids of its objects, given the image's id and its record
            in the file. Without it, the images have no relations.

    Yields:
        An image, which may have no boxes, and the number of its boxes that lay outside and were replaced by the whole
        image.
    """
    class_of = _ObjectClass(objects, attributes)
    ids_of = _AttributeIds(attributes)
    for image_id, image in iter_images(path, "objects", progress):
        if collect is not None:
            with naming_image(path, image_id):
                collect(image_id, map(object_name_of, image["objects"]))
        if image_id not in file_names:
            continue
        if image_id not in sizes:
            raise InputError(f"{path}: image {image_id} is not in image_data.json; use files of the same version")
        of_objects = attributes_of.get(image_id, {})
        classes: list[int] = []
        attribute_ids: list[tuple[int, ...]] = []
        boxes: list[tuple[float, float, float, float]] = []
        row_of: dict[int, int] = {}
        with naming_image(path, image_id):
            for record in image["objects"]:
                class_id, ids = class_of(object_name_of(record))
                if class_id is None:
                    continue
                object_id = object_id_of(record)
                more = of_objects.get(object_id, ()) + ids_of(record)
                if more:
                    ids = tuple(dict.fromkeys(ids + more))[:MAX_ATTRIBUTES]
                row_of[object_id] = len(classes)
                classes.append(class_id)
                attribute_ids.append(ids)
                boxes.append(box_of(record))
            relations = relation_rows(find_relations(image_id, image) if find_relations else (), row_of)
        width, height = sizes[image_id]
        corners, outside = clip_boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), width, height)
        yield (
            ImageAnnotations(
                image_id, file_names[image_id], width, height, corners, classes, attribute_ids, relations=relations
            ),
            outside,
        )


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
        for text in attribute_texts_of(record):
            if not isinstance(text, str):  # skipped, as in the original
                continue
            if text not in self._seen:
                self._seen[text] = _known_ids(clean_attribute(text), self._attributes)
            ids += self._seen[text]
        return ids


def _known_ids(names: list[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    ids = map(vocabulary.id, names)
    return tuple(dict.fromkeys(number for number in ids if number is not None))
