"""Reads ordinary COCO files as bua's annotation files.

Ordinary files count categories from 1 or have gaps between ids, have crowds, and have no attributes or have them in one
of several forms. Here they become ids from 0 in the order of the original ids.
"""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bua.errors import InputError, first_of, shown

logger = logging.getLogger(__name__)


def attribute_names(tree: Mapping[str, Any]) -> list[str] | None:
    """Returns the names of the attributes of a COCO file in alphabetical order, if its annotations hold names; None if
    the file has a list of attributes, which says their order."""
    if _listed(tree) is not None:
        return None
    names: set[str] = set()
    for annotation in tree["annotations"]:
        if isinstance(annotation, Mapping):
            found = _attributes_of(annotation.get("attributes"))
            if isinstance(found, list):
                names.update(name for name in found if isinstance(name, str))
    return sorted(names)


def with_ids_from_zero(tree: dict[str, Any], path: Path, attributes: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the content of a COCO file with ``category_id`` and ``attribute_ids`` counted from 0, and with
    ``attribute_categories``. A file that bua wrote comes back as it is.

    Args:
        tree: Content of the file, with lists ``images``, ``annotations`` and ``categories``. Attributes are in the
            field ``attributes`` of an annotation, a list of names, or of ids in a list ``attributes`` or
            ``attribute_categories`` of the file (dictionaries with ``id`` and ``name``, or names, whose ids are their
            positions), or a dictionary as CVAT writes it (see ``_attributes_of``); or in the field ``attribute_ids``.
            Annotations with ``iscrowd`` are left out.
        path: The file, for messages.
        attributes: The names of all attributes, in the order of their ids, for a file whose annotations hold names; by
            default the names in the file, in alphabetical order.

    Raises:
        InputError: An id or a name occurs that no list has, or a field has another form.
    """
    annotations = [record for record in tree["annotations"] if not _is_crowd(record)]
    if len(annotations) < len(tree["annotations"]):
        logger.info("%s: %d crowds are left out", path, len(tree["annotations"]) - len(annotations))
    class_ids = _positions(tree["categories"], path, "categories")
    listed = _listed(tree)
    if listed is None:
        names = list(attribute_names(tree) or ()) if attributes is None else list(attributes)
        attribute_ids: dict[Any, int] = {name: number for number, name in enumerate(names)}
    else:
        names, attribute_ids = _names_and_positions(listed, path)
    renumbered = []
    for number, record in enumerate(annotations):
        if not isinstance(record, dict) or "category_id" not in record:
            raise InputError(f"{path}: annotations[{number}] has no 'category_id'; give each box a category")
        found = _attributes_of(record.get("attribute_ids", record.get("attributes")))
        if not isinstance(found, list):
            raise InputError(
                f"{path}: annotations[{number}]: attributes is {shown(found)}; give a list of names, or of ids in "
                "the file's list of attributes"
            )
        renumbered.append(
            {
                **record,
                "category_id": _look_up(class_ids, record["category_id"], path, number, "category_id"),
                "attribute_ids": [_look_up(attribute_ids, value, path, number, "attributes") for value in found],
            }
        )
    return {
        **tree,
        "annotations": renumbered,
        "categories": [
            {**tree["categories"][place], "id": new} for new, place in enumerate(_order(tree["categories"]))
        ],
        "attribute_categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }


def _attributes_of(value: Any) -> Any:
    """Returns the list of attributes that the field ``attributes`` of an annotation means.

    CVAT writes a dictionary: the attributes of a box are its names whose value is true, and its values that are text.
    Names whose value is false, a number or empty, such as "occluded" and "rotation", are none.
    """
    if not isinstance(value, Mapping):
        return value or []
    return [name if one is True else one for name, one in value.items() if one is True or (one and type(one) is str)]


def is_ordinary(tree: Mapping[str, Any]) -> bool:
    """Returns whether a COCO file is not one that bua wrote."""
    return "attribute_categories" not in tree or [
        category.get("id") if isinstance(category, Mapping) else None for category in tree["categories"]
    ] != list(range(len(tree["categories"])))


def _listed(tree: Mapping[str, Any]) -> list[Any] | None:
    """Returns the file's list of attributes, if it has one."""
    for field in ("attribute_categories", "attributes"):
        if isinstance(tree.get(field), list):
            found: list[Any] = tree[field]
            return found
    return None


def _names_and_positions(listed: list[Any], path: Path) -> tuple[list[str], dict[Any, int]]:
    """Returns the names of listed attributes, and the position of each by its id and by its name."""
    if all(isinstance(name, str) for name in listed):
        names = list(listed)
        positions: dict[Any, int] = dict(enumerate(range(len(names))))
    else:
        ids = _positions(listed, path, "attributes")
        names = [str(listed[place].get("name")) for place in _order(listed)]
        positions = dict(ids)
    return names, positions | {name: number for number, name in enumerate(names)}


def _positions(records: list[Any], path: Path, field: str) -> dict[Any, int]:
    """Returns the position of each record in the order of the ids."""
    for number, record in enumerate(records):
        if (
            not isinstance(record, Mapping)
            or type(record.get("id")) is not int
            or not isinstance(record.get("name"), str)
        ):
            raise InputError(f"{path}: {field}[{number}]: needs an 'id', a whole number, and a 'name'")
    ids = sorted(record["id"] for record in records)
    twice = {one for one, other in itertools.pairwise(ids) if one == other}
    if twice:
        raise InputError(f"{path}: {field}: the id {first_of(sorted(twice))} occurs twice; give each its own")
    return {id: number for number, id in enumerate(ids)}


def _order(records: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted(range(len(records)), key=lambda place: records[place]["id"])


def _look_up(positions: Mapping[Any, int], value: Any, path: Path, number: int, field: str) -> int:
    # To a dictionary, 1.0 and true are 1.
    if type(value) in (int, str) and value in positions:
        return positions[value]
    known = f"known are {first_of(_texts(positions))}" if positions else "the file lists none"
    raise InputError(f"{path}: annotations[{number}]: {field}: {shown(value)} is not known; {known}")


def _texts(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


def _is_crowd(record: Any) -> bool:
    return isinstance(record, Mapping) and bool(record.get("iscrowd"))
