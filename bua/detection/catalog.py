"""Finds a data set's annotation file and images by the data set's name."""

import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bua.config import FILE_FIELDS
from bua.detection.annotations import DetectionDataset, read_coco
from bua.detection.coco_files import attribute_names
from bua.errors import InputError
from bua.io.files import file_version

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


def check_prepared(names: Iterable[str], files: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Checks, without reading them, that data sets exist; arguments and errors are those of ``get_dataset``.

    A run on many devices calls it before it starts their processes.
    """
    for name in names:
        _locate(name, files)


def get_dataset(name: str, files: Mapping[str, Mapping[str, str]] | None = None) -> DetectionDataset:
    """Reads a data set.

    Args:
        name: One of ``dataset_names()`` or of ``files``, or the path of a COCO file beside whose images it lies.
        files: The user's own data sets by name, as in ``DATASETS.FILES`` of a configuration.

    Raises:
        InputError: No data set has this name, or the data set is not prepared, or its annotation file is damaged.
    """
    annotation_file, folder = _locate(name, files)
    attributes = _attributes_of_files(files) if files and name in files else None
    own_path = name.endswith(".json") and not (files and name in files)
    return DetectionDataset(annotation_file, folder, None if own_path else name, attributes)


def _locate(name: str, files: Mapping[str, Mapping[str, str]] | None) -> tuple[Path, Path]:
    """Returns the annotation file and the folder of the images of a data set."""
    if files and name in files:
        missing = [field for field in FILE_FIELDS if field not in files[name]]
        if missing:
            raise InputError(
                f"DATASETS.FILES.{name}: has no {missing[0]}; give the COCO file as json, the folder as images"
            )
        annotation_file, folder = Path(files[name]["json"]), Path(files[name]["images"])
        if not os.path.isdir(folder):
            raise InputError(
                f"DATASETS.FILES.{name}: images is {folder}, which is not a folder; give that of the images"
            )
    elif name.endswith(".json"):
        annotation_file, folder = Path(name), Path(name).parent
    else:
        if name not in _locations:
            close = difflib.get_close_matches(name, [*(files or ()), *_locations], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            names = ", ".join([*(files or ()), *_locations])
            raise InputError(f"data set {name!r}: there is no such name; {hint}the names are {names}")
        folder, annotation_file = (datasets_root() / path for path in _locations[name])
        if not os.path.isfile(annotation_file):
            raise InputError(f"{annotation_file}: data set {name} is not prepared; {_how_to_prepare(name, folder)}")
    if not os.path.isfile(annotation_file):
        raise InputError(f"{annotation_file}: this annotation file does not exist")
    return annotation_file, folder


def _attributes_of_files(files: Mapping[str, Mapping[str, str]]) -> list[str] | None:
    """Returns the attributes of all of the user's data sets, so that those of one that is evaluated have the ids of the
    one that was trained on; None if a file lists its attributes."""
    # A file that is missing belongs to a data set that is not used: otherwise ``_locate`` has reported it.
    paths = [path for one in files.values() if "json" in one and os.path.isfile(path := Path(one["json"]))]
    found = [_attributes_of_file(path, file_version(path)) for path in paths]
    return None if None in found else sorted({name for one in found for name in one or ()})


@functools.lru_cache
def _attributes_of_file(path: Path, version: tuple[int, ...]) -> list[str] | None:
    """Reads each file once as long as it does not change."""
    return attribute_names(read_coco(path))


def vocabulary_folder(name: str) -> Path:
    """Returns the folder with the ``objects_vocab.txt`` and ``attributes_vocab.txt`` of the data set of this name."""
    return datasets_root() / _locations.get(name, (name, ""))[0] / "vocab"


def _how_to_prepare(name: str, folder: Path) -> str:
    kind = name.rpartition("_")[0]
    if kind not in PREPARABLE:
        return "put the file there, or set DETECTRON2_DATASETS to the folder that holds it"
    command = f"bua prepare-visual-genome --root {folder} --name {kind}"
    first = f"bua make-shapes --output {folder}, then " if kind == "shapes" else ""
    return f"run {first}{command} (or set DETECTRON2_DATASETS to the folder that holds it)"
