"""Encodes and decodes the rows of VinVL's and Oscar's TSV files, which ``bua.features.vinvl`` describes."""

import base64
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bua.errors import InputError, shown
from bua.features.checks import check_size_is_known
from bua.features.encoding import decode_array, encode_array
from bua.features.ids import parse_id
from bua.features.labels import FLOAT, LXMERT_LABELS, labels_of
from bua.regular_files import read_regular
from bua.structures import Regions

# Number of columns for the place of a box in Oscar's features.
_PLACE_COLUMNS = 6
# Longest id in bytes. A line with a longer first column is not a row.
LONGEST_ID = 255
# The start of the JSON in rows that bua wrote.
_BEGIN = b'{"image_h":'
_SIZE = re.compile(rb'\{"image_h":(\d+),"image_w":(\d+),')


class Names:
    """The names of objects and attributes by their ids, and the ids by their names.

    Args:
        objects, attributes: The names in the order of their ids, without duplicates. None if they are unknown.
    """

    def __init__(self, objects: list[str] | None = None, attributes: list[str] | None = None):
        self.objects, self.attributes = objects, attributes
        self.object_ids = {name: index for index, name in enumerate(objects or ())}
        self.attribute_ids = {name: index for index, name in enumerate(attributes or ())}

    def __bool__(self) -> bool:
        """Whether any names are known."""
        return self.objects is not None or self.attributes is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and (self.objects, self.attributes) == (other.objects, other.attributes)

    @classmethod
    def read(cls, path: Path) -> "Names":
        """Reads the names from a file in the layout of VinVL's dictionaries; there are none if there is no file."""
        if not path.is_file():
            return cls()
        try:
            content = orjson.loads(read_regular(path))
            lists = [content.get(f"{kind}_to_idx") for kind in ("label", "attribute")]
            return cls(*(None if numbers is None else _by_id(numbers) for numbers in lists))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path}: is not a dictionary from names to numbers from 1 on ({error}); remove it"
            ) from error

    def encode(self) -> bytes:
        """Returns the content of a file for ``read``."""
        content: dict[str, dict[str, int] | dict[str, str]] = {}
        for kind, names in (("label", self.objects), ("attribute", self.attributes)):
            if names is not None:
                content[f"{kind}_to_idx"] = {name: index for index, name in enumerate(names, 1)}
                content[f"idx_to_{kind}"] = {str(index): name for index, name in enumerate(names, 1)}
        return orjson.dumps(content)


def encode_row(regions: Regions, format: str, names: Names) -> bytes:
    """Returns the row of one image with its line end.

    Args:
        format: "vinvl-tsv" or "oscar-tsv".
        names: Names of the labels, for vinvl-tsv.

    Raises:
        InputError: The id is not possible in a TSV file, or the names of the labels are unknown.
    """
    key = check_key(regions.image_id)
    content: dict[str, object] = {"image_h": int(regions.height), "image_w": int(regions.width)}
    content |= _oscar_content(regions) if format == "oscar-tsv" else _vinvl_content(regions, names)
    return key + b"\t" + orjson.dumps(content) + b"\n"


def check_key(image_id: int | str) -> bytes:
    """Returns the first column of an image's row.

    Raises:
        InputError: The id is not possible in a TSV file.
    """
    text = str(image_id)
    key = text.encode(errors="surrogateescape")
    if not 0 < len(key) <= LONGEST_ID or any(character in text for character in "\t\r\n"):
        raise InputError(
            f"image id {text[:40]!r}: is empty, longer than {LONGEST_ID} bytes, or has a tab or line break; "
            "give another id in a list file"
        )
    return key


def decode_row(line: bytes, names: Names, sizes: Mapping[str, tuple[int, int]]) -> Regions:
    """Returns the regions in one row of either format.

    Args:
        names: Names of the labels in VinVL's rows. If they are unknown, the regions have no labels.
        sizes: (width, height) of the images by id, for rows that do not contain them.

    Raises:
        ValueError: A field cannot be decoded (the message names it), or the size of the image is unknown.
    """
    key, *cells = line.rstrip(b"\r\n").split(b"\t")
    text = key.decode(errors="surrogateescape")
    content = _content(cells)
    if content is None:
        raise ValueError("has neither VinVL's objects nor Oscar's features; extract this image again")
    width, height = content.get("image_w"), content.get("image_h")
    if width is None or height is None:
        if text not in sizes:
            raise ValueError(
                f"the size of image {text[:40]!r} is unknown; put VinVL's hw.tsv next to this file, under its name"
            )
        width, height = sizes[text]
    try:
        width, height = int(width), int(height)
        fields = _vinvl_fields(content, names) if "objects" in content else _oscar_fields(content, width, height)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}; extract this image again") from error
    return Regions(image_id=parse_id(text), width=width, height=height, **fields)


def row_format(line: bytes) -> str | None:
    """Returns the format of a complete row, or None if it has neither."""
    content = _content(line.rstrip(b"\r\n").split(b"\t")[1:])
    if content is None:
        return None
    return "vinvl-tsv" if "objects" in content else "oscar-tsv"


def begins_row(line: bytes) -> bool:
    """Whether a line may be the beginning of a row that bua wrote."""
    key, _, cell = line.partition(b"\t")
    return len(key) <= LONGEST_ID and b"\n" not in key and (cell.startswith(_BEGIN) or _BEGIN.startswith(cell))


def is_whole(line: bytes) -> bool:
    """Whether a row is complete. After a crash, a part of it may be zeros, or what was on the disk before."""
    cell = line.rpartition(b"\t")[2]
    try:
        if line.count(b"\t") == 2:
            base64.b64decode(cell.rstrip(b"\r\n"), validate=True)
        else:
            orjson.loads(cell)
    except ValueError:
        return False
    return b"\0" not in line


def size_of(begin: bytes) -> tuple[int, int] | None:
    """Returns width and height from the 80 bytes after the id of a row, or None if bua did not write the row."""
    match = _SIZE.match(begin)
    return (int(match[2]), int(match[1])) if match else None


def row_sizes(lines: Iterable[bytes]) -> dict[str, tuple[int, int]]:
    """Returns (width, height) by id from the rows of a hw.tsv, or of Oscar's predictions.tsv.

    A row has JSON of one dictionary, which may be in a list, with "width" and "height", or, in predictions.tsv, with
    "image_w" and "image_h"; or it has height and width separated by a blank, as in VinVL's readers.

    Raises:
        ValueError: A line has neither form. The message names it.
    """
    sizes = {}
    for number, line in enumerate(lines, 1):
        key, _, cell = line.partition(b"\t")
        try:
            if cell.lstrip()[:1] in (b"[", b"{"):
                content = orjson.loads(cell)
                content = content[0] if isinstance(content, list) else content
                names = ("width", "height") if "width" in content else ("image_w", "image_h")
                width, height = (content[name] for name in names)
            else:
                height, width = cell.split()[:2]
            sizes[key.decode(errors="surrogateescape")] = int(width), int(height)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"line {number}: {line[:40].decode(errors='replace')!r}") from error
    return sizes


def _content(cells: list[bytes]) -> dict[str, Any] | None:
    """Returns the content of a row's cells after the id, or None if they have neither format."""
    if len(cells) == 2 and cells[0].isdigit():
        return {"num_boxes": int(cells[0]), "features": cells[1]}
    if len(cells) != 1:
        return None
    try:
        content = orjson.loads(cells[0])
    except ValueError:
        return None
    known = isinstance(content, dict) and ("objects" in content or {"num_boxes", "features"} <= content.keys())
    return content if known else None


def objects_of(regions: Regions, names: Names, with_features: bool = False) -> list[dict[str, object]]:
    """Returns VinVL's objects, one a region.

    Args:
        names: Names of the labels.
        with_features: Whether each object has its feature.

    Raises:
        InputError: The names of the labels are unknown.
    """
    # The keys are in the order of the original.
    columns: dict[str, list[Any]] = {
        "rect": np.asarray(regions.boxes, FLOAT).tolist(),
        "bbox_id": list(range(len(regions))),
    }
    if regions.object_ids is not None:
        columns["class"] = _names_of(regions, "object", names.objects)
        if regions.object_scores is not None:
            columns["conf"] = np.asarray(regions.object_scores, FLOAT).tolist()
    if with_features:
        columns["feature"] = [encode_array(feature, FLOAT) for feature in regions.features]
    if regions.attribute_ids is not None:
        columns["attributes"] = [[name] for name in _names_of(regions, "attribute", names.attributes)]
        if regions.attribute_scores is not None:
            columns["attr_scores"] = np.asarray(regions.attribute_scores, FLOAT).reshape(-1, 1).tolist()
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def table_with_places(regions: Regions) -> np.ndarray:
    """Returns Oscar's features [n, d + 6] float32: those of the regions, and the places of their boxes."""
    check_size_is_known(regions, "oscar-tsv")
    corners = np.asarray(regions.boxes, FLOAT) / np.array([regions.width, regions.height] * 2, FLOAT)
    return np.hstack([np.asarray(regions.features, FLOAT), corners, corners[:, 2:] - corners[:, :2]])


def _vinvl_content(regions: Regions, names: Names) -> dict[str, object]:
    return {"objects": objects_of(regions, names, with_features=True), "relations": None}


def _names_of(regions: Regions, kind: str, names: list[str] | None) -> list[str]:
    if names is None:
        raise InputError(
            f"image {regions.image_id}: VinVL's rows have the names of {kind}s, which are unknown; "
            "give the vocabulary (--vocabulary), or use another format"
        )
    ids = getattr(regions, f"{kind}_ids")
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(names):
        raise InputError(
            f"image {regions.image_id}: {kind} {ids.max()} has no name: the vocabulary has {len(names)} names; "
            "give the vocabulary of the detector"
        )
    return [names[index] for index in ids.tolist()]


def _oscar_content(regions: Regions) -> dict[str, object]:
    content: dict[str, object] = {"num_boxes": len(regions), "boxes": encode_array(regions.boxes, FLOAT)}
    content |= {name: encode_array(labels, dtype) for name, labels, dtype in labels_of(regions)}
    return content | {"features": encode_array(table_with_places(regions), FLOAT)}


def _vinvl_fields(content: dict[str, Any], names: Names) -> dict[str, np.ndarray]:
    objects = content["objects"]
    count = len(objects)
    if not all("feature" in one for one in objects):
        raise ValueError(
            "feature: is missing; if this is a file of labels, such as Oscar's predictions.tsv, name the "
            "file of features"
        )
    features = [decode_array(one["feature"], FLOAT, (-1,), "feature") for one in objects]
    if len({len(feature) for feature in features}) > 1:
        raise ValueError("feature: the regions have different feature dimensions; extract this image again")
    if any(len(one["rect"]) != 4 for one in objects):
        raise ValueError("rect: does not have four numbers; extract this image again")
    fields = {
        "boxes": np.array([one["rect"] for one in objects], np.float32).reshape(count, 4),
        "features": np.array(features, np.float32) if count else np.zeros((0, 0), np.float32),
    }
    if names.objects is not None and all("class" in one for one in objects):
        fields["object_ids"] = _ids_of([one["class"] for one in objects], "class", names.object_ids)
        if all("conf" in one for one in objects):
            fields["object_scores"] = np.array([one["conf"] for one in objects], np.float32)
    best = [_best_attribute(one) for one in objects]
    found = [attribute for attribute in best if attribute is not None]
    if names.attributes is not None and len(found) == count:
        fields["attribute_ids"] = _ids_of([name for name, _ in found], "attributes", names.attribute_ids)
        if all(score is not None for _, score in found):
            fields["attribute_scores"] = np.array([score for _, score in found], np.float32)
    return fields


def _best_attribute(one: dict[str, Any]) -> tuple[str, float | None] | None:
    """Returns the name and score of an object's best attribute. An object of VinVL may have none, or many."""
    attributes, scores = one.get("attributes") or [], one.get("attr_scores") or []
    if len(scores) != len(attributes):
        return (attributes[0], None) if attributes else None
    # VinVL pads the list with this name.
    scored = [(score, name) for score, name in zip(scores, attributes) if name != "__no_attribute__"]
    if not scored:
        return None
    score, name = max(scored, key=lambda pair: pair[0])
    return name, score


def _ids_of(values: list[str], field: str, ids: dict[str, int]) -> np.ndarray:
    unknown = [value for value in values if value not in ids]
    if unknown:
        raise ValueError(f"{field}: {unknown[0]!r} is not among the names in the labelmap.json next to the file")
    return np.array([ids[value] for value in values], np.int64)


def _oscar_fields(content: dict[str, Any], width: int, height: int) -> dict[str, np.ndarray]:
    count = int(content["num_boxes"])
    table = decode_array(content["features"], FLOAT, (count, -1) if count else (0, _PLACE_COLUMNS), "features")
    features, corners, extents = np.split(table, [max(table.shape[1] - _PLACE_COLUMNS, 0), table.shape[1] - 2], axis=1)
    if corners.shape[1] != 4 or not np.allclose(corners[:, 2:] - corners[:, :2], extents, atol=1e-3):
        raise ValueError(f"features: the last six of {table.shape[1]} columns are not the places of boxes")
    fields = {
        "features": features.copy(),
        "boxes": corners * np.array([width, height] * 2, np.float32),
    }
    if "boxes" in content:
        fields["boxes"] = decode_array(content["boxes"], FLOAT, (count, 4), "boxes")
    for field, (attribute, dtype) in LXMERT_LABELS.items():
        if field in content:
            fields[attribute] = decode_array(content[field], dtype, (count,), field)
    return fields


def _by_id(numbers: dict[str, int]) -> list[str]:
    if not isinstance(numbers, dict):
        raise ValueError(f"{shown(numbers)} is not one")
    names = sorted(numbers, key=numbers.__getitem__)
    if [numbers[name] for name in names] != list(range(1, len(names) + 1)):
        raise ValueError("the numbers are not 1, 2, 3 and so on")
    return names
