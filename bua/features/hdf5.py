"""Features in HDF5, in the two layouts that VQA models read.

``hdf5`` is that of hengyuan-hu/bottom-up-attention-vqa (tools/detection_features_converter.py), for n boxes in every
one of N images: ``image_features`` [N, n, d], ``image_bb`` [N, n, 4] x1y1x2y2 in pixels and ``spatial_features``
[N, n, 6] (x1/w, y1/h, x2/w, y2/h, (x2-x1)/w, (y2-y1)/h), all float32. ``ban-hdf5`` is that of jnhwkim/ban-vqa
(tools/adaptive_detection_features_converter.py), for any number: the same three with the boxes of all images one
after another, and ``pos_boxes`` [N, 2] int32, an image's first box and the one after its last. Beside
``train36.hdf5`` both want ``train36_imgid2idx.pkl``, a dictionary from an image's id to its row of N.

What their readers do not ask for is kept in further data sets, so that nothing is lost: ``image_id`` [N] (text),
``image_w`` and ``image_h`` [N] int32, and the labels of boxes under MILVLG's names, -1 and NaN where an image has
none. Files of others lack these. There the ids come from the pickle, and an image's size from its boxes: the width
is x2 of the box that reaches farthest right over its x2/w, rounded, the height likewise; 0 where no box tells.
"""

import os
import shutil
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from bua.errors import InputError
from bua.features.flat import FlatFeatures, FlatWriter
from bua.features.hdf5_files import common_shape, rows_path, write_hdf5, write_rows
from bua.features.ids import parse_id
from bua.features.tsv import LABELS
from bua.io import safe_pickle
from bua.structures import Regions


class Hdf5Features(Mapping[int | str, Regions]):
    """The features in an HDF5 file of either layout, bua's or others', read an image at a time. Many processes and
    threads may read from one object, also one that was forked or pickled to them.

    Attributes:
        format: one of HDF5_FORMATS.
        rows: the row of each image by its id, as the pickle has it, in the order of the rows.
        num_boxes: [N] int64, by row.

    Raises:
        InputError: when opened: no such file, not one of features, or one of others without its pickle; when an
            image is read: names it and what is wrong.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._opened: tuple[int, h5py.File | None, dict[str, h5py.Dataset]] = (0, None, {})
        with _damage_reported(f"{self.path}"):
            self._read_ids_and_sizes()

    def __getitem__(self, image_id: int | str) -> Regions:
        image_id = parse_id(image_id)
        row = self.rows[image_id]
        with _damage_reported(f"{self.path}: image {image_id} (row {row})"):
            return self._read(image_id, row)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self.rows

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": (0, None, {})}

    def _read_ids_and_sizes(self) -> None:
        data = self._data()
        self.format = _format_of(self.path, data)
        if self.format == "hdf5":
            images, boxes, _ = data["image_features"].shape
            self.num_boxes = np.full(images, boxes)
        else:
            self._bounds = data["pos_boxes"][:].astype(np.int64)
            self.num_boxes = self._bounds[:, 1] - self._bounds[:, 0]
        for name in ("image_id", "image_w", "image_h"):
            if name in data and data[name].shape != self.num_boxes.shape:
                raise InputError(f"{self.path}: {name} is {data[name].shape}; need ({len(self.num_boxes)},)")
        self._sizes = None
        if "image_w" in data:
            self._sizes = np.stack([data["image_w"][:], data["image_h"][:]], axis=1).astype(np.int64)
        self.rows = _rows_of(self.path, data, len(self.num_boxes))

    def _data(self) -> dict[str, h5py.Dataset]:
        """The file's data sets by name. Opened anew after a fork, as the file position would be the parent's too;
        h5py itself lets threads read one after the other."""
        process, inherited, data = self._opened
        if process != os.getpid():
            if inherited is not None:
                inherited.close()
            file = _open(self.path)
            data = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            # In one step: threads that get here at once go on with a file of their own each.
            self._opened = (os.getpid(), file, data)
        return data

    def _read(self, image_id: int | str, row: int) -> Regions:
        data = self._data()
        where: int | slice = row
        if self.format == "ban-hdf5":
            start, end = self._bounds[row].tolist()
            if not 0 <= start <= end <= len(data["image_features"]):
                raise ValueError(f"pos_boxes {start} to {end} is not within {len(data['image_features'])} boxes")
            where = slice(start, end)
        boxes = np.asarray(data["image_bb"][where], np.float32)
        if self._sizes is not None:
            width, height = self._sizes[row].tolist()
        else:
            width, height = _size_of(boxes, data["spatial_features"][where])
        features = np.asarray(data["image_features"][where], np.float32)
        labels = {
            attribute: _present(data[name][where].astype(dtype))
            for name, (attribute, dtype) in LABELS.items()
            if name in data
        }
        return Regions(image_id, width, height, boxes, features, **labels)


class Hdf5Writer:
    """Adds images to an HDF5 file, which ``finish`` makes.

    HDF5 does not survive a writer that is killed. So the images go to a flat store, ``<path>.partial``, first;
    ``finish`` streams what the file has and what was added into a new file, which takes the old one's place, then
    renews the pickle, and removes the flat store last. As the file has the ids itself, a writer that comes after one
    that was killed in between knows which of the flat store's images are in it.

    Args:
        path: the file; need not exist.
        format: one of HDF5_FORMATS.

    Attributes:
        done: the ids in the file and in the flat store.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: str | Path, format: str = "hdf5"):
        self.path = Path(path)
        self.format = format
        self._staging = self.path.with_name(f"{self.path.name}.partial")
        self._discarded = self.path.with_name(f"{self.path.name}.partial.old")
        if self._discarded.exists():
            shutil.rmtree(self._discarded)
        self._written = Hdf5Features(self.path) if self.path.exists() else None
        if self._written is not None and self._written.format != format:
            raise InputError(f"{self.path}: is in the format {self._written.format}; choose another output or format")
        self._staged = FlatWriter(self._staging)
        self._finished = False
        self.done: set[int | str] = self._staged.done.union(self._written or ())
        there = self._written or (FlatFeatures(self._staging) if self._staged.done else {})
        shapes = (common_shape(None, regions, format) for regions in there.values())
        self._shape = next((shape for shape in shapes if shape is not None), None)

    def append(self, regions: Regions) -> None:
        """Adds one image.

        Raises:
            InputError: its id is there already, its features are of another length than those before, or, for
                ``hdf5``, it has another number of boxes.
        """
        image_id = parse_id(regions.image_id)
        if image_id in self.done:
            raise InputError(f"image id {image_id!r}: in the output already")
        shape = common_shape(self._shape, regions, self.format)
        self._staged.append(regions)
        self._shape = shape
        self.done.add(image_id)

    def sync(self) -> None:
        self._staged.sync()

    def finish(self) -> None:
        self._staged.finish()
        self.close()
        self._finished = True
        staged, written = FlatFeatures(self._staging), self._written
        counts = dict(zip(staged, staged.counts.tolist()))
        if written is None or not counts.keys() <= written.rows.keys():
            if written is not None:
                counts = {image_id: written.num_boxes.item(row) for image_id, row in written.rows.items()} | counts
            if counts:
                # Goes over what the file has first: its rows stay.
                write_hdf5(self.path, ChainMap(staged, written or {}), self.format, counts)
        elif counts:
            write_rows(self.path, written.rows)
        # Removing a folder takes many steps, this one.
        os.replace(self._staging, self._discarded)
        shutil.rmtree(self._discarded)

    def close(self) -> None:
        if not self._finished:
            self._staged.close()


def _rows_of(path: Path, data: Mapping[str, h5py.Dataset], images: int) -> dict[int | str, int]:
    if "image_id" in data and data["image_id"].dtype.kind == "S":
        ids = [text.decode(errors="surrogateescape") for text in data["image_id"][:].tolist()]
        return {parse_id(image_id): row for row, image_id in enumerate(ids)}
    index = rows_path(path)
    try:
        rows = safe_pickle.loads(index.read_bytes())
    except OSError as error:
        raise InputError(f"{index}: cannot be read: {error.strerror}; {path.name} needs it for its ids") from error
    except ValueError as error:
        raise InputError(f"{index}: {error}; copy it again") from error
    if not isinstance(rows, dict) or not all(type(row) is int and 0 <= row < images for row in rows.values()):
        raise InputError(f"{index}: not a dictionary from ids to the {images} rows of {path.name}; copy it again")
    return {parse_id(image_id): row for image_id, row in sorted(rows.items(), key=lambda item: item[1])}


@contextmanager
def _damage_reported(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        # HDF5 may say more than a line.
        reason = str(error).partition("\n")[0]
        raise InputError(f"{what}: cannot be read as HDF5: {reason}; copy or write this file again") from error


def _open(path: Path) -> h5py.File:
    if not path.exists() and path.with_name(f"{path.name}.partial").exists():
        raise InputError(f"{path}: not finished; run the extraction again, or read {path.name}.partial")
    return h5py.File(path, "r")


def _format_of(path: Path, data: Mapping[str, h5py.Dataset]) -> str:
    names = ("image_features", "image_bb", "spatial_features")
    for name in names:
        if name not in data:
            raise InputError(f"{path}: has no data set {name}; not a file of features in hengyuan-hu's or BAN's layout")
    shapes = {name: data[name].shape for name in (*names, "pos_boxes") if name in data}
    lead = shapes["image_features"][:-1]
    if shapes["image_bb"] == (*lead, 4) and shapes["spatial_features"] == (*lead, 6):
        if len(lead) == 2:
            return "hdf5"
        if len(lead) == 1 and shapes.get("pos_boxes", ())[1:] == (2,):
            return "ban-hdf5"
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise InputError(f"{path}: {listed}; need (N, n, d), (N, n, 4) and (N, n, 6), or (R, ...) and pos_boxes (N, 2)")


def _size_of(boxes: np.ndarray, spatial: np.ndarray) -> tuple[int, int]:
    size = [0, 0]
    for axis in range(2) if len(boxes) else ():
        farthest = boxes[:, 2 + axis].argmax()
        share = spatial[farthest, 2 + axis].item()
        if share > 0:
            size[axis] = round(boxes[farthest, 2 + axis].item() / share)
    return size[0], size[1]


def _present(labels: np.ndarray) -> np.ndarray | None:
    """The labels of an image, or None where they stand for none."""
    first = labels[:1]
    return None if (np.isnan(first) if labels.dtype.kind == "f" else first < 0).any() else labels
