"""Features as a folder with two npy files an image, as MMF reads them (mmf/datasets/databases/readers).

``<id>.npy`` has the features [n, d] float32; ``<id>_info.npy`` a pickled dictionary with ``bbox`` [n, 4] float32,
``num_boxes``, ``image_width``, ``image_height`` and, where the labels are known, ``objects`` [n] int64 from 0, without
background.

MMF's own extraction (tools/scripts/features/extract_features_vmb.py) has besides ``cls_prob`` [n, classes], the
probabilities of all classes, which bua does not keep: MMF's UNITER trains on them and cannot on these files, its other
models do without. Of a ``cls_prob`` that is there the probability of ``objects`` is read. What is known besides is kept
under the names of LXMERT's TSV: ``objects_conf``, ``attrs_conf`` float32 and ``attrs_id`` int64, each [n].
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.features.ids import file_stem, id_of_file_stem, parse_id
from bua.features.tsv import LABELS
from bua.io import safe_pickle
from bua.io.files import sync_folder, whole_file
from bua.structures import Regions

# LXMERT's names of the labels, but MMF's for the objects.
_LABELS = {"objects" if field == "objects_id" else field: label for field, label in LABELS.items()}
_INFO = "_info"
_LONGEST_NAME = 225


class MmfFeatures(Mapping[int | str, Regions]):
    """The features in a folder of MMF's, bua's or its own; ids are the file names (see ``bua.features.ids``).

    Raises:
        InputError: when opened: no such folder; when an image is read: names its file and what is wrong.
    """

    format = "mmf"

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._stems = _list(self.path)

    def __getitem__(self, image_id: int | str) -> Regions:
        image_id = parse_id(image_id)
        stem = self._stems[image_id]
        return _read(self.path / f"{stem}.npy", self.path / f"{stem}{_INFO}.npy", image_id)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._stems)

    def __len__(self) -> int:
        return len(self._stems)

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self._stems


class MmfWriter:
    """Writes npy files into a folder; an image is there when the second of its files, the features, is.

    Both are on the disk before they take their names, so that none is found cut after a machine died.

    Attributes:
        done: the ids in the folder.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; the mmf format needs a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        if not is_mmf(self.path) and any(not entry.name.endswith(".tmp") for entry in os.scandir(self.path)):
            raise InputError(f"{self.path}: holds something else than MMF's features; choose another output")
        self.done: set[int | str] = set(_list(self.path))

    def append(self, regions: Regions) -> None:
        """Writes one image's files.

        Raises:
            InputError: the id is empty or longer than a file name may be.
        """
        stem = _stem(regions.image_id)
        if not stem or len(os.fsencode(stem)) > _LONGEST_NAME:
            raise InputError(f"image id {str(regions.image_id)[:40]!r}: empty or too long for the name of a file")
        info = {
            "bbox": np.asarray(regions.boxes, np.float32),
            "num_boxes": len(regions),
            "image_width": regions.width,
            "image_height": regions.height,
        }
        for key, (attribute, dtype) in _LABELS.items():
            labels = getattr(regions, attribute)
            if labels is not None:
                info[key] = np.asarray(labels, dtype)
        with whole_file(self.path / f"{stem}{_INFO}.npy", durable=True) as file:
            _write_object(file, info)
        with whole_file(self.path / f"{stem}.npy", durable=True) as file:
            np.save(file, np.ascontiguousarray(regions.features, np.float32))
        self.done.add(parse_id(regions.image_id))

    def sync(self) -> None:
        """Returns when the names of all files so far are on the disk; what is in them is already."""
        sync_folder(self.path)

    def finish(self) -> None:
        """There is nothing to add to the last image."""
        self.sync()

    def close(self) -> None:
        """Nothing stays open between files."""


def is_mmf(folder: Path) -> bool:
    """Whether a folder holds the files of at least one image."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(f"{_INFO}.npy") for entry in entries)


def _stem(image_id: int | str) -> str:
    stem = file_stem(image_id)
    # The file of "x_info" would be that of what is known of "x".
    return stem.removesuffix(_INFO) + "%5Finfo" if stem.endswith(_INFO) else stem


def _list(folder: Path) -> dict[int | str, str]:
    try:
        stems = {entry.name.removesuffix(".npy") for entry in os.scandir(folder) if entry.name.endswith(".npy")}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return {id_of_file_stem(stem): stem for stem in sorted(stems) if stem + _INFO in stems}


def _read(features_path: Path, info_path: Path, image_id: int | str) -> Regions:
    try:
        features = np.load(features_path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{features_path}: cannot be read as npy ({error}); extract this image again") from error
    if features.ndim != 2:
        raise InputError(f"{features_path}: features are {features.shape}; need (n, d)")
    try:
        return _regions(image_id, features, _read_object(info_path))
    except KeyError as error:
        raise InputError(f"{info_path}: {error.args[0]}: missing; extract this image again") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{info_path}: {error}; extract this image again") from error


def _regions(image_id: int | str, features: np.ndarray, info: dict) -> Regions:
    boxes, count = np.asarray(info["bbox"], np.float32), len(features)
    if boxes.shape != (count, 4):
        raise ValueError(f"bbox is {boxes.shape} and the features are {features.shape}; need (n, 4) and (n, d)")
    labels = {}
    for key, (attribute, dtype) in _LABELS.items():
        if key in info:
            labels[attribute] = np.asarray(info[key], dtype)
            if labels[attribute].shape != (count,):
                raise ValueError(f"{key} is {labels[attribute].shape}; need ({count},)")
    if "cls_prob" in info and "object_ids" in labels and "object_scores" not in labels:
        probabilities, ids = np.asarray(info["cls_prob"], np.float32), labels["object_ids"]
        if probabilities.ndim != 2 or len(probabilities) != count or (count and ids.max() >= probabilities.shape[1]):
            raise ValueError(f"cls_prob is {probabilities.shape}; need ({count}, classes)")
        labels["object_scores"] = probabilities[np.arange(count), ids]
    return Regions(
        image_id=image_id,
        width=int(info["image_width"]),
        height=int(info["image_height"]),
        boxes=boxes,
        features=np.asarray(features, np.float32),
        **labels,
    )


def _write_object(file, content: dict) -> None:
    """What np.save writes for a dictionary, but that numpy 1 reads it too."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(safe_pickle.dumps(np.array(content, dtype=object)))


def _read_object(path: Path) -> dict:
    """What np.load(path, allow_pickle=True).item() gives, without running what the pickle says."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            raise ValueError(f"holds numbers ({dtype}) instead of a dictionary")
        array = safe_pickle.loads(file.read())
    content = array.item() if isinstance(array, np.ndarray) and array.size == 1 else None
    if not isinstance(content, dict):
        raise ValueError("holds no dictionary")
    return content
