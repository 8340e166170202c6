"""Finds a data set's annotation file and images by the data set's name."""

import difflib
import os
from pathlib import Path

from bua.detection.annotations import DetectionDataset
from bua.errors import InputError

# Data sets for which this repository has a preparation script.
PREPARABLE = ("visual_genome", "shapes")
# Name -> (folder of the images, annotation file), both relative to the root.
_locations = {
    f"{folder}_{split}": (folder, f"{folder}/annotations/{folder}_{split}.json")
    for folder in PREPARABLE
    for split in ("train", "val", "test")
}


def datasets_root() -> Path:
    """Returns the folder of all data sets: the environment variable DETECTRON2_DATASETS, by default ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def dataset_names() -> list[str]:
    """Returns the names that ``get_dataset`` accepts."""
    return list(_locations)


def register_dataset(name: str, folder: str | Path, annotation_file: str | Path) -> None:
    """Registers another data set, so that it can be named in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Args:
        name: A name that is not in use yet.
        folder: Folder that the file names in the annotation file are relative to.
        annotation_file: File in the format of ``bua.detection.annotations``. Relative paths, also of ``folder``, are
            relative to ``datasets_root()``.

    Raises:
        InputError: The name is in use already.
    """
    if name in _locations:
        raise InputError(f"data set {name!r}: the name is in use already; choose another name")
    _locations[name] = (os.fspath(folder), os.fspath(annotation_file))


def get_dataset(name: str) -> DetectionDataset:
    """Reads a data set.

    Raises:
        InputError: No data set has this name, or the data set is not prepared, or its annotation file is damaged.
    """
    if name not in _locations:
        close = difflib.get_close_matches(name, _locations, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"data set {name!r}: there is no such name; {hint}the names are {', '.join(_locations)}")
    folder, annotation_file = (datasets_root() / path for path in _locations[name])
    if not annotation_file.is_file():
        raise InputError(f"{annotation_file}: data set {name} is not prepared; {_how_to_prepare(name, folder)}")
    return DetectionDataset(annotation_file, folder, name)


def vocabulary_folder(name: str) -> Path:
    """Returns the folder with the ``objects_vocab.txt`` and ``attributes_vocab.txt`` of the data set of this name."""
    return datasets_root() / _locations.get(name, (name, ""))[0] / "vocab"


def _how_to_prepare(name: str, folder: Path) -> str:
    kind = name.rpartition("_")[0]
    if kind not in PREPARABLE:
        return "put the file there, or set DETECTRON2_DATASETS to the folder that holds it"
    command = f"python datasets/prepare_visual_genome.py --root {folder} --name {kind}"
    first = f"python datasets/make_shapes.py --output {folder}, then " if kind == "shapes" else ""
    return f"run {first}{command} (or set DETECTRON2_DATASETS to the folder that holds it)"
