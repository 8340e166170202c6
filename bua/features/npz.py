"""Features as a folder with one npz file a picture, under the keys of MILVLG/bottom-up-attention.pytorch.

``x`` [n, d] and ``bbox`` [n, 4] float32, ``num_bbox``, ``image_h``, ``image_w``. MILVLG keeps labels in a pickled
dictionary ``info``, which is not read here: loading a pickle runs whatever it says. They are plain arrays under
``info``'s own keys instead: ``objects_id``, ``attrs_id`` int64, ``objects_conf``, ``attrs_conf`` float32, each [n].
"""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.features.ids import file_stem, id_of_file_stem, parse_id
from bua.features.tsv import LABELS
from bua.files import whole_file
from bua.structures import Regions


class NpzFeatures(Mapping[int | str, Regions]):
    """The features in a folder of npz files, bua's or MILVLG's; ids are the file names (see ``bua.features.ids``).

    Raises:
        InputError: when opened: no such folder; when a picture is read: names its file and what is wrong.
    """

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
    """Writes npz files into a folder, each whole or not at all.

    Attributes:
        done: the ids in the folder.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; the npz format needs a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self.done: set[int | str] = set(_list(self.path))

    def append(self, regions: Regions) -> None:
        """Writes one picture's file.

        Raises:
            InputError: the id is empty or longer than a file name may be.
        """
        name = f"{file_stem(regions.image_id)}.npz"
        if name == ".npz" or len(os.fsencode(name)) > 230:
            raise InputError(f"image id {str(regions.image_id)[:40]!r}: empty or too long for the name of a file")
        arrays = {
            "x": np.asarray(regions.features, np.float32),
            "bbox": np.asarray(regions.boxes, np.float32),
            "num_bbox": len(regions),
            "image_h": regions.height,
            "image_w": regions.width,
        }
        for key, (attribute, dtype) in LABELS.items():
            labels = getattr(regions, attribute)
            if labels is not None:
                arrays[key] = np.asarray(labels, dtype)
        # Not compressed: that saves a third, and takes longer than all the rest of writing and reading.
        with whole_file(self.path / name, shared=True) as file:
            np.savez(file, **arrays)
        self.done.add(parse_id(regions.image_id))

    def close(self) -> None:
        """Nothing stays open between files."""


def _list(folder: Path) -> dict[int | str, str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".npz"))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return {id_of_file_stem(name.removesuffix(".npz")): name for name in names}


def _read(path: Path, image_id: int | str) -> Regions:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features, boxes = arrays["x"].astype(np.float32), arrays["bbox"].astype(np.float32)
            labels = {
                attribute: arrays[key].astype(dtype) for key, (attribute, dtype) in LABELS.items() if key in arrays
            }
            width, height = int(arrays["image_w"]), int(arrays["image_h"])
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; not a file of features") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as npz ({error}); extract this picture again") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2 or len(features) != len(boxes):
        raise InputError(f"{path}: x is {features.shape} and bbox {boxes.shape}; need (n, d) and (n, 4)")
    return Regions(image_id=image_id, width=width, height=height, boxes=boxes, features=features, **labels)
