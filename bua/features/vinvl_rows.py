"""One row of VinVL's and Oscar's TSV files; ``bua.features.vinvl`` says what is in it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.features.encoding import decode_array, encode_array
from bua.features.ids import parse_id
from bua.features.tsv import LABELS
from bua.structures import Regions

_FLOAT = np.dtype("<f4")
_SPATIAL = 6
# In bytes; what is longer is no row.
LONGEST_ID = 255
# What a row begins with when bua wrote it, after its id.
_BEGIN = b'{"image_h":'
_SIZE = re.compile(rb'\{"image_h":(\d+),"image_w":(\d+),')


class Names:
    """The names of objects and attributes, and back.

    Args:
        objects, attributes: the names by id, each once; None where they are not known.
    """

    def __init__(self, objects: list[str] | None = None, attributes: list[str] | None = None):
        self.objects, self.attributes = objects, attributes
        self.object_ids = {name: index for index, name in enumerate(objects or ())}
        self.attribute_ids = {name: index for index, name in enumerate(attributes or ())}

    def __bool__(self) -> bool:
        return self.objects is not None or self.attributes is not None

    def __eq__(self, other) -> bool:
        return (self.objects, self.attributes) == (other.objects, other.attributes)

    @classmethod
    def read(cls, path: Path) -> "Names":
        """The names in a file in the layout of VinVL's dictionaries; none where there is no file."""
        if not path.is_file():
            return cls()
        try:
            content = orjson.loads(path.read_bytes())
            lists = [content.get(f"{kind}_to_idx") for kind in ("label", "attribute")]
            return cls(*(None if kept is None else _by_id(kept) for kept in lists))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: no dictionary of names to numbers from 1 ({error}); remove it") from error

    def encode(self) -> bytes:
        """What ``read`` reads."""
        content = {}
        for kind, names in (("label", self.objects), ("attribute", self.attributes)):
            if names is not None:
                content[f"{kind}_to_idx"] = {name: index for index, name in enumerate(names, 1)}
                content[f"idx_to_{kind}"] = {str(index): name for index, name in enumerate(names, 1)}
        return orjson.dumps(content)


def encode_row(regions: Regions, format: str, names: Names | None = None) -> bytes:
    """One image's row with its line end.

    Args:
        format: "vinvl-tsv" or "oscar-tsv".
        names: for the labels in vinvl-tsv.

    Raises:
        InputError: the id cannot stand in a TSV file, or there are no names for the labels.
    """
    image_id = str(regions.image_id)
    key = image_id.encode(errors="surrogateescape")
    if not 0 < len(key) <= LONGEST_ID or any(character in image_id for character in "\t\r\n"):
        raise InputError(
            f"image id {image_id[:40]!r}: empty, longer than {LONGEST_ID} bytes or with a tab or line break; "
            "give another id in a list file"
        )
    content = {"image_h": int(regions.height), "image_w": int(regions.width)}
    content |= _oscar_content(regions) if format == "oscar-tsv" else _vinvl_content(regions, names)
    return key + b"\t" + orjson.dumps(content) + b"\n"


def decode_row(line: bytes, names: Names, sizes: Mapping[str, tuple[int, int]]) -> Regions:
    """The regions in one row of either format.

    Args:
        names: the ids of the labels in VinVL's rows; where they are not known, the regions have no labels.
        sizes: (width, height) by id, for rows without them.

    Raises:
        ValueError: says which field is wrong, or that the size is not known.
    """
    key, *cells = line.rstrip(b"\r\n").split(b"\t")
    text = key.decode(errors="surrogateescape")
    content = _content(cells)
    if content is None:
        raise ValueError("neither VinVL's objects nor Oscar's features; extract this image again")
    width, height = content.get("image_w"), content.get("image_h")
    if width is None or height is None:
        if text not in sizes:
            raise ValueError(f"no size of image {text[:40]!r}; put VinVL's hw.tsv beside the file under its name")
        width, height = sizes[text]
    try:
        width, height = int(width), int(height)
        fields = _vinvl_fields(content, names) if "objects" in content else _oscar_fields(content, width, height)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}; extract this image again") from error
    return Regions(image_id=parse_id(text), width=width, height=height, **fields)


def row_format(line: bytes) -> str | None:
    """Which format a whole row has, or None."""
    content = _content(line.rstrip(b"\r\n").split(b"\t")[1:])
    if content is None:
        return None
    return "vinvl-tsv" if "objects" in content else "oscar-tsv"


def begins_row(line: bytes) -> bool:
    """Whether this may be the beginning of a row that bua wrote."""
    key, _, cell = line.partition(b"\t")
    return len(key) <= LONGEST_ID and b"\n" not in key and (cell.startswith(_BEGIN) or _BEGIN.startswith(cell))


def is_whole(line: bytes) -> bool:
    """Whether all of a row is there: a machine that dies leaves zeros, or what was there before, for the rest."""
    try:
        orjson.loads(line.rpartition(b"\t")[2])
    except ValueError:
        return False
    return b"\0" not in line


def size_of(begin: bytes) -> tuple[int, int] | None:
    """Width and height in the first 80 bytes of what follows the id in a row that bua wrote."""
    match = _SIZE.match(begin)
    return (int(match[2]), int(match[1])) if match else None


def row_sizes(lines: Iterable[bytes]) -> dict[str, tuple[int, int]]:
    """(width, height) by id in the rows of a hw.tsv: JSON of one dictionary, also in a list, or height and width with a
    blank between, as VinVL's readers take them; ValueError names the line that is neither."""
    sizes = {}
    for number, line in enumerate(lines, 1):
        key, _, cell = line.partition(b"\t")
        try:
            if cell.lstrip()[:1] in (b"[", b"{"):
                content = orjson.loads(cell)
                content = content[0] if isinstance(content, list) else content
                width, height = content["width"], content["height"]
            else:
                height, width = cell.split()[:2]
            sizes[key.decode(errors="surrogateescape")] = int(width), int(height)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"line {number}: {line[:40].decode(errors='replace')!r}") from error
    return sizes


def _content(cells: list[bytes]) -> dict | None:
    """What is behind the id, if it is of either format."""
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


def _vinvl_content(regions: Regions, names: Names) -> dict:
    # In the order of the original.
    columns = {"rect": np.asarray(regions.boxes, _FLOAT).tolist(), "bbox_id": list(range(len(regions)))}
    if regions.object_ids is not None:
        columns["class"] = _names_of(regions, "object", names.objects)
        if regions.object_scores is not None:
            columns["conf"] = np.asarray(regions.object_scores, _FLOAT).tolist()
    columns["feature"] = [encode_array(feature, _FLOAT) for feature in regions.features]
    if regions.attribute_ids is not None:
        columns["attributes"] = [[name] for name in _names_of(regions, "attribute", names.attributes)]
        if regions.attribute_scores is not None:
            columns["attr_scores"] = np.asarray(regions.attribute_scores, _FLOAT).reshape(-1, 1).tolist()
    return {"objects": [dict(zip(columns, values)) for values in zip(*columns.values())], "relations": None}


def _names_of(regions: Regions, kind: str, names: list[str] | None) -> list[str]:
    if names is None:
        raise InputError(
            f"image {regions.image_id}: VinVL's rows have {kind}s by name, and the names are not known; "
            f"give the vocabulary, or use another format"
        )
    ids = getattr(regions, f"{kind}_ids")
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(names):
        raise InputError(f"image {regions.image_id}: {kind} {ids.max()} of {len(names)} names; give their vocabulary")
    return [names[index] for index in ids.tolist()]


def _oscar_content(regions: Regions) -> dict:
    boxes, features = np.asarray(regions.boxes, _FLOAT), np.asarray(regions.features, _FLOAT)
    corners = boxes / np.array([regions.width, regions.height] * 2, _FLOAT)
    content = {"num_boxes": len(regions), "boxes": encode_array(boxes, _FLOAT)}
    for field, (attribute, dtype) in LABELS.items():
        labels = getattr(regions, attribute)
        if labels is not None:
            content[field] = encode_array(labels, dtype)
    with_place = np.hstack([features, corners, corners[:, 2:] - corners[:, :2]])
    return content | {"features": encode_array(with_place, _FLOAT)}


def _vinvl_fields(content: dict, names: Names) -> dict[str, np.ndarray]:
    objects = content["objects"]
    count = len(objects)
    features = [decode_array(one["feature"], _FLOAT, (-1,), "feature") for one in objects]
    if len({len(feature) for feature in features}) > 1:
        raise ValueError("feature: of different lengths; extract this image again")
    if any(len(one["rect"]) != 4 for one in objects):
        raise ValueError("rect: not four numbers; extract this image again")
    fields = {
        "boxes": np.array([one["rect"] for one in objects], np.float32).reshape(count, 4),
        "features": np.array(features, np.float32) if count else np.zeros((0, 0), np.float32),
    }
    if names.objects is not None and all("class" in one for one in objects):
        fields["object_ids"] = _ids_of([one["class"] for one in objects], "class", names.object_ids)
        if all("conf" in one for one in objects):
            fields["object_scores"] = np.array([one["conf"] for one in objects], np.float32)
    best = [_best_attribute(one, names) for one in objects]
    if names.attributes is not None and all(best):
        fields["attribute_ids"] = _ids_of([name for name, _ in best], "attributes", names.attribute_ids)
        if all(score is not None for _, score in best):
            fields["attribute_scores"] = np.array([score for _, score in best], np.float32)
    return fields


def _best_attribute(one: dict, names: Names) -> tuple[str, float | None] | None:
    """The name and score of an object's best attribute; VinVL may have none of them, or many."""
    attributes, scores = one.get("attributes") or [], one.get("attr_scores") or []
    if len(scores) != len(attributes):
        return (attributes[0], None) if attributes else None
    # VinVL fills the list up with this name.
    scored = [(score, name) for score, name in zip(scores, attributes) if name != "__no_attribute__"]
    if not scored:
        return None
    score, name = max(scored, key=lambda pair: pair[0])
    return name, score


def _ids_of(values: list[str], field: str, ids: dict[str, int]) -> np.ndarray:
    unknown = [value for value in values if value not in ids]
    if unknown:
        raise ValueError(f"{field}: {unknown[0]!r} is not among the names of the labelmap.json beside the file")
    return np.array([ids[value] for value in values], np.int64)


def _oscar_fields(content: dict, width: int, height: int) -> dict[str, np.ndarray]:
    count = int(content["num_boxes"])
    table = decode_array(content["features"], _FLOAT, (count, -1) if count else (0, _SPATIAL), "features")
    features, corners, extents = np.split(table, [max(table.shape[1] - _SPATIAL, 0), table.shape[1] - 2], axis=1)
    if corners.shape[1] != 4 or not np.allclose(corners[:, 2:] - corners[:, :2], extents, atol=1e-3):
        raise ValueError(f"features: {table.shape[1]} columns, of which the last six are no places of boxes")
    fields = {
        "features": features.copy(),
        "boxes": corners * np.array([width, height] * 2, np.float32),
    }
    if "boxes" in content:
        fields["boxes"] = decode_array(content["boxes"], _FLOAT, (count, 4), "boxes")
    for field, (attribute, dtype) in LABELS.items():
        if field in content:
            fields[attribute] = decode_array(content[field], dtype, (count,), field)
    return fields


def _by_id(numbers: dict[str, int]) -> list[str]:
    names = sorted(numbers, key=numbers.__getitem__)
    if [numbers[name] for name in names] != list(range(1, len(names) + 1)):
        raise ValueError("the numbers are not 1, 2, 3 and so on")
    return names
