"""Writes features into HDF5 files, completely or not at all. ``bua.features.hdf5`` describes what they contain."""

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from bua.errors import InputError
from bua.features.checks import check_regions
from bua.features.labels import LXMERT_LABELS
from bua.io.files import whole_file
from bua.structures import Regions

HDF5_FORMATS = ("hdf5", "ban-hdf5")

# Number of images that are written at a time. A small write in HDF5 takes as long as copying the features of an image.
_BLOCK = 32
# The values for labels that an image does not have, by the kind of their dtype.
_ABSENT = {"i": -1, "f": np.nan}
_SECONDS_UNTIL_PROGRESS = 5


def write_hdf5(
    path: str | Path,
    store: Mapping[int | str, Regions],
    format: str = "hdf5",
    counts: Mapping[int | str, int] | None = None,
) -> None:
    """Writes features into a new HDF5 file and its pickle, in the order of the store.

    Both files replace older ones when they are completely on the disk. The memory in use does not grow with the number
    of images.

    Args:
        path: The file.
        store: At least one image. The images are read one after another.
        format: One of HDF5_FORMATS.
        counts: The number of boxes of each image, if it is known. ``ban-hdf5`` needs their sum before the features;
            without ``counts``, it reads the store once more to find it.

    Raises:
        InputError: The store is empty, its images differ in their feature dimension, or, for ``hdf5``, in their number
            of boxes.
        OSError: The file cannot be written. An older file stays unchanged.
    """
    path, ids = Path(path), list(store)
    if not ids:
        raise InputError(f"{path}: there are no images to write; name other features")
    total = None
    if format == "ban-hdf5":
        counts = counts or {image_id: len(store[image_id]) for image_id in _progress(ids, "HDF5: counting boxes")}
        total = sum(counts[image_id] for image_id in ids)
    with whole_file(path, durable=True, locked=True) as file, FullDiskSafeFile(file.name, "r+") as raw:
        with h5py.File(raw, "w") as hdf5:
            _fill(hdf5, store, ids, total, raw.check)
        raw.check()
    write_rows(path, {image_id: row for row, image_id in enumerate(ids)})


def common_shape(shape: tuple[int, int] | None, regions: Regions, format: str) -> tuple[int, int] | None:
    """Returns what all images of a file have in common: the number of boxes (0 for ``ban-hdf5``) and the feature
    dimension, or None while these are unknown.

    Args:
        shape: The result for the images before this one.

    Raises:
        InputError: The image differs from the images before it.
    """
    boxes, dim = regions.features.shape
    if format == "ban-hdf5":
        if not boxes:
            return shape
        boxes = 0
    if shape is None:
        return boxes, dim
    if boxes != shape[0]:
        raise InputError(
            f"image {regions.image_id}: has {boxes} boxes, and the images before it have {shape[0]}; use the format "
            "ban-hdf5, or the same number for --min-boxes and --max-boxes"
        )
    if dim != shape[1]:
        raise InputError(
            f"image {regions.image_id}: has the feature dimension {dim}, and the images before it have {shape[1]}; "
            "write it to another file"
        )
    return shape


def write_rows(path: Path, rows: dict[int | str, int]) -> None:
    """Writes the pickle for the HDF5 file ``path``, which has the row of each image by its id."""
    with whole_file(rows_path(path), durable=True, locked=True) as file:
        # hengyuan-hu's code is written in Python 2, and this is the last protocol that Python 2 can read.
        pickle.dump(rows, file, protocol=2)


def rows_path(path: Path) -> Path:
    """Returns the path of the pickle for the HDF5 file ``path``, as the readers expect it."""
    stem = path.stem if path.suffix in (".hdf5", ".h5") else path.name
    return path.with_name(f"{stem}_imgid2idx.pkl")


class FullDiskSafeFile(io.FileIO):
    """The file that HDF5 writes to, which hides errors from it until ``check`` is called.

    If the disk is full, HDF5 would lose buffered data without an error, or crash, when it closes the file.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0

    def check(self) -> None:
        """Raises the OSError of a write that has failed."""
        if self.error is not None:
            raise self.error


def _fill(
    hdf5: h5py.File,
    store: Mapping[int | str, Regions],
    ids: list[int | str],
    total: int | None,
    check: Callable[[], None],
) -> None:
    """Writes all data sets.

    Args:
        total: The number of boxes of all images for ``ban-hdf5``, or None for ``hdf5``.
        check: Is called regularly, and raises an exception if a write has failed.
    """
    format = "hdf5" if total is None else "ban-hdf5"
    shape: tuple[int, int] | None = None
    ends, sizes = np.zeros(len(ids) + 1, np.int64), np.zeros((len(ids), 2), np.int32)
    images = _progress(ids, "HDF5")
    for start in range(0, len(ids), _BLOCK):
        block = [store[image_id] for image_id in islice(images, _BLOCK)]
        for row, regions in enumerate(block, start):
            check_regions(regions)
            shape = common_shape(shape, regions, format)
            ends[row + 1] = ends[row] + len(regions)
            sizes[row] = regions.width, regions.height
        for name, values in _columns(block).items():
            lead: tuple[int, ...]
            if total is None:
                assert shape is not None, "each image of the fixed layout determines it"
                lead, where = (len(ids), shape[0]), slice(start, start + len(block))
                values = values.reshape(len(block), shape[0], *values.shape[1:])
            else:
                lead, where = (total,), slice(ends[start], ends[start + len(block)])
            if name not in hdf5:
                fill = _ABSENT[values.dtype.kind] if name in LXMERT_LABELS else None
                hdf5.create_dataset(name, (*lead, *values.shape[len(lead) :]), values.dtype, fillvalue=fill)
            hdf5[name][where] = values
        check()
    if "image_features" not in hdf5:
        hdf5.create_dataset("image_features", (*lead, 0), "<f4")
    if total is not None:
        hdf5["pos_boxes"] = np.stack([ends[:-1], ends[1:]], axis=1).astype("<i4" if total < 2**31 else "<i8")
    hdf5["image_id"] = np.array([str(image_id).encode(errors="surrogateescape") for image_id in ids])
    hdf5["image_w"], hdf5["image_h"] = sizes.astype("<i4").T


def _columns(block: Sequence[Regions]) -> dict[str, np.ndarray]:
    """Returns the values of the data sets for some images by name, [boxes of all these images, ...]."""
    columns = {
        "image_bb": np.concatenate([regions.boxes for regions in block]).astype("<f4"),
        "spatial_features": np.concatenate([_spatial_features(regions) for regions in block]),
    }
    features = [regions.features for regions in block if len(regions)]
    if features:
        columns["image_features"] = np.concatenate(features).astype("<f4")
    for name, (attribute, dtype) in LXMERT_LABELS.items():
        labels = [getattr(regions, attribute) for regions in block]
        if any(values is not None for values in labels):
            absent = _ABSENT[dtype.kind]
            columns[name] = np.concatenate(
                [
                    np.full(len(regions), absent, dtype) if values is None else np.asarray(values, dtype)
                    for regions, values in zip(block, labels)
                ]
            )
    return columns


def _spatial_features(regions: Regions) -> np.ndarray:
    # The order of operations is that of the original programs, so that the results are equal to the last bit.
    boxes = np.asarray(regions.boxes, np.float32)
    size = np.array([max(regions.width, 1), max(regions.height, 1)], np.float32)
    corner, extent = boxes[:, :2] / size, (boxes[:, 2:] - boxes[:, :2]) / size
    return np.concatenate([corner, corner + extent, extent], axis=1).astype("<f4")


def _progress(ids: Sequence[int | str], title: str) -> Iterator[int | str]:
    return iter(tqdm(ids, title, unit="image", delay=_SECONDS_UNTIL_PROGRESS, leave=False))
