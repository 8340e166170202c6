"""Reads and writes grid features as a folder with one file per image, as grid-feats-vqa publishes them.

``<id>.pth`` is what ``torch.save`` writes for one float32 tensor on the CPU, [1, d, rows, columns]: the feature map of
the resized image, whose cells are 32 pixels wide and high. The format has no place for boxes, for labels and for the
size of the image. As read, an image is therefore ``32 * columns`` wide and ``32 * rows`` high, and the boxes are those
of its cells: they are in pixels of the resized image, whose size is rounded up to whole cells.
"""

import os
import weakref
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from bua.errors import InputError, make_folder
from bua.features.checks import check_regions
from bua.features.ids import ENCODED, MissedIds, file_name, id_of_file_stem, parse_id
from bua.features.indexed import IndexedFeatures
from bua.io.files import check_in_place, move_file, sync_folder, whole_file
from bua.regular_files import open_regular
from bua.structures import Regions

CELL = 32
SUFFIX = ".pth"


class GridPthFeatures(IndexedFeatures[str]):
    """The features in a folder of grid-feats-vqa or bua. The ids are the file names (see ``bua.features.ids``).

    Raises:
        InputError: When it is opened: there is no such folder. When an image is read: its file does not hold a feature
            map; the message names the file.
    """

    format = "grid-pth"

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._places = _list_files(self.path)

    def _read(self, image_id: int | str, place: str) -> Regions:
        feature_map = _read_map(self.path / place)
        dim, rows, columns = feature_map.shape
        features = np.ascontiguousarray(feature_map.reshape(dim, -1).T)
        return Regions(image_id, CELL * columns, CELL * rows, cell_boxes(rows, columns), features)


class GridPthWriter:
    """Writes files into a folder, each of them completely or not at all, even if the machine crashes.

    Attributes:
        done: Ids of the images in the folder.

    Raises:
        InputError: The path is a file, or a folder without .pth files that is not empty.
    """

    def __init__(self, folder: str | Path):
        self.path = make_folder(folder)
        self._folder = os.open(self.path, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._folder)
        self._missed = MissedIds(self.path, ENCODED)
        self.done: set[int | str] = set(_list_files(self.path))
        others = [] if self.done else [name for name in sorted(os.listdir(self.path)) if not name.endswith(".tmp")]
        if others:
            raise InputError(f"{self.path}: holds {others[0]}, and no {SUFFIX} files; choose another output")

    def append(self, regions: Regions) -> None:
        """Writes one image's file.

        Raises:
            InputError: The regions are not the cells of a grid; or the id is empty, or too long for a file name, or a
                number is not finite.
        """
        check_regions(regions)
        name = file_name(regions.image_id, SUFFIX)
        rows, columns = grid_shape(regions)
        # A copy, so that nothing else is stored with it.
        cells = np.array(regions.features.T, np.float32, order="C").reshape(1, -1, rows, columns)
        with whole_file(self.path / name, durable=True) as file:
            torch.save(torch.from_numpy(cells), file)
        self.done.add(parse_id(regions.image_id))
        if name != f"{regions.image_id}{SUFFIX}":
            self._missed.add(regions.image_id)

    def merge(self, part: Path) -> None:
        """Moves the files of another folder here, except those of images in ``done``."""
        for image_id, name in _list_files(part).items():
            if image_id not in self.done:
                move_file(part / name, self.path / name)
                self.done.add(image_id)
        sync_folder(self.path)

    def sync(self) -> None:
        """Checks that the folder is still there. ``append`` syncs each file."""
        check_in_place(self.path, self._folder)

    def finish(self) -> None:
        """Checks that the folder is still there. The format has no other files."""
        check_in_place(self.path, self._folder)
        self._missed.report()

    def close(self) -> None:
        """Closes the folder."""
        self._release()


def cell_boxes(rows: int, columns: int) -> np.ndarray:
    """Returns the boxes of the cells of a feature map in pixels of the resized image, [rows * columns, 4] float32, row
    by row."""
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x, y, x + 1, y + 1], axis=-1).reshape(-1, 4).astype(np.float32) * CELL


def grid_shape(regions: Regions) -> tuple[int, int]:
    """Returns the numbers of rows and columns of the grid whose cells the regions are, row by row.

    Raises:
        InputError: The regions are not the cells of a grid.
    """
    x, y = np.unique(regions.boxes[:, 0]), np.unique(regions.boxes[:, 1])
    shape = len(y), len(x)
    if 0 < len(regions) == len(y) * len(x):
        corners = regions.boxes[:, :2].reshape(*shape, 2)
        if (corners[..., 0] == x).all() and (corners[..., 1] == y[:, None]).all():
            return shape
    raise InputError(
        f"image {regions.image_id}: its {len(regions)} regions are not the cells of a grid, which the format grid-pth "
        "holds; extract with --grid, or use another format"
    )


def _list_files(folder: Path) -> dict[int | str, str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(SUFFIX))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return {id_of_file_stem(name.removesuffix(SUFFIX)): name for name in names}


def _read_map(path: Path) -> np.ndarray:
    """Returns the feature map [d, rows, columns] float32 in a file."""
    try:
        with open_regular(path) as file:
            content = _load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load can raise almost any exception for a file that is damaged
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: is not a file of a tensor, or is damaged ({reason}); extract it again") from error
    if not isinstance(content, torch.Tensor):
        raise InputError(f"{path}: holds a {type(content).__name__} instead of a feature map; remove this file")
    shape = tuple(content.shape)
    if len(shape) != 4 or shape[0] != 1 or 0 in shape or not content.is_floating_point():
        raise InputError(
            f"{path}: holds a tensor of {content.dtype} with the shape {shape}, not a feature map [1, d, rows, "
            "columns]; remove this file"
        )
    return content[0].float().numpy()


def _load(file: BinaryIO) -> object:
    """Returns what ``torch.save`` has written, without executing code from it, and without taking more memory than the
    file has bytes."""
    size = os.fstat(file.fileno()).st_size
    if zipfile.is_zipfile(file):
        file.seek(0)
        if sum(member.file_size for member in zipfile.ZipFile(file).infolist()) > size:
            raise ValueError("it is compressed")
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        if content.layout is not torch.strided or content.device.type != "cpu":
            raise ValueError(f"a tensor on {content.device} with the layout {content.layout}")
        if content.numel() * content.element_size() > size:
            raise ValueError(f"a tensor with the shape {tuple(content.shape)} in {size} bytes")
    return content
