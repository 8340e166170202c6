"""Writes features into HDF5 in the layout of the M2 transformer (aimagelab/meshed-memory-transformer, data/field.py).

The file, ``coco_detections.hdf5`` of its authors, has data sets for each image: ``<id>_features`` [n, d] float32,
``<id>_boxes`` [n, 4] float32, and, where they were kept, the probabilities of all classes ``<id>_cls_prob`` [n, C + 1]
float32 with the background in front. The ids are numbers without leading zeros. bua adds attributes to
``<id>_features``, which M2 ignores: ``image_w``, ``image_h``, and the labels under LXMERT's names.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from bua.errors import InputError
from bua.features.checks import check_regions
from bua.features.hdf5_access import check_bytes, data_set, open_hdf5, report_damage
from bua.features.hdf5_files import FullDiskSafeFile
from bua.features.ids import parse_id
from bua.features.labels import FLOAT, labels_of
from bua.features.lmdb import LmdbFeatures, LmdbWriter
from bua.features.probabilities import with_background
from bua.features.readers import check_ids
from bua.io.files import whole_file
from bua.structures import Regions

_FEATURES = "_features"
# What is kept of how a data set is stored.
_LAYOUT = ("maxshape", "chunks", "compression", "compression_opts", "shuffle", "fletcher32")
# Number of images between checks for a full disk.
_BLOCK = 32


class DetectionsWriter:
    """Adds images to an HDF5 file of the M2 transformer, which ``finish`` creates.

    An HDF5 file is damaged if its writer is killed. Therefore, images are first written to an LMDB,
    ``<path>.partial``. ``finish`` copies the images of the existing file and the new ones into a new file, which
    replaces the existing one, and then deletes the LMDB.

    Attributes:
        done: Ids of the images in the file and in the LMDB.

    Raises:
        InputError: The file holds something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._staging = self.path.with_name(f"{self.path.name}.partial")
        self._discarded = self.path.with_name(f"{self.path.name}.partial.old")
        if self._discarded.exists():
            shutil.rmtree(self._discarded)
        written = _ids_in(self.path) if self.path.exists() else set()
        self._staged = LmdbWriter(self._staging)
        self._finished = False
        self.done: set[int | str] = self._staged.done | written

    def append(self, regions: Regions) -> None:
        """Adds one image.

        Raises:
            InputError: Its id is not a number or is already in the output, or a number is not finite.
        """
        image_id = parse_id(regions.image_id)
        check_ids("m2", [image_id])
        if image_id in self.done:
            raise InputError(f"image id {image_id!r}: is already in the output")
        self._staged.append(regions)
        self.done.add(image_id)

    def sync(self) -> None:
        self._staged.sync()

    def finish(self) -> None:
        """Writes the HDF5 file, and deletes the LMDB."""
        self._staged.finish()
        self.close()
        self._finished = True
        if self.done:
            self._write(LmdbFeatures(self._staging))
        # The folder is renamed first, since deleting it takes several steps, and renaming it only one.
        os.replace(self._staging, self._discarded)
        shutil.rmtree(self._discarded)

    def close(self) -> None:
        if not self._finished:
            self._staged.close()

    def _write(self, staged: Mapping[int | str, Regions]) -> None:
        with (
            whole_file(self.path, durable=True, locked=True) as file,
            FullDiskSafeFile(file.name, "r+") as raw,
        ):
            with h5py.File(raw, "w") as hdf5:
                if self.path.exists():
                    _copy_file(self.path, hdf5)
                for number, image_id in enumerate(staged):
                    if f"{image_id}{_FEATURES}" not in hdf5:
                        _write_image(hdf5, staged[image_id])
                    if number % _BLOCK == 0:
                        raw.check()
            raw.check()


def _copy_file(path: Path, hdf5: h5py.File) -> None:
    """Copies the data sets of a file, with those of their attributes that are numbers.

    They are read and written again, since HDF5's own function that copies them crashes for some damaged files. So does
    reading what a damaged data set would have in places that were never written, which is why this is not copied.
    """
    advice = "move it away, and run the same command again to write its images anew"
    with report_damage(f"{path}", advice), open_hdf5(path) as old:
        for name in old:
            data = data_set(old, name)
            if data is None:
                raise ValueError(f"{name} is not a data set")
            check_bytes(data, name)
            layout = {key: getattr(data, key) for key in _LAYOUT}
            copy = hdf5.create_dataset(name, data=data[()], **layout)
            for label in data.attrs:
                if data.attrs.get_id(label).dtype.kind in "fiu":
                    copy.attrs[label] = data.attrs[label]


def _write_image(hdf5: h5py.File, regions: Regions) -> None:
    check_regions(regions)
    name = str(regions.image_id)
    for field in ("_boxes", "_cls_prob"):
        if f"{name}{field}" in hdf5:
            del hdf5[f"{name}{field}"]  # they are left of a damaged file, whose features of this image are missing
    features = hdf5.create_dataset(f"{name}{_FEATURES}", data=np.asarray(regions.features, FLOAT))
    hdf5[f"{name}_boxes"] = np.asarray(regions.boxes, FLOAT)
    if regions.class_probs is not None:
        hdf5[f"{name}_cls_prob"] = with_background(regions.class_probs)
    features.attrs["image_w"], features.attrs["image_h"] = int(regions.width), int(regions.height)
    for label, values, dtype in labels_of(regions):
        features.attrs[label] = np.asarray(values, dtype)


def _ids_in(path: Path) -> set[int | str]:
    with report_damage(f"{path}", "choose another output"), open_hdf5(path) as hdf5:
        ids = {parse_id(name.removesuffix(_FEATURES)) for name in hdf5 if name.endswith(_FEATURES)}
    if not ids:
        raise InputError(f"{path}: is not a file of the M2 transformer; choose another output")
    return ids
