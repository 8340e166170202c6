"""Reads HDF5 files that have data sets for each image.

- VL-T5 (j-min/VL-T5, feature_extraction) and Volta (e-bug/volta, features_extraction) have a group for each image, with
  ``features`` [n, d], ``boxes`` [n, 4] x1y1x2y2 in pixels, ``img_w``, ``img_h``, and the labels ``obj_id``,
  ``obj_conf``, ``attr_id`` and ``attr_conf`` [n].
- The M2 transformer (aimagelab/meshed-memory-transformer, data/field.py) has ``<id>_features`` [n, d], ``<id>_boxes``
  [n, 4] and ``<id>_cls_prob`` [n, 1601], of which the first column is the background. It has no sizes of images. bua's
  files for it have them, and the labels under LXMERT's names, as attributes of ``<id>_features``.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bua.errors import InputError
from bua.features.hdf5_access import check_bytes, data_set, open_hdf5, report_damage
from bua.features.ids import parse_id
from bua.features.indexed import NO_BOXES, NO_SIZES, IndexedFeatures, without_boxes
from bua.features.labels import LABEL_FIELDS, LXMERT_LABELS, VLT5_LABELS, best_objects
from bua.structures import Regions

_M2_SUFFIX = "_features"


class Hdf5ImageFeatures(IndexedFeatures[str]):
    """The features in an HDF5 file of VL-T5, of Volta or for the M2 transformer, which are read image by image.

    Many processes and threads can read from the same object, also after it was forked or pickled to them.

    Attributes:
        format: "hdf5".

    Raises:
        InputError: When it is opened: there is no such file, or it does not hold features. When an image is read: it
            cannot be decoded; the message names it.
    """

    format = "hdf5"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._opened: tuple[int, h5py.File | None] = (0, None)
        with report_damage(f"{self.path}"):
            file = self._file()
            names = list(file)
            m2 = [name for name in names if name.endswith(_M2_SUFFIX)]
            groups = [] if m2 else [name for name in names if _is_group(file, name)]
        self._m2 = bool(m2)
        self._places = {parse_id(name.removesuffix(_M2_SUFFIX)): name for name in m2 or groups}
        if not self._places:
            raise InputError(
                f"{self.path}: has neither a data set image_features nor data sets or groups of images; name another"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": (0, None)}

    def _file(self) -> h5py.File:
        """Returns the file, which each process opens for itself, since processes would share the file position."""
        process, file = self._opened
        if file is None or process != os.getpid():
            if file is not None:
                file.close()
            file = open_hdf5(self.path)
            self._opened = (os.getpid(), file)
        return file

    def _read(self, image_id: int | str, place: str) -> Regions:
        with report_damage(f"{self.path}: image {str(image_id)[:40]}"):
            return self._read_m2(image_id, place) if self._m2 else self._read_group(image_id, place)

    def _read_group(self, image_id: int | str, name: str) -> Regions:
        file = self._file()
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Group):
            raise ValueError(f"{name} is not a group")
        group = file[name]
        width, height = (int(_values(group, field).item()) for field in ("img_w", "img_h"))
        features, boxes = (np.asarray(_values(group, field), np.float32) for field in ("features", "boxes"))
        fields = {field: _values(group, field) for field in VLT5_LABELS if field in group}
        labels = {VLT5_LABELS[field][0]: values.astype(VLT5_LABELS[field][1]) for field, values in fields.items()}
        return _checked(Regions(image_id, width, height, boxes, features, **labels))

    def _read_m2(self, image_id: int | str, name: str) -> Regions:
        file, prefix = self._file(), name.removesuffix(_M2_SUFFIX)
        features = np.asarray(_values(file, name), np.float32)
        if f"{prefix}_boxes" not in file:
            self._note(NO_BOXES)
            return _checked(without_boxes(image_id, features))
        boxes = np.asarray(_values(file, f"{prefix}_boxes"), np.float32)
        labels: dict[str, Any] = {}
        if f"{prefix}_cls_prob" in file:
            field = f"{prefix}_cls_prob"
            labels = best_objects(_values(file, field), len(features), field)
        for field, (attribute, dtype) in LXMERT_LABELS.items():
            if field in file[name].attrs:
                labels[attribute] = _attribute(file[name], field).astype(dtype)
        width = height = 0
        if "image_w" in file[name].attrs:
            width, height = (int(_attribute(file[name], field).item()) for field in ("image_w", "image_h"))
        else:
            self._note(NO_SIZES)
        return _checked(Regions(image_id, width, height, boxes, features, **labels))


def _is_group(file: h5py.File, name: str) -> bool:
    """Whether a name is that of a group, or of nothing that can be opened, which is an error of its image alone."""
    try:
        return file.get(name, getclass=True) in (h5py.Group, None)
    except (OSError, RuntimeError, LookupError, ValueError):  # such as for a link onto itself
        return True


def _values(group: h5py.Group, name: str) -> np.ndarray:
    data = data_set(group, name)
    if data is None:
        raise ValueError(f"{name}: is missing")
    check_bytes(data, name)
    return np.asarray(data[()])


def _attribute(data: h5py.Dataset, name: str) -> np.ndarray:
    if data.attrs.get_id(name).dtype.kind not in "fiu":
        raise ValueError(f"the attribute {name} has values of the type {data.attrs.get_id(name).dtype}")
    return np.asarray(data.attrs[name])


def _checked(regions: Regions) -> Regions:
    if regions.features.ndim != 2:
        raise ValueError(f"features has the shape {regions.features.shape} instead of (n, d)")
    count = len(regions.features)
    shapes: dict[str, tuple[int, ...]] = {"boxes": (count, 4)} | dict.fromkeys(LABEL_FIELDS, (count,))
    for field, shape in shapes.items():
        values = getattr(regions, field)
        if values is not None and values.shape != shape:
            raise ValueError(f"{field} has the shape {values.shape} instead of {shape}")
    return regions
