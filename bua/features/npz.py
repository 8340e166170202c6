"""Features as a folder with one npz file an image, as MILVLG/bottom-up-attention.pytorch writes and reads them.

``x`` [n, d] and ``bbox`` [n, 4] x1y1x2y2 float32, ``num_bbox``, ``image_h``, ``image_w``, and the labels in ``info``,
a dictionary with ``objects_id``, ``attrs_id`` [n] int64, ``objects_conf``, ``attrs_conf`` [n] float32 and the above
once more (utils/extract_utils.py). numpy keeps a dictionary as a pickle; it is read without running what it says.

Two kinds of MILVLG's files differ. With its Detectron2 models (utils/extract_d2features.py) ``info`` has ``objects``
[n], ``cls_prob`` [n, C] and, as a tensor, the probabilities of attributes ``attrs_id`` [n, A]. And its older files
have ``x`` as [d, n].
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from bua.errors import InputError
from bua.features.ids import file_stem, id_of_file_stem, parse_id
from bua.features.tsv import LABELS
from bua.io import safe_pickle
from bua.io.files import whole_file
from bua.structures import Regions


class NpzFeatures(Mapping[int | str, Regions]):
    """The features in a folder of npz files, bua's or MILVLG's; ids are the file names (see ``bua.features.ids``).

    Raises:
        InputError: when opened: no such folder; when an image is read: names its file and what is wrong.
    """

    format = "npz"

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._names = _list(self.path)

    def __getitem__(self, image_id: int | str) -> Regions:
        image_id = parse_id(image_id)
        return _read(self.path / self._names[image_id], image_id)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self._names


class NpzWriter:
    """Writes npz files into a folder, each whole or not at all, also where the machine dies.

    Attributes:
        done: the ids in the folder.

    Raises:
        InputError: the path is a file, or a folder with something else in it.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; the npz format needs a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self.done: set[int | str] = set(_list(self.path))
        others = [] if self.done else [name for name in sorted(os.listdir(self.path)) if not name.endswith(".tmp")]
        if others:
            raise InputError(f"{self.path}: holds {others[0]} and no npz files; choose another output")

    def append(self, regions: Regions) -> None:
        """Writes one image's file.

        Raises:
            InputError: the id is empty or longer than a file name may be.
        """
        name = f"{file_stem(regions.image_id)}.npz"
        if name == ".npz" or len(os.fsencode(name)) > 230:
            raise InputError(f"image id {str(regions.image_id)[:40]!r}: empty or too long for the name of a file")
        arrays = {
            "x": np.asarray(regions.features, np.float32),
            "bbox": np.asarray(regions.boxes, np.float32),
            "num_bbox": np.asarray(len(regions)),
            "image_h": np.asarray(regions.height),
            "image_w": np.asarray(regions.width),
        }
        info = {
            "image_id": str(regions.image_id),
            "image_h": int(regions.height),
            "image_w": int(regions.width),
            "num_boxes": len(regions),
        }
        for key, (attribute, dtype) in LABELS.items():
            labels = getattr(regions, attribute)
            if labels is not None:
                info[key] = np.asarray(labels, dtype)
        # On the disk before it has its name: a file that a dead machine left empty would count as done.
        with whole_file(self.path / name, durable=True) as file:
            _save(file, arrays, info)
        self.done.add(parse_id(regions.image_id))

    def sync(self) -> None:
        """Each file is on the disk when ``append`` returns."""

    def finish(self) -> None:
        """There is nothing beside the files."""

    def close(self) -> None:
        """Nothing stays open between files."""


def _list(folder: Path) -> dict[int | str, str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".npz"))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return {id_of_file_stem(name.removesuffix(".npz")): name for name in names}


def _save(file: BinaryIO, arrays: dict[str, np.ndarray], info: dict) -> None:
    """What numpy.savez does, but for the pickle in ``info``, which numpy 2 writes so that numpy 1 cannot read it."""
    # Not compressed: that saves a third, and takes longer than all the rest of writing and reading.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("info.npy", "w", force_zip64=True) as member:
            header = {"descr": "|O", "fortran_order": False, "shape": ()}
            np.lib.format.write_array_header_1_0(member, header)
            member.write(safe_pickle.dumps(np.array(info, dtype=object)))


def _read(path: Path, image_id: int | str) -> Regions:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features, boxes = arrays["x"].astype(np.float32), arrays["bbox"].astype(np.float32)
            width, height = int(arrays["image_w"]), int(arrays["image_h"])
            info = _read_info(arrays.zip) if "info" in arrays else {}
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; not a file of features") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as npz ({error}); extract this image again") from error
    if features.ndim == 2 and features.shape[1] == len(boxes) != len(features):
        features = np.ascontiguousarray(features.T)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2 or len(features) != len(boxes):
        raise InputError(f"{path}: x is {features.shape} and bbox {boxes.shape}; need (n, d) and (n, 4)")
    try:
        labels = _labels(info, len(boxes))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path}: info: {error}; extract this image again") from error
    return Regions(image_id=image_id, width=width, height=height, boxes=boxes, features=features, **labels)


def _read_info(archive: zipfile.ZipFile) -> dict:
    with archive.open("info.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if shape != () or not dtype.hasobject:
            raise ValueError(f"info is {dtype} {shape}, not one dictionary")
        info = _load(member.read()).item()
    if not isinstance(info, dict):
        raise ValueError(f"info is a {type(info).__name__}, not a dictionary")
    return info


def _labels(info: dict, count: int) -> dict[str, np.ndarray]:
    """The fields of Regions that ``info`` tells of."""
    if "objects" in info:
        info = _detectron2_labels(info)
    labels = {}
    for key, (attribute, dtype) in LABELS.items():
        if key in info:
            labels[attribute] = np.asarray(info[key]).astype(dtype)
            if labels[attribute].shape != (count,):
                raise ValueError(f"{key} is {labels[attribute].shape}; need ({count},)")
    return labels


def _detectron2_labels(info: dict) -> dict[str, np.ndarray]:
    objects, probs = np.asarray(info["objects"]), np.asarray(info["cls_prob"])
    # For boxes that the user gave, ``objects`` counts the background too, last, and ``cls_prob`` does not.
    objects = np.where(objects < probs.shape[1], objects, probs.argmax(axis=1))
    labels = {"objects_id": objects, "objects_conf": probs[np.arange(len(probs)), objects]}
    if "attrs_id" in info:
        attribute_probs = np.asarray(info["attrs_id"])
        labels |= {"attrs_id": attribute_probs.argmax(axis=1), "attrs_conf": attribute_probs.max(axis=1)}
    return labels


def _load(data: bytes):
    """What a pickle of numbers, strings, containers, arrays and tensors holds, tensors as arrays."""
    try:
        return _TensorUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # A damaged pickle raises nearly anything.
        # Of torch's many lines, the first.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"info is a pickle that is not read: {reason}") from error


class _TensorUnpickler(safe_pickle.SafeUnpickler):
    """Admits torch's tensors too."""

    def find_class(self, module: str, name: str):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _tensor(*arguments)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            # A file of torch.save's within the pickle, which torch reads as safely.
            return lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return super().find_class(module, name)


def _tensor(storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> np.ndarray:
    numbers = torch.empty(0, dtype=storage.dtype).set_(storage)
    if math.prod(size) > len(numbers):
        raise ValueError(f"a tensor of {size} on {len(numbers)} numbers")
    return torch.as_strided(numbers, size, stride, offset).numpy()
