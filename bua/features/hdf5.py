"""Reads and writes features in HDF5, in the two layouts that VQA models read.

``hdf5`` is the layout of hengyuan-hu/bottom-up-attention-vqa (tools/detection_features_converter.py), with n boxes in
each of N images: ``image_features`` [N, n, d], ``image_bb`` [N, n, 4] x1y1x2y2 in pixels, and ``spatial_features``
[N, n, 6] (x1/w, y1/h, x2/w, y2/h, (x2-x1)/w, (y2-y1)/h), all of them float32. ``ban-hdf5`` is the layout of
jnhwkim/ban-vqa (tools/adaptive_detection_features_converter.py), with any number of boxes per image: the same three
arrays with the boxes of all images one after another, and ``pos_boxes`` [N, 2] int32, the first box of each image and
the one after its last. For both, the readers expect ``train36_imgid2idx.pkl`` next to ``train36.hdf5``: a dictionary
from the ids of images to their rows of N.

bua stores the rest of the regions in further data sets, which these readers ignore: ``image_id`` [N] (text),
``image_w`` and ``image_h`` [N] int32, and the labels of boxes under MILVLG's names, with -1 and NaN for images that
have none. Files of other programs do not have these data sets. For them, the ids are taken from the pickle, and the
size of an image from its boxes: the width is x2 of the box that reaches farthest to the right, divided by its x2/w, and
rounded; the height likewise. The size is 0 if no box has this information.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from bua.errors import InputError
from bua.features.checks import check_size_is_known
from bua.features.flat import FlatFeatures, FlatWriter
from bua.features.hdf5_access import check_bytes, data_set, open_hdf5, report_damage
from bua.features.hdf5_files import common_shape, rows_path, write_hdf5, write_rows
from bua.features.hdf5_images import Hdf5ImageFeatures
from bua.features.ids import parse_id
from bua.features.indexed import IndexedFeatures
from bua.features.labels import LXMERT_LABELS
from bua.io import safe_pickle
from bua.regular_files import read_regular
from bua.structures import Regions

# The data sets with one value per image, and those that are read row by row.
_COLUMNS = ("image_id", "image_w", "image_h")
_ROW_NAMES = {"image_features", "image_bb", "spatial_features", *LXMERT_LABELS}


class Hdf5Features(IndexedFeatures[int]):
    """The features in an HDF5 file of either layout, of bua or another program, which are read image by image.

    Many processes and threads can read from the same object, also after it was forked or pickled to them.

    Attributes:
        format: One of HDF5_FORMATS.
        rows: The row of each image by its id, as in the pickle, in the order of the rows.
        num_boxes: [N] int64, the number of boxes in each row.

    Raises:
        InputError: When it is opened: there is no such file, it does not hold features, or it is a file of another
            program and its pickle is missing. When an image is read: it cannot be decoded; the message names it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._opened: tuple[int, h5py.File | None, dict[str, h5py.Dataset]] = (0, None, {})
        with report_damage(f"{self.path}"):
            self._read_ids_and_sizes()

    @property
    def rows(self) -> dict[int | str, int]:
        return self._places

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": (0, None, {})}

    def _read(self, image_id: int | str, place: int) -> Regions:
        with report_damage(f"{self.path}: image {image_id} (row {place})"):
            return self._read_row(image_id, place)

    def _read_ids_and_sizes(self) -> None:
        data = self._data()
        self.format = _format_of(self.path, data)
        if self.format == "hdf5":
            images, boxes, _ = data["image_features"].shape
            self.num_boxes = np.broadcast_to(np.int64(boxes), images)
        else:
            self._bounds = _column(data, "pos_boxes").astype(np.int64)
            self.num_boxes = self._bounds[:, 1] - self._bounds[:, 0]
        for name in ("image_id", "image_w", "image_h"):
            if name in data and data[name].shape != self.num_boxes.shape:
                raise InputError(
                    f"{self.path}: {name} has the shape {data[name].shape} instead of ({len(self.num_boxes)},); "
                    "copy or write this file again"
                )
        for name in LXMERT_LABELS:
            if name in data and data[name].shape != data["image_features"].shape[:-1]:
                raise InputError(
                    f"{self.path}: {name} has the shape {data[name].shape} instead of "
                    f"{data['image_features'].shape[:-1]}; copy or write this file again"
                )
        self._sizes: np.ndarray | None = None
        if "image_w" in data:
            sizes = [_column(data, name) for name in ("image_w", "image_h")]
            self._sizes = np.stack(sizes, axis=1).astype(np.int64)
        self._places = _rows_of(self.path, data, len(self.num_boxes))

    def _data(self) -> dict[str, h5py.Dataset]:
        """Returns the file's data sets by name.

        The file is opened again after a fork, since the parent process would share the file position. Threads can use
        the same file, since h5py lets them read one after the other.
        """
        process, inherited, data = self._opened
        if process != os.getpid():
            if inherited is not None:
                inherited.close()
            file = open_hdf5(self.path)
            data = _data_sets(file)
            # The attribute is set in one step. Threads that get here at the same time each use their own file.
            self._opened = (os.getpid(), file, data)
        return data

    def _read_row(self, image_id: int | str, row: int) -> Regions:
        data = self._data()
        where: int | slice = row
        if self.format == "ban-hdf5":
            start, end = self._bounds[row].tolist()
            if not 0 <= start <= end <= len(data["image_features"]):
                raise ValueError(f"pos_boxes {start} to {end} are not within the {len(data['image_features'])} boxes")
            where = slice(start, end)
        for name in data.keys() & _ROW_NAMES:
            row_bytes = data[name].dtype.itemsize * math.prod(data[name].shape[1:])
            check_bytes(data[name], name, row_bytes * (1 if isinstance(where, int) else where.stop - where.start))
        boxes = np.asarray(data["image_bb"][where], np.float32)
        if self._sizes is not None:
            width, height = self._sizes[row].tolist()
        else:
            width, height = _size_of(boxes, data["spatial_features"][where])
        features = np.asarray(data["image_features"][where], np.float32)
        labels = {
            attribute: _none_if_absent(data[name][where].astype(dtype))
            for name, (attribute, dtype) in LXMERT_LABELS.items()
            if name in data
        }
        return Regions(image_id, width, height, boxes, features, **labels)


def open_hdf5_features(path: str | Path) -> Hdf5Features | Hdf5ImageFeatures:
    """Opens an HDF5 file of one of the two layouts, or one with data sets for each image.

    Raises:
        InputError: There is no such file, or it does not hold features.
    """
    with report_damage(f"{path}"), open_hdf5(Path(path)) as file:
        in_one = any(name in file for name in ("image_features", "image_bb", "spatial_features"))
    return Hdf5Features(path) if in_one else Hdf5ImageFeatures(path)


class Hdf5Writer:
    """Adds images to an HDF5 file, which ``finish`` creates.

    An HDF5 file is damaged if its writer is killed. Therefore, images are first written to a flat store,
    ``<path>.partial``. ``finish`` streams the images of the existing file and the new ones into a new file, which
    replaces the existing one, then writes the pickle, and finally deletes the flat store. Since the HDF5 file contains
    the ids, a writer that follows a killed one knows which images of the flat store are already in it.

    Args:
        path: The file, which need not exist.
        format: One of HDF5_FORMATS.
        num_boxes: The number of boxes that every image must have, for ``hdf5``. If it is not known, it is that of the
            first image.

    Attributes:
        done: Ids of the images in the file and in the flat store.

    Raises:
        InputError: The file holds something else.
    """

    def __init__(self, path: str | Path, format: str = "hdf5", num_boxes: int | None = None):
        self.path = Path(path)
        self.format = format
        self._staging = self.path.with_name(f"{self.path.name}.partial")
        self._discarded = self.path.with_name(f"{self.path.name}.partial.old")
        if self._discarded.exists():
            shutil.rmtree(self._discarded)
        self._written = Hdf5Features(self.path) if self.path.exists() else None
        if self._written is not None and self._written.format != format:
            raise InputError(f"{self.path}: has the format {self._written.format}; choose another output or format")
        self._staged = FlatWriter(self._staging)
        self._finished = False
        self.done: set[int | str] = self._staged.done.union(self._written or ())
        present: Mapping[int | str, Regions] = self._written or (
            FlatFeatures(self._staging) if self._staged.done else {}
        )
        shapes = (common_shape(None, regions, format) for regions in present.values())
        self._shape = next((shape for shape in shapes if shape is not None), None)
        self._num_boxes = num_boxes if format == "hdf5" else None

    def append(self, regions: Regions) -> None:
        """Adds one image.

        Raises:
            InputError: Its id is already in the output; its feature dimension differs from that of the images before;
                or, for ``hdf5``, its number of boxes differs from theirs.
        """
        image_id = parse_id(regions.image_id)
        if image_id in self.done:
            raise InputError(f"image id {image_id!r}: is already in the output")
        check_size_is_known(regions, "HDF5")
        if self._num_boxes not in (None, len(regions)):
            raise InputError(
                f"image {image_id}: has {len(regions)} boxes, and hdf5 needs {self._num_boxes} in each image; use the "
                "format ban-hdf5, or a smaller number for --min-boxes and --max-boxes"
            )
        shape = common_shape(self._shape, regions, self.format)
        self._staged.append(regions)
        self._shape = shape
        self.done.add(image_id)

    def sync(self) -> None:
        self._staged.sync()

    def finish(self) -> None:
        """Writes the HDF5 file and its pickle, and deletes the flat store."""
        self._staged.finish()
        self.close()
        self._finished = True
        staged, written = FlatFeatures(self._staging), self._written
        counts = dict(zip(staged, staged.counts.tolist()))
        if written is None or not counts.keys() <= written.rows.keys():
            if written is not None:
                counts = {image_id: written.num_boxes.item(row) for image_id, row in written.rows.items()} | counts
            if counts:
                # The images of the existing file come first, so that they keep their rows.
                write_hdf5(self.path, _Combined(written or {}, staged), self.format, counts)
        elif counts:
            write_rows(self.path, written.rows)
        # The folder is renamed first, since deleting it takes many steps, and renaming it only one.
        os.replace(self._staging, self._discarded)
        shutil.rmtree(self._discarded)

    def close(self) -> None:
        if not self._finished:
            self._staged.close()


class _Combined(Mapping[int | str, Regions]):
    """The images of two stores, those of the first one first. For images in both, the second one is read."""

    def __init__(self, first: Mapping[int | str, Regions], second: Mapping[int | str, Regions]):
        self._first, self._second = first, second

    def __getitem__(self, image_id: int | str) -> Regions:
        return self._second[image_id] if image_id in self._second else self._first[image_id]

    def __iter__(self) -> Iterator[int | str]:
        yield from self._first
        yield from (image_id for image_id in self._second if image_id not in self._first)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _rows_of(path: Path, data: Mapping[str, h5py.Dataset], images: int) -> dict[int | str, int]:
    if "image_id" in data and data["image_id"].dtype.kind == "S":
        texts = [text.decode(errors="surrogateescape") for text in _column(data, "image_id").tolist()]
        return _once(path, [(parse_id(text), row) for row, text in enumerate(texts)])
    index = rows_path(path)
    try:
        rows = safe_pickle.loads(read_regular(index))
    except OSError as error:
        raise InputError(
            f"{index}: cannot be read: {error.strerror}; {path.name} needs this file for its ids"
        ) from error
    except ValueError as error:
        raise InputError(f"{index}: {error}; copy it again") from error
    if not isinstance(rows, dict) or not all(type(row) is int and 0 <= row < images for row in rows.values()):
        raise InputError(f"{index}: is not a dictionary from ids to the {images} rows of {path.name}; copy it again")
    in_order = sorted(rows.items(), key=lambda item: item[1])
    return _once(index, [(parse_id(image_id), row) for image_id, row in in_order])


def _once(path: Path, ids: list[tuple[int | str, int]]) -> dict[int | str, int]:
    """Returns the rows by the ids.

    Raises:
        InputError: An id has several rows.
    """
    rows: dict[int | str, int] = {}
    for image_id, row in ids:
        if rows.setdefault(image_id, row) != row:
            raise InputError(
                f"{path}: image {str(image_id)[:40]} is in the rows {rows[image_id]} and {row}; write this file again"
            )
    return rows


def _data_sets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns those data sets of a file that features have."""
    data = {}
    for name in ("image_features", "image_bb", "spatial_features", "pos_boxes", *_COLUMNS, *LXMERT_LABELS):
        item = data_set(file, name, "SO" if name == "image_id" else "fiu")
        if item is not None:
            data[name] = item
    return data


def _column(data: Mapping[str, h5py.Dataset], name: str) -> np.ndarray:
    """Returns all values of a data set that has one row per image."""
    check_bytes(data[name], name)
    values: np.ndarray = data[name][:]
    if values.dtype.kind == "f":
        raise ValueError(f"{name} has values of the type {values.dtype} instead of integers")
    return values


def _format_of(path: Path, data: Mapping[str, h5py.Dataset]) -> str:
    names = ("image_features", "image_bb", "spatial_features")
    for name in names:
        if name not in data:
            raise InputError(f"{path}: has no data set {name}; give a file in hengyuan-hu's or BAN's layout")
    shapes = {name: data[name].shape for name in (*names, "pos_boxes") if name in data}
    lead = shapes["image_features"][:-1]
    if shapes["image_bb"] == (*lead, 4) and shapes["spatial_features"] == (*lead, 6):
        if len(lead) == 2:
            return "hdf5"
        if len(lead) == 1 and shapes.get("pos_boxes", ())[1:] == (2,):
            return "ban-hdf5"
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise InputError(
        f"{path}: has the shapes {listed}; they must be (N, n, d), (N, n, 4) and (N, n, 6), or (R, ...) with "
        "pos_boxes (N, 2)"
    )


def _size_of(boxes: np.ndarray, spatial: np.ndarray) -> tuple[int, int]:
    size = [0, 0]
    for axis in range(2) if len(boxes) else ():
        farthest = boxes[:, 2 + axis].argmax()
        share = spatial[farthest, 2 + axis].item()
        if share > 0:
            size[axis] = round(boxes[farthest, 2 + axis].item() / share)
    return size[0], size[1]


def _none_if_absent(labels: np.ndarray) -> np.ndarray | None:
    """Returns the labels of an image, or None if the values mean that it has none."""
    first = labels[:1]
    return None if (np.isnan(first) if labels.dtype.kind == "f" else first < 0).any() else labels
