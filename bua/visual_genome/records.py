"""Reads the fields of the records in Visual Genome's official JSON files.

Versions 1.0 to 1.4 name some fields differently. These functions accept ``image_id`` or ``id``, ``object_id`` or
``id``, ``names`` (a list) or ``name``, and the ends of a relationship as ``subject_id`` or as ``subject``, an object.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bua.errors import InputError, shown
from bua.io.json_records import iter_records


class FieldError(Exception):
    """A record lacks a field, or the field has another type."""


@contextmanager
def naming_image(path: Path, image_id: int) -> Iterator[None]:
    """Adds the file and the image to the message of a ``FieldError``, which becomes an ``InputError``."""
    try:
        yield
    except FieldError as error:
        raise InputError(f"{path}: image {image_id}: {error}; download the file again") from error


def iter_images(path: Path, field: str, progress: bool) -> Iterator[tuple[int, dict]]:
    """Yields the id and the record of each image of a file. The record has a list of records under ``field``."""
    for image in iter_records(path, progress):
        image_id = image_id_of(image, path)
        records = image.get(field)
        if not isinstance(records, list) or not all(isinstance(entry, dict) for entry in records):
            raise InputError(
                f"{path}: image {image_id}: has no list {field!r}; check that this is Visual Genome's {path.name}"
            )
        yield image_id, image


def image_id_of(record: dict, path: Path) -> int:
    """Returns the id of an image."""
    image_id = record.get("image_id", record.get("id"))
    if not isinstance(image_id, int):
        raise InputError(
            f"{path}: an image has no 'image_id' (or 'id'); check that this is Visual Genome's {path.name}"
        )
    return image_id


def object_id_of(record: dict) -> int:
    """Returns the id of an object."""
    object_id = record.get("object_id", record.get("id"))
    if not isinstance(object_id, int):
        raise FieldError("an object has no 'object_id' (or 'id')")
    return object_id


def object_name_of(record: dict) -> str:
    """Returns the first name of an object, or "" if its list of names is empty."""
    names = record.get("names", record.get("name"))
    if isinstance(names, list):
        names = names[0] if names else ""
    if not isinstance(names, str):
        raise FieldError("an object has no 'names' (or 'name')")
    return names


def attribute_texts_of(record: dict) -> list[object]:
    """Returns the entries of ``attributes``, which may be missing or null, and whose entries may be anything."""
    texts = record.get("attributes")
    if not texts:
        return []
    if not isinstance(texts, list):
        raise FieldError(f"'attributes' is {shown(texts)}, not a list of texts")
    return texts


def box_of(record: dict) -> tuple[float, float, float, float]:
    """Returns the box of an object: x, y, width, height in pixels."""
    try:
        box = record["x"], record["y"], record["w"], record["h"]
    except KeyError as error:
        raise FieldError(f"object {object_id_of(record)} has no {error.args[0]!r}") from error
    if not all(isinstance(number, (int, float)) for number in box):
        raise FieldError(f"object {object_id_of(record)}: x, y, w, h are {shown(box)}, not numbers")
    return box


def relationships_of(image: dict) -> list[dict]:
    """Returns the relationships in the record of an image."""
    records = image.get("relationships")
    if not isinstance(records, list) or not all(isinstance(entry, dict) for entry in records):
        raise FieldError("has no list 'relationships'")
    return records


def predicate_of(record: dict) -> str:
    """Returns the predicate of a relationship, such as "on top of"."""
    predicate = record.get("predicate")
    if not isinstance(predicate, str):
        raise FieldError(f"the predicate of a relationship is {shown(predicate)}, not a text")
    return predicate


def ends_of(record: dict) -> tuple[int, int]:
    """Returns the ids of the subject and of the object of a relationship."""
    return _end(record, "subject"), _end(record, "object")


def _end(record: dict, role: str) -> int:
    object_id = record.get(f"{role}_id")
    if object_id is None and isinstance(described := record.get(role), dict):
        return object_id_of(described)
    if not isinstance(object_id, int):
        raise FieldError(f"a relationship has no '{role}_id' (or {role!r})")
    return object_id
