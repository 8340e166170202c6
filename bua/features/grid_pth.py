"""Reads and writes grid features as a folder with one file per image, as grid-feats-vqa publishes them.

``<id>.pth`` is what ``torch.save`` writes for one float32 tensor on the CPU, [1, d, rows, columns]: the feature map of
the resized image, whose cells are 32 pixels wide and high. The format has no place for boxes, for labels and for the
size of the image. As read, an image is therefore ``32 * columns`` wide and ``32 * rows`` high, and the boxes are those
of its cells: they are in pixels of the resized image, whose size is rounded up to whole cells.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from bua.errors import InputError
from bua.features.checks import check_regions
from bua.features.folder_writer import FolderWriter, files_by_id
from bua.features.ids import file_name
from bua.features.indexed import IndexedFeatures
from bua.io.files import whole_file
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
        self._places = files_by_id(self.path, SUFFIX)

    def _read(self, image_id: int | str, place: str) -> Regions:
        feature_map = _read_map(self.path / place)
        dim, rows, columns = feature_map.shape
        features = np.ascontiguousarray(feature_map.reshape(dim, -1).T)
        return Regions(image_id, CELL * columns, CELL * rows, cell_boxes(rows, columns), features)


class GridPthWriter(FolderWriter):
    """Writes feature maps into a folder. The argument and errors are those of ``FolderWriter``."""

    def __init__(self, folder: str | Path):
        super().__init__(folder, SUFFIX)

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
        with whole_file(self.path / name, durable=True, locked=True) as file:
            torch.save(torch.from_numpy(cells), file)
        self._add(regions.image_id, found=name == f"{regions.image_id}{SUFFIX}")

    @staticmethod
    def _files(folder: Path) -> dict[int | str, Sequence[str]]:
        return {image_id: [name] for image_id, name in files_by_id(folder, SUFFIX).items()}


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
    columns, rows = (len(np.unique(regions.boxes[:, axis])) for axis in range(2))
    if 0 < len(regions) == rows * columns:
        boxes = regions.boxes.reshape(rows, columns, 4)
        if _adjoin(boxes[..., 0::2], regions.width) and _adjoin(boxes.swapaxes(0, 1)[..., 1::2], regions.height):
            return rows, columns
    raise InputError(
        f"image {regions.image_id}: its {len(regions)} regions are not the cells of a grid, which the format grid-pth "
        "holds; extract with --grid, or use another format"
    )


def _adjoin(sides: np.ndarray, size: int) -> bool:
    """Whether the cells of a grid adjoin each other along one axis, from 0 on, and reach over most of the image. One
    region would be a grid otherwise, whatever its box.

    Args:
        sides: [..., cells, 2], where each cell begins and ends on this axis.
        size: Of the image on this axis.
    """
    begins, ends = sides[..., 0], sides[..., 1]
    adjoin = (begins == begins[:1]).all() and (begins[:, 0] == 0).all() and np.allclose(ends[:, :-1], begins[:, 1:])
    # A feature map may lack the part of the image after its last whole cell.
    return bool(adjoin and ends.max() > size / 2)


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
