"""Writing features into HDF5 files, whole or not at all; ``bua.features.hdf5`` says what is in them."""

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from bua.errors import InputError
from bua.features.tsv import LABELS
from bua.io.files import whole_file
from bua.structures import Regions

HDF5_FORMATS = ("hdf5", "ban-hdf5")

# Images that are written at a time: HDF5 takes as long for a small write as for copying an image's features.
_BLOCK = 32
# Stands for the labels that an image does not have, by their type.
_ABSENT = {"i": -1, "f": np.nan}
_SECONDS_UNTIL_PROGRESS = 5


def write_hdf5(
    path: str | Path,
    store: Mapping[int | str, Regions],
    format: str = "hdf5",
    counts: Mapping[int | str, int] | None = None,
) -> None:
    """Writes features into a new HDF5 file and its pickle, in the order of the store. Each takes the place of an older
    one once it is on the disk. The memory that this takes does not grow with the features.

    Args:
        path: the file.
        store: at least one image; read one after another.
        format: one of HDF5_FORMATS.
        counts: the number of boxes of each image, where they are known. ``ban-hdf5`` needs their sum before the
            features, and reads the store an additional time to find it.

    Raises:
        InputError: the store is empty, its features differ in length, or, for ``hdf5``, its images in their number
            of boxes.
        OSError: it cannot be written; what was there stays.
    """
    path, ids = Path(path), list(store)
    if not ids:
        raise InputError(f"{path}: no images to write")
    total = None
    if format == "ban-hdf5":
        counts = counts or {image_id: len(store[image_id]) for image_id in _progress(ids, "HDF5: counting boxes")}
        total = sum(counts[image_id] for image_id in ids)
    with whole_file(path, durable=True) as file, _Disk(file.name, "r+") as disk:
        with h5py.File(disk, "w") as hdf5:
            _fill(hdf5, store, ids, total, disk.check)
        disk.check()
    write_rows(path, {image_id: row for row, image_id in enumerate(ids)})


def common_shape(shape: tuple[int, int] | None, regions: Regions, format: str) -> tuple[int, int] | None:
    """What the images of a file share: the number of boxes (0 for ``ban-hdf5``) and the length of features; None
    while that is not known.

    Args:
        shape: that of the images before.
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
            f"image {regions.image_id}: {boxes} boxes, those before it {shape[0]}, and the format hdf5 holds one "
            "number; use ban-hdf5, or the same number for the least and the most boxes"
        )
    if dim != shape[1]:
        raise InputError(f"image {regions.image_id}: features of {dim} numbers, those before it {shape[1]}")
    return shape


def write_rows(path: Path, rows: dict[int | str, int]) -> None:
    """Writes the pickle of the HDF5 file ``path``: an image's row by its id."""
    with whole_file(rows_path(path), durable=True) as file:
        # The last protocol that Python 2 reads, in which hengyuan-hu's code is written.
        pickle.dump(rows, file, protocol=2)


def rows_path(path: Path) -> Path:
    """Where the pickle of the HDF5 file ``path`` is, by the name that the readers look for."""
    stem = path.stem if path.suffix in (".hdf5", ".h5") else path.name
    return path.with_name(f"{stem}_imgid2idx.pkl")


class _Disk(io.FileIO):
    """The file that HDF5 writes to, which hides from it that the disk is full: HDF5 would lose what it holds back
    without a word, or crash, when it closes the file. ``check`` tells instead."""

    error: OSError | None = None

    def write(self, data) -> int:
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
        """Raises the OSError of a write that failed."""
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
        total: the number of boxes of all images; None for the fixed layout.
        check: called now and then; may raise.
    """
    format = "hdf5" if total is None else "ban-hdf5"
    shape = None
    ends, sizes = np.zeros(len(ids) + 1, np.int64), np.zeros((len(ids), 2), np.int32)
    images = _progress(ids, "HDF5")
    for start in range(0, len(ids), _BLOCK):
        block = [store[image_id] for image_id in islice(images, _BLOCK)]
        for row, regions in enumerate(block, start):
            shape = common_shape(shape, regions, format)
            ends[row + 1] = ends[row] + len(regions)
            sizes[row] = regions.width, regions.height
        for name, values in _columns(block).items():
            if total is None:
                lead, where = (len(ids), shape[0]), slice(start, start + len(block))
                values = values.reshape(len(block), shape[0], *values.shape[1:])
            else:
                lead, where = (total,), slice(ends[start], ends[start + len(block)])
            if name not in hdf5:
                fill = _ABSENT[values.dtype.kind] if name in LABELS else None
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
    """What data sets hold of some images, by name, with the boxes of all after one another: [boxes, ...]."""
    columns = {
        "image_bb": np.concatenate([regions.boxes for regions in block]).astype("<f4"),
        "spatial_features": np.concatenate([_spatial_features(regions) for regions in block]),
    }
    features = [regions.features for regions in block if len(regions)]
    if features:
        columns["image_features"] = np.concatenate(features).astype("<f4")
    for name, (attribute, dtype) in LABELS.items():
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
    # In the originals' order of operations, so that the last bit is theirs too.
    boxes, size = np.asarray(regions.boxes, np.float32), np.float32([max(regions.width, 1), max(regions.height, 1)])
    corner, extent = boxes[:, :2] / size, (boxes[:, 2:] - boxes[:, :2]) / size
    return np.concatenate([corner, corner + extent, extent], axis=1).astype("<f4")


def _progress(ids: Sequence[int | str], title: str) -> Iterator[int | str]:
    return iter(tqdm(ids, title, unit="image", delay=_SECONDS_UNTIL_PROGRESS, leave=False))
