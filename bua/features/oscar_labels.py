"""What two readers of Oscar (microsoft/Oscar) find beside its features.

- Captioning (oscar/run_captioning.py) takes the file of labels that its YAML names, here ``<name>.label.tsv``: rows of
  id and JSON, ``[{"class", "rect", "conf"}, ...]``, one for each row of features, in their order.
- Retrieval and pre-training (oscar/run_retrieval.py, oscar/datasets/oscar_tsv.py) have rows of id, number of boxes and
  base64 of float32 [n, d + 6]. In the same folder, ``imageid2idx.json`` has the number of the row by the id, and
  ``predictions.tsv`` the size of the image and VinVL's objects without their features.

Beside both files of labels are the offsets of their rows, ``.lineidx``.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from bua.errors import InputError
from bua.features.encoding import encode_array_as_bytes
from bua.features.ids import parse_id
from bua.features.labels import FLOAT
from bua.features.readers import check_ids
from bua.features.text_rows import append_line, open_for_reading
from bua.features.vinvl_rows import Names, check_key, objects_of, table_with_places
from bua.io.files import whole_file
from bua.structures import Regions

_PREDICTIONS, _ROWS_BY_ID = "predictions.tsv", "imageid2idx.json"


@dataclass(frozen=True)
class Flavour:
    """What one of the readers needs.

    Attributes:
        labels_file: Returns the file of labels beside a file of features.
        label_row: Returns an image's row of labels.
        three_columns: Whether the rows of features have three columns, and there is ``imageid2idx.json``.
    """

    labels_file: Callable[[Path], Path]
    label_row: Callable[[Regions, Names], bytes]
    three_columns: bool


def _captioning_row(regions: Regions, names: Names) -> bytes:
    objects = _objects(regions, names)
    return orjson.dumps([{name: one[name] for name in ("class", "rect", "conf")} for one in objects])


def _retrieval_row(regions: Regions, names: Names) -> bytes:
    check_ids("oscar-retrieval", [parse_id(regions.image_id)])
    sizes = {"image_h": int(regions.height), "image_w": int(regions.width)}
    return orjson.dumps({**sizes, "objects": _objects(regions, names)})


def _objects(regions: Regions, names: Names) -> list[dict[str, object]]:
    for field in ("object_ids", "object_scores"):
        if getattr(regions, field) is None:
            raise InputError(f"image {regions.image_id}: has no {field}, which Oscar needs; use features with labels")
    return objects_of(regions, names)


def _predictions_file(path: Path) -> Path:
    names = (_PREDICTIONS, _ROWS_BY_ID)
    # The offsets of rows are in a file with the suffix .lineidx instead of the file's own.
    if os.path.splitext(path.name)[0] in {os.path.splitext(name)[0] for name in names}:
        raise InputError(
            f"{path}: has the name of a file that Oscar expects beside the features ({' and '.join(names)}); choose "
            "another, such as features.tsv"
        )
    return path.with_name(_PREDICTIONS)


FLAVOURS: Mapping[str, Flavour] = {
    "oscar-captioning": Flavour(
        lambda path: path.with_name(f"{os.path.splitext(path.name)[0]}.label.tsv"), _captioning_row, False
    ),
    "oscar-retrieval": Flavour(_predictions_file, _retrieval_row, True),
}


def three_column_row(regions: Regions) -> bytes:
    """Returns the row of features for retrieval, with its line end."""
    table = encode_array_as_bytes(table_with_places(regions), FLOAT)
    return b"%s\t%d\t%s\n" % (check_key(regions.image_id), len(regions), table)


class LabelRows:
    """Appends rows to a file of labels, each before the row of features that it belongs to, so that no features are
    without labels.

    Args:
        path: The file of labels.
        keys: The ids in the rows of features that exist.
        ours: Whether a writer has begun the features and has not finished them, so that the file of labels is its own
            and may be incomplete.

    Attributes:
        number: The number of rows of features that have labels; later ones are to be deleted.

    Raises:
        InputError: The file belongs to other features.
    """

    def __init__(self, path: Path, keys: Sequence[str], ours: bool):
        self.path = path
        self._offsets = array("q", [0])
        self.number = 0
        size = path.stat().st_size if path.exists() else 0
        if size:
            with open_for_reading(path) as file:
                for line, key in zip(file, keys):
                    if not _is_row_of(key, line):
                        break
                    self.number += 1
                    self._offsets.append(self._offsets[-1] + len(line))
        if not ours and (self.number < len(keys) or (size and not keys)):
            raise InputError(f"{path}: does not have the labels of these features; choose an output in another folder")
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        os.ftruncate(self._file, self._offsets[-1])

    def append(self, image_id: int | str, row: bytes) -> None:
        line = b"%s\t%s\n" % (check_key(image_id), row)
        os.ftruncate(self._file, self._offsets[-1])  # a row whose features could not be written
        append_line(self._file, line)
        self._offsets.append(self._offsets[-1] + len(line))

    def drop_last(self) -> None:
        """Forgets the last row, whose features could not be written."""
        self._offsets.pop()

    def sync(self) -> None:
        os.fsync(self._file)

    def finish(self) -> None:
        """Syncs the rows, and writes their offsets."""
        os.ftruncate(self._file, self._offsets[-1])
        self.sync()
        with whole_file(self.path.with_suffix(".lineidx"), durable=True, locked=True) as file:
            file.writelines(b"%d\n" % offset for offset in self._offsets[:-1])

    def close(self) -> None:
        os.close(self._file)


def write_rows_by_id(path: Path, keys: Iterator[str]) -> None:
    """Writes ``imageid2idx.json`` for a file of features.

    Args:
        path: The file of features.
        keys: The id in each row.
    """
    rows = {key: row for row, key in enumerate(keys)}
    with whole_file(path.with_name(_ROWS_BY_ID), durable=True, locked=True) as file:
        file.write(json.dumps(rows).encode())


def _is_row_of(key: str, line: bytes) -> bool:
    start, _, content = line.partition(b"\t")
    if start != key.encode(errors="surrogateescape") or not line.endswith(b"\n"):
        return False
    try:
        orjson.loads(content)
    except ValueError:
        return False
    return True
