"""Reads and writes features as a folder with two npy files per image (mmf/datasets/databases/readers of MMF).

``<id>.npy`` has the features [n, d] float32. ``<id>_info.npy`` has a pickled dictionary with ``bbox`` [n, 4] float32,
``num_boxes``, ``image_width``, ``image_height`` and, if the labels are known, ``objects`` [n] int64, counted from 0
without background.

MMF's own extraction (tools/scripts/features/extract_features_vmb.py) also writes ``cls_prob`` [n, classes], the
probabilities of all classes. MMF's UNITER fails without them, and the masked regions of MMF's ViLBERT, as in its
pretraining, get a target of NaN. bua adds the other labels under the names of LXMERT's TSV: ``objects_conf``,
``attrs_conf`` float32 and ``attrs_id`` int64, each [n].

These files of other programs are read too, by their fields:

- ``cls_prob`` [n, 1601], which MMF writes with ``--background``: the first column is the background, from which
  ``objects`` counts there. The labels are those of the other columns.
- ``cls_prob`` [n], of MMF's Faster R-CNN (frcnn/extract_features_frcnn.py): the scores of ``objects``. The image size
  in these files is that of the resized image, while the boxes are in pixels of the original image.
- ``bbox`` [n, 6], of MMF's VinVL (extract_features_vinvl.py): x1/w, y1/h, x2/w, y2/h, width/w and height/h, which are
  also the last six numbers of each feature. ``labels`` and ``attr_labels`` count from 1.
- One ``<id>.npy`` with a dictionary of all of this and of ``features``, of vilbert-multi-task
  (script/extract_features.py). Its ``objects`` lacks the first region, and ``cls_prob`` has the background first.
- ``<id>.npy`` without ``<id>_info.npy``: features without boxes.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bua.errors import InputError
from bua.features.checks import check_regions
from bua.features.folder_writer import FolderWriter
from bua.features.ids import ENCODED, file_stem, id_of_file_stem
from bua.features.indexed import IndexedFeatures
from bua.features.labels import labels_of
from bua.features.mmf_fields import MMF_LABELS, regions_of_info
from bua.features.npy import read_array, read_header
from bua.features.probabilities import with_background
from bua.io import safe_pickle
from bua.io.files import whole_file
from bua.regular_files import open_regular
from bua.structures import Regions

_INFO = "_info"
_LONGEST_NAME = 225


class MmfFeatures(IndexedFeatures[str]):
    """The features in a folder of MMF, vilbert-multi-task or bua. The ids are the file names (``bua.features.ids``).

    Raises:
        InputError: When it is opened: there is no such folder, or it has no image. When an image is read: its files
            cannot be decoded; the message names the file.
    """

    format = "mmf"

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._places = _list_stems(self.path, with_info=False)
        if not self._places:
            raise InputError(
                f"{self.path}: has no image: no <id>{_INFO}.npy has its features in <id>.npy; extract them again"
            )

    def _read(self, image_id: int | str, place: str) -> Regions:
        return _read_files(self.path / f"{place}.npy", self.path / f"{place}{_INFO}.npy", image_id, self._note)


class MmfWriter(FolderWriter):
    """Writes npy files into a folder. The features of an image are written last, so that it exists if they do. The
    argument and errors are those of ``FolderWriter``."""

    def __init__(self, folder: str | Path):
        missed = f"{ENCODED}, or have .npy in their middle, where MMF cuts them off"
        super().__init__(folder, f"{_INFO}.npy", missed)

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
        with whole_file(self.path / f"{stem}{_INFO}.npy", durable=True, locked=True) as file:
            _write_object(file, info_of(regions))
        with whole_file(self.path / f"{stem}.npy", durable=True, locked=True) as file:
            np.save(file, np.ascontiguousarray(regions.features, np.float32))
        # MMF takes the name up to the first ".npy".
        self._add(regions.image_id, found=stem == str(regions.image_id) and ".npy" not in stem)

    @staticmethod
    def _files(folder: Path) -> dict[int | str, Sequence[str]]:
        stems = _list_stems(folder)
        return {image_id: (f"{stem}{_INFO}.npy", f"{stem}.npy") for image_id, stem in stems.items()}


def info_of(regions: Regions) -> dict[str, object]:
    """Returns what MMF keeps of an image besides its features.

    If the probabilities of all classes were kept, they are ``cls_prob`` with the background in front, as in what MMF's
    own extraction writes with ``--background``. ``objects`` does not count the background even then.
    """
    info: dict[str, object] = {
        "bbox": np.asarray(regions.boxes, np.float32),
        "num_boxes": len(regions),
        "image_width": regions.width,
        "image_height": regions.height,
    }
    info |= {name: np.asarray(labels, dtype) for name, labels, dtype in labels_of(regions, MMF_LABELS)}
    if regions.class_probs is not None:
        info["cls_prob"] = with_background(regions.class_probs)
    return info


def _stem(image_id: int | str) -> str:
    stem = file_stem(image_id)
    # Otherwise the features of "x_info" and the information about "x" would have the same file name.
    return stem.removesuffix(_INFO) + "%5Finfo" if stem.endswith(_INFO) else stem


def _list_stems(folder: Path, with_info: bool = True) -> dict[int | str, str]:
    """Returns the names of the images without suffix by their ids.

    Args:
        with_info: Whether to leave out images without ``<id>_info.npy``, which bua and MMF do not write.
    """
    try:
        stems = {entry.name.removesuffix(".npy") for entry in os.scandir(folder) if entry.name.endswith(".npy")}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    found = {stem for stem in stems if stem + _INFO in stems}
    if not with_info:
        # <id>_info.npy without <id>.npy is of an image that was not written completely. <id>_full.npy is what MMF's
        # Faster R-CNN keeps for its drawings.
        found |= {
            stem
            for stem in stems
            if not stem.endswith(_INFO) and not (stem.endswith("_full") and stem.removesuffix("_full") in stems)
        }
    return {id_of_file_stem(stem): stem for stem in sorted(found)}


def _read_files(features_path: Path, info_path: Path, image_id: int | str, note: Callable[[str], None]) -> Regions:
    try:
        content = _read_npy(features_path)
    except Exception as error:  # A damaged header can raise almost any exception.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{features_path}: cannot be read as npy ({reason}); extract this image again") from error
    if isinstance(content, np.ndarray) and content.ndim != 2:
        raise InputError(f"{features_path}: has the shape {content.shape} instead of (n, d); extract this image again")
    path = features_path
    try:
        if isinstance(content, dict):
            return regions_of_info(image_id, content["features"], content, note, background=True)
        path = info_path
        info = _read_object(info_path) if info_path.exists() else {}
        return regions_of_info(image_id, content, info, note)
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}: is missing; extract this image again") from error
    except Exception as error:  # As above.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: {reason}; extract this image again") from error


def _write_object(file: BinaryIO, content: dict[str, object]) -> None:
    """Writes what np.save writes for a dictionary, but such that numpy 1 can read it too."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(safe_pickle.dumps(np.array(content, dtype=object)))


def _read_npy(path: Path) -> np.ndarray | dict[str, Any]:
    """Returns the array in an npy file, or the dictionary in it."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not read_header(file, size)[2].hasobject:
            file.seek(0)
            return read_array(file, size)
    return _read_object(path)


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
