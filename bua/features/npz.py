"""Reads and writes features as a folder with one npz file per image, as MILVLG/bottom-up-attention.pytorch.

The arrays are ``x`` [n, d] and ``bbox`` [n, 4] x1y1x2y2 float32, ``num_bbox``, ``image_h``, ``image_w``, and ``info``,
a dictionary with the labels ``objects_id``, ``attrs_id`` [n] int64, ``objects_conf``, ``attrs_conf`` [n] float32 and
with the sizes once more (utils/extract_utils.py). numpy stores a dictionary as a pickle. Loading it never executes code
from it.

Two kinds of MILVLG's files differ. Those of its Detectron2 models (utils/extract_d2features.py) have in ``info`` the
arrays ``objects`` [n], ``cls_prob`` [n, C] and, as a tensor ``attrs_id`` [n, A], the probabilities of attributes. Its
older files have ``x`` as [d, n]. ``bua.features.npz_layouts`` reads the files of other programs.
"""

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from bua.errors import InputError, shown
from bua.features.checks import check_regions
from bua.features.folder_writer import FolderWriter, files_by_id
from bua.features.ids import ENCODED, file_name, parse_id
from bua.features.indexed import IndexedFeatures
from bua.features.labels import LXMERT_LABELS, numbers
from bua.features.npy import NpzFile
from bua.features.npz_arrays import ARRAYS
from bua.features.npz_layouts import other_regions
from bua.features.readers import FoundIds
from bua.io import safe_pickle
from bua.io.files import whole_file
from bua.structures import Regions

SUFFIX = ".npz"


class NpzFeatures(IndexedFeatures[str]):
    """The features in a folder of npz files of bua or MILVLG. The ids are the file names (see ``bua.features.ids``).

    Raises:
        InputError: When it is opened: there is no such folder. When an image is read: its file cannot be decoded; the
            message names the file.
    """

    format = "npz"

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._places = files_by_id(self.path, SUFFIX)

    def _read(self, image_id: int | str, place: str) -> Regions:
        return _read_file(self.path / place, image_id, self._note)


class NpzWriter(FolderWriter):
    """Writes npz files into a folder. The arguments and errors are those of ``FolderWriter``.

    Args:
        reader: One of the readers of ``bua.features.npz_arrays.ARRAYS``.
    """

    def __init__(self, folder: str | Path, reader: str | None = None):
        # OpenVQA's loader of GQA takes the name up to the first dot.
        self._cut_at_dots = reader == "openvqa-gqa"
        missed = f"{ENCODED}, or have a dot, at which OpenVQA cuts them off" if self._cut_at_dots else ENCODED
        super().__init__(folder, SUFFIX, missed)
        self._arrays = ARRAYS[reader]
        self._found_ids = FoundIds(reader, self.done)

    def append(self, regions: Regions) -> None:
        """Writes one image's file.

        Raises:
            InputError: The id is empty, too long for a file name, or not found by the reader; or a number is not
                finite.
        """
        check_regions(regions)
        name = file_name(regions.image_id, SUFFIX)
        self._found_ids.add(parse_id(regions.image_id))
        arrays, info = self._arrays(regions)
        # The file is synced before it gets its name: after a crash, an empty file would be taken for a complete one.
        with whole_file(self.path / name, durable=True, locked=True) as file:
            _save(file, arrays, info)
        cut = self._cut_at_dots and "." in str(regions.image_id)
        self._add(regions.image_id, found=name == f"{regions.image_id}{SUFFIX}" and not cut)

    @staticmethod
    def _files(folder: Path) -> dict[int | str, Sequence[str]]:
        return {image_id: [name] for image_id, name in files_by_id(folder, SUFFIX).items()}


def _save(file: BinaryIO, arrays: dict[str, np.ndarray], info: dict[str, object] | None) -> None:
    """Writes what numpy.savez writes, except for the pickle ``info``: numpy 1 cannot read the pickles of numpy 2."""
    # The file is not compressed: that would save a third of its size, and take longer than all other steps together.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        if info is None:
            return
        with archive.open("info.npy", "w", force_zip64=True) as member:
            header = {"descr": "|O", "fortran_order": False, "shape": ()}
            np.lib.format.write_array_header_1_0(member, header)
            member.write(safe_pickle.dumps(np.array(info, dtype=object)))


def _read_file(path: Path, image_id: int | str, note: Callable[[str], None]) -> Regions:
    try:
        with NpzFile(path) as arrays:
            if "x" not in arrays.names and (other := other_regions(image_id, arrays, path, note)) is not None:
                return other
            features, boxes = (numbers(name, arrays.array(name)) for name in ("x", "bbox"))
            # OpenVQA's files of GQA (data/gqa/gqa_feat_preproc.py) have other names for the size.
            names = ("image_w", "image_h") if "image_w" in arrays.names else ("width", "height")
            width, height = (int(arrays.array(name)) for name in names)
            count = arrays.array("num_bbox") if "num_bbox" in arrays.names else None
            info = _read_info(arrays) if "info" in arrays.names else {}
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; remove this file, which has no features") from error
    except Exception as error:  # Damaged zip files, compressed data and headers can raise almost any exception.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as npz ({reason}); extract this image again") from error
    if features.ndim == boxes.ndim == 2 and features.shape[1] == len(boxes) != len(features):
        features = np.ascontiguousarray(features.T)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2 or len(features) != len(boxes):
        raise InputError(
            f"{path}: x has the shape {features.shape} and bbox {boxes.shape}, not (n, d) and (n, 4); extract it again"
        )
    if count is not None and (count.shape not in ((), (1,)) or count.item() != len(boxes)):
        number = shown(count.tolist())
        raise InputError(f"{path}: num_bbox is {number}, but bbox has {len(boxes)} boxes; extract this image again")
    try:
        labels = _labels(info, len(boxes))
    except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: info: {error}; extract this image again") from error
    return Regions(image_id=image_id, width=width, height=height, boxes=boxes, features=features, **labels)


def _read_info(arrays: NpzFile) -> dict[str, Any]:
    shape, dtype, data = arrays.pickled("info")
    if shape != () or not dtype.hasobject:
        raise ValueError(f"info is an array of {dtype} with the shape {shape}, not a dictionary")
    info = _load(data).item()
    if not isinstance(info, dict):
        raise ValueError(f"info is a {type(info).__name__}, not a dictionary")
    return info


def _labels(info: dict[str, Any], count: int) -> dict[str, np.ndarray]:
    """Returns the labels in ``info`` by the fields of Regions."""
    if "objects" in info:
        info = _detectron2_labels(info)
    labels = {}
    for key, (attribute, dtype) in LXMERT_LABELS.items():
        if key in info:
            labels[attribute] = numbers(key, info[key], dtype)
            if labels[attribute].shape != (count,):
                raise ValueError(f"{key} has the shape {labels[attribute].shape} instead of ({count},)")
    if "class_probs" in info:
        labels["class_probs"] = numbers("class_probs", info["class_probs"], np.dtype(np.float16))
        if labels["class_probs"].ndim != 2 or len(labels["class_probs"]) != count:
            raise ValueError(f"class_probs has the shape {labels['class_probs'].shape} instead of ({count}, classes)")
    return labels


def _detectron2_labels(info: dict[str, Any]) -> dict[str, np.ndarray]:
    objects, probs = np.asarray(info["objects"]), np.asarray(info["cls_prob"])
    # For boxes that the user gave, ``objects`` may be the background (the last class), which ``cls_prob`` lacks.
    objects = np.where(objects < probs.shape[1], objects, probs.argmax(axis=1))
    labels = {"objects_id": objects, "objects_conf": probs[np.arange(len(probs)), objects]}
    if "attrs_id" in info:
        attribute_probs = np.asarray(info["attrs_id"])
        labels |= {"attrs_id": attribute_probs.argmax(axis=1), "attrs_conf": attribute_probs.max(axis=1)}
    return labels


def _load(data: bytes) -> np.ndarray:
    """Returns the array in a pickle of numbers, strings, containers, arrays and tensors, with tensors as arrays."""
    try:
        content = _TensorUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # A damaged pickle can raise almost any exception.
        # Messages of torch have many lines.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"info is a pickle that is not loaded: {reason}") from error
    if not isinstance(content, np.ndarray):
        raise ValueError(f"info is a pickled {type(content).__name__}, not an array")
    return content


class _TensorUnpickler(safe_pickle.SafeUnpickler):
    """Also allows torch's tensors."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _tensor(*arguments)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            # This is a file of torch.save inside the pickle, which torch loads without executing code.
            return lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return super().find_class(module, name)


def _tensor(
    storage: torch.TypedStorage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> np.ndarray:
    numbers = torch.empty(0, dtype=storage.dtype).set_(storage)
    if math.prod(size) > len(numbers):
        raise ValueError(f"a tensor with the shape {size} has only {len(numbers)} numbers")
    return torch.as_strided(numbers, size, stride, offset).numpy()
