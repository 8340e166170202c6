"""Data sets by name: where their annotation file and images are."""

import difflib
import os
from pathlib import Path

from bua.detection.annotations import DetectionDataset
from bua.errors import InputError

PREPARED = ("visual_genome", "shapes")
# Name -> (folder of the images, annotation file), both relative to the root.
_places = {
    f"{folder}_{split}": (folder, f"{folder}/annotations/{folder}_{split}.json")
    for folder in PREPARED
    for split in ("train", "val", "test")
}


def datasets_root() -> Path:
    """The folder of all data sets: the environment variable DETECTRON2_DATASETS, by default ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def dataset_names() -> list[str]:
    """The names that ``get_dataset`` knows."""
    return list(_places)


def register_dataset(name: str, folder: str | Path, annotation_file: str | Path) -> None:
    """Gives a data set of one's own a name.

    Args:
        name: a new one.
        folder: what the file names in the annotation file are relative to.
        annotation_file: in the format of ``bua.detection.annotations``. Paths that are not absolute are beneath
            ``datasets_root()``.

    Raises:
        InputError: the name is taken.
    """
    if name in _places:
        raise InputError(f"data set {name!r}: the name is taken; choose another")
    _places[name] = (os.fspath(folder), os.fspath(annotation_file))


def get_dataset(name: str) -> DetectionDataset:
    """Reads a data set.

    Raises:
        InputError: no such name, or the data set is not prepared, or its file is damaged.
    """
    if name not in _places:
        close = difflib.get_close_matches(name, _places, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"data set {name!r}: no such name; {hint}known: {', '.join(_places)}")
    folder, annotation_file = (datasets_root() / place for place in _places[name])
    if not annotation_file.is_file():
        raise InputError(f"{annotation_file}: data set {name} is not prepared; {_how_to_prepare(name, folder)}")
    return DetectionDataset(annotation_file, folder, name)


def vocabulary_folder(name: str) -> Path:
    """Where the ``objects_vocab.txt`` and ``attributes_vocab.txt`` of a data set of this name are kept."""
    return datasets_root() / _places.get(name, (name, ""))[0] / "vocab"


def _how_to_prepare(name: str, folder: Path) -> str:
    kind = name.rpartition("_")[0]
    if kind not in PREPARED:
        return "put the file there, or set DETECTRON2_DATASETS"
    command = f"python datasets/prepare_visual_genome.py --root {folder} --name {kind}"
    first = f"python datasets/make_shapes.py --output {folder}, then " if kind == "shapes" else ""
    return f"run {first}{command} (or set DETECTRON2_DATASETS to where it is)"
