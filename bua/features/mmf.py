"""Reads and writes features as a folder with two npy files per image (mmf/datasets/databases/readers of MMF).

``<id>.npy`` has the features [n, d] float32. ``<id>_info.npy`` has a pickled dictionary with ``bbox`` [n, 4] float32,
``num_boxes``, ``image_width``, ``image_height`` and, if the labels are known, ``objects`` [n] int64, counted from 0
without background.

MMF's own extraction (tools/scripts/features/extract_features_vmb.py) also writes ``cls_prob`` [n, classes], the
probabilities of all classes, which bua does not store. MMF's UNITER needs them for training and cannot use these files;
MMF's other models do not need them. If a file has ``cls_prob``, the probabilities of ``objects`` are read from it. bua
adds the other labels under the names of LXMERT's TSV: ``objects_conf``, ``attrs_conf`` float32 and ``attrs_id`` int64,
each [n].
"""

import os
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bua.errors import InputError, make_folder
from bua.features.checks import check_regions
from bua.features.ids import file_stem, id_of_file_stem, parse_id
from bua.features.indexed import IndexedFeatures
from bua.features.labels import LXMERT_LABELS, labels_of
from bua.features.npy import read_array, read_header
from bua.io import safe_pickle
from bua.io.files import check_in_place, move_file, sync_folder, whole_file
from bua.regular_files import open_regular
from bua.structures import Regions

# LXMERT's names of the labels, except for the objects, for which MMF has another name.
_LABELS = {"objects" if name == "objects_id" else name: label for name, label in LXMERT_LABELS.items()}
_INFO = "_info"
_LONGEST_NAME = 225


class MmfFeatures(IndexedFeatures[str]):
    """The features in a folder of MMF or bua. The ids are the file names (see ``bua.features.ids``).

    Raises:
        InputError: When it is opened: there is no such folder. When an image is read: its files cannot be decoded; the
            message names the file.
    """

    format = "mmf"

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._places = _list_stems(self.path)

    def _read(self, image_id: int | str, place: str) -> Regions:
        return _read_files(self.path / f"{place}.npy", self.path / f"{place}{_INFO}.npy", image_id)


class MmfWriter:
    """Writes npy files into a folder. The features of an image are written last, so that it exists if they do.

    Both files are synced to the disk before they get their names, so that there are no truncated files after a crash.

    Attributes:
        done: Ids of the images in the folder.

    Raises:
        InputError: The path is a file, or a folder that holds something else.
    """

    def __init__(self, folder: str | Path):
        self.path = make_folder(folder)
        self._folder = os.open(self.path, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._folder)
        if not is_mmf(self.path) and any(not entry.name.endswith(".tmp") for entry in os.scandir(self.path)):
            raise InputError(f"{self.path}: holds something other than MMF's features; choose another output")
        self.done: set[int | str] = set(_list_stems(self.path))

    def append(self, regions: Regions) -> None:
        """Writes one image's files.

        Raises:
            InputError: The id is empty, or too long for a file name, or a number is not finite.
        """
        check_regions(regions)
        stem = _stem(regions.image_id)
        if not stem or len(os.fsencode(stem)) > _LONGEST_NAME:
            raise InputError(
                f"image id {str(regions.image_id)[:40]!r}: is empty or too long for a file name; change it"
            )
        info: dict[str, object] = {
            "bbox": np.asarray(regions.boxes, np.float32),
            "num_boxes": len(regions),
            "image_width": regions.width,
            "image_height": regions.height,
        }
        info |= {name: np.asarray(labels, dtype) for name, labels, dtype in labels_of(regions, _LABELS)}
        with whole_file(self.path / f"{stem}{_INFO}.npy", durable=True) as file:
            _write_object(file, info)
        with whole_file(self.path / f"{stem}.npy", durable=True) as file:
            np.save(file, np.ascontiguousarray(regions.features, np.float32))
        self.done.add(parse_id(regions.image_id))

    def merge(self, part: Path) -> None:
        """Moves the files of another folder here, except those of images in ``done``."""
        for image_id, stem in _list_stems(part).items():
            if image_id not in self.done:
                # The features come last, as in ``append``.
                for name in (f"{stem}{_INFO}.npy", f"{stem}.npy"):
                    move_file(part / name, self.path / name)
                self.done.add(image_id)
        sync_folder(self.path)

    def sync(self) -> None:
        """Syncs the names of all files so far to the disk. Their contents have been synced before."""
        check_in_place(self.path, self._folder)
        sync_folder(self.path)

    def finish(self) -> None:
        """Syncs. The format has no other files."""
        self.sync()

    def close(self) -> None:
        """Closes the folder."""
        self._release()


def is_mmf(folder: Path) -> bool:
    """Whether a folder holds the files of at least one image."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(f"{_INFO}.npy") for entry in entries)


def _stem(image_id: int | str) -> str:
    stem = file_stem(image_id)
    # Otherwise the features of "x_info" and the information about "x" would have the same file name.
    return stem.removesuffix(_INFO) + "%5Finfo" if stem.endswith(_INFO) else stem


def _list_stems(folder: Path) -> dict[int | str, str]:
    try:
        stems = {entry.name.removesuffix(".npy") for entry in os.scandir(folder) if entry.name.endswith(".npy")}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return {id_of_file_stem(stem): stem for stem in sorted(stems) if stem + _INFO in stems}


def _read_files(features_path: Path, info_path: Path, image_id: int | str) -> Regions:
    try:
        with open_regular(features_path) as file:
            features = read_array(file, os.fstat(file.fileno()).st_size)
    except Exception as error:  # A damaged header can raise almost any exception.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{features_path}: cannot be read as npy ({reason}); extract this image again") from error
    if features.ndim != 2:
        raise InputError(f"{features_path}: has the shape {features.shape} instead of (n, d); extract this image again")
    try:
        return _regions(image_id, features, _read_object(info_path))
    except KeyError as error:
        raise InputError(f"{info_path}: {error.args[0]}: is missing; extract this image again") from error
    except Exception as error:  # As above.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{info_path}: {reason}; extract this image again") from error


def _regions(image_id: int | str, features: np.ndarray, info: dict[str, Any]) -> Regions:
    boxes, count = np.asarray(info["bbox"], np.float32), len(features)
    if boxes.shape != (count, 4):
        raise ValueError(
            f"bbox has the shape {boxes.shape} and the features {features.shape}, instead of (n, 4) and (n, d)"
        )
    labels = {}
    for key, (attribute, dtype) in _LABELS.items():
        if key in info:
            labels[attribute] = np.asarray(info[key], dtype)
            if labels[attribute].shape != (count,):
                raise ValueError(f"{key} has the shape {labels[attribute].shape} instead of ({count},)")
    if "cls_prob" in info and "object_ids" in labels and "object_scores" not in labels:
        probabilities, ids = np.asarray(info["cls_prob"], np.float32), labels["object_ids"]
        if probabilities.ndim != 2 or len(probabilities) != count or (count and ids.max() >= probabilities.shape[1]):
            raise ValueError(f"cls_prob has the shape {probabilities.shape} instead of ({count}, classes)")
        labels["object_scores"] = probabilities[np.arange(count), ids]
    return Regions(
        image_id=image_id,
        width=int(info["image_width"]),
        height=int(info["image_height"]),
        boxes=boxes,
        features=np.asarray(features, np.float32),
        **labels,
    )


def _write_object(file: BinaryIO, content: dict[str, object]) -> None:
    """Writes what np.save writes for a dictionary, but such that numpy 1 can read it too."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(safe_pickle.dumps(np.array(content, dtype=object)))


def _read_object(path: Path) -> dict[str, Any]:
    """Returns what np.load(path, allow_pickle=True).item() returns, without executing code from the pickle."""
    with open_regular(path) as file:
        _, _, dtype = read_header(file, os.fstat(file.fileno()).st_size)
        if not dtype.hasobject:
            raise ValueError(f"holds numbers ({dtype}) instead of a dictionary")
        array = safe_pickle.loads(file.read())
    content = array.item() if isinstance(array, np.ndarray) and array.size == 1 else None
    if not isinstance(content, dict):
        raise ValueError("does not hold a dictionary")
    return content
