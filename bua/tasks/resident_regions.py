"""Keeps the regions of a data set's images in the memory of a device, from which batches are gathered."""

import logging

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bua.errors import InputError
from bua.tasks.read_ahead import read_ahead
from bua.tasks.region_batches import RegionReader
from bua.upload import upload

# Values of DATA.ON_DEVICE; None is the default and means the same as False.
ON_DEVICE = (None, False, True, "auto")
# Largest share of a GPU's free memory that the regions may take; the rest is for the training.
MEMORY_SHARE = 0.8
# Bytes of a region's box.
BOX_BYTES = 16
# Number of images that are read at a time.
IMAGES_AT_A_TIME = 256

logger = logging.getLogger(__name__)


class ResidentReader(RegionReader):
    """Reads the regions of images from the memory of a device instead of from files.

    ``read`` returns tensors on the device. They are, to the bit, what ``reader`` reads.

    Args:
        reader: Reader of files in the flat format.
        image_ids: [N] ids of the images whose regions are kept; an id may occur several times.
        device: The device.
        name: Name of the data set, for the message about images without features.
        threads: Number of threads that read the files.
        progress: Whether to show a progress bar.

    Attributes:
        device: The device.
        features: [R + 1, D] in the dtype of the files, the features of all R regions; the last row, which stands for
            padding, is 0.
        boxes: [R + 1, 4] float32 x1y1x2y2 in fractions of the image's width and height; the last row is 0.

    Raises:
        InputError: Some images have no features, or a file is not in the flat format.
    """

    def __init__(
        self,
        reader: RegionReader,
        image_ids: np.ndarray,
        device: torch.device | str,
        *,
        name: str = "image_ids",
        threads: int = 2,
        progress: bool = True,
    ):
        super().__init__(reader.stores, names=[reader.name], pin_memory=reader.pin_memory)
        self.device = torch.device(device)
        self._ids = np.unique(image_ids)
        stores = reader.locate(self._ids, name)
        self._counts = _num_boxes(reader, self._ids, stores)
        # The rows are in the order of the files, which is the fastest one to read.
        order = np.lexsort((reader.places(self._ids, stores), stores))
        self._starts = np.empty_like(self._counts)
        self._starts[order] = np.cumsum(self._counts[order]) - self._counts[order]
        self._padding = int(self._counts.sum())
        self.features = torch.zeros(self._padding + 1, self.dim, dtype=self.dtype, device=self.device)
        self.boxes = torch.zeros(self._padding + 1, 4, device=self.device)

        def read(chosen: np.ndarray) -> tuple[int, Tensor, Tensor]:
            features, boxes, mask = reader.read(self._ids[chosen], stores[chosen])
            return len(chosen), _rows(features, mask), _rows(boxes, mask)

        parts = (order[start : start + IMAGES_AT_A_TIME] for start in range(0, len(order), IMAGES_AT_A_TIME))
        start = 0
        with tqdm(total=len(order), desc=f"features to {self.device}", unit=" images", disable=not progress) as bar:
            for count, features, boxes in read_ahead(read, parts, threads):
                end = start + len(features)
                self.features[start:end], self.boxes[start:end] = features, boxes
                start = end
                bar.update(count)
        if self.device.type == "cuda":
            # Batches are gathered on other streams than this one.
            torch.cuda.synchronize(self.device)

    def read(
        self, image_ids: np.ndarray, stores: np.ndarray, max_boxes: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ``features``, ``boxes`` and ``mask`` as ``RegionReader.read`` does, on the device.

        On a GPU, they are gathered on the current stream, without waiting for it.

        Raises:
            KeyError: The regions of an image are not kept.
        """
        rows = np.minimum(np.searchsorted(self._ids, image_ids), len(self._ids) - 1)
        others = image_ids[self._ids[rows] != image_ids]
        if len(others):
            raise KeyError(others[0])
        counts = self._counts[rows]
        chosen: dict[int, np.ndarray] = {}
        if max_boxes is not None and counts.max() > max_boxes:
            chosen = self.rows_of_images(image_ids, stores, max_boxes)
            counts = np.minimum(counts, max_boxes)
        places = np.arange(max(1, int(counts.max())))
        is_region = places < counts[:, None]
        indices = np.where(is_region, self._starts[rows][:, None] + places, self._padding)
        for image, regions in chosen.items():
            indices[image] = self._starts[rows[image]] + regions
        on_device = upload(torch.from_numpy(indices), self.device)
        features, boxes = (
            part.index_select(0, on_device.flatten()).view(*on_device.shape, -1) for part in (self.features, self.boxes)
        )
        return features, boxes, on_device != self._padding


def on_device(
    reader: RegionReader,
    image_ids: np.ndarray,
    device: torch.device | str,
    setting: bool | str | None,
    *,
    threads: int = 2,
    progress: bool = True,
) -> RegionReader:
    """Returns a reader that keeps the regions of images on a device, or ``reader`` itself, as ``DATA.ON_DEVICE`` says.

    Args:
        image_ids, device, threads, progress: As for ``ResidentReader``.
        setting: True keeps them on the device. "auto" keeps them on a GPU if they fit into ``MEMORY_SHARE`` of its free
            memory, and warns if they do not. Otherwise, batches are read from the files.

    Raises:
        InputError: With True, the regions do not fit, or a file is not in the flat format.
    """
    device = torch.device(device)
    if not setting or (setting == "auto" and device.type == "cpu"):
        return reader
    try:
        _check_size(reader, image_ids, device)
    except InputError as error:
        if setting != "auto":
            raise
        logger.warning("%s; the features are read from their files during the training", error)
        return reader
    return ResidentReader(reader, image_ids, device, threads=threads, progress=progress)


def free_memory(device: torch.device) -> int | None:
    """Returns the free memory of a GPU in bytes; None for the CPU, whose free memory is not known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _rows(part: Tensor, mask: Tensor) -> Tensor:
    """Returns [R, ...], the rows of a part [B, n, ...] of a batch where ``mask`` [B, n] is true."""
    return part.flatten(0, 1) if mask.all() else part[mask]


def _check_size(reader: RegionReader, image_ids: np.ndarray, device: torch.device) -> None:
    ids = np.unique(image_ids)
    counts = _num_boxes(reader, ids, reader.locate(ids, "image_ids"))
    size = (int(counts.sum()) + 1) * (reader.dim * reader.dtype.itemsize + BOX_BYTES)
    free = free_memory(device)
    if free is not None and size > MEMORY_SHARE * free:
        raise InputError(
            f"DATA.ON_DEVICE: the features of {len(ids)} images take {size / 2**30:.1f} GiB, which is more than "
            f"{MEMORY_SHARE:.0%} of the {free / 2**30:.1f} GiB that are free on {device}; set it to False, or extract "
            "fewer boxes or the format flat-fp16"
        )


def _num_boxes(reader: RegionReader, image_ids: np.ndarray, stores: np.ndarray) -> np.ndarray:
    counts = reader.num_boxes(image_ids, stores)
    if counts is None:
        raise InputError(
            f"DATA.ON_DEVICE: {reader.name} is not in the flat format; convert it with bua convert-features "
            "--format flat-fp16, or set DATA.ON_DEVICE to False"
        )
    return counts
