"""Batches of images' regions, read from files of features while a model computes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bua.engine.loader import TrainingLoader
from bua.errors import InputError, first_of
from bua.features import FeatureStore, open_features
from bua.features.flat import Batch, FlatFeatures
from bua.structures import Regions
from bua.tasks.confident_regions import confident_regions, confident_rows
from bua.tasks.read_ahead import read_ahead, read_ahead_on
from bua.upload import upload

# A batch takes images whose numbers of boxes fall into one range of this width.
BOXES_PER_BUCKET = 4

BatchT = TypeVar("BatchT", bound="RegionBatch")


@dataclass
class RegionBatch:
    """The regions of the images of B items, such as questions.

    Attributes:
        features: [B, n, D] float32, or float16 if they were read from features in float16; 0 in padding.
        boxes: [B, n, 4] float32 x1y1x2y2 in fractions of the image's width and height; 0 in padding.
        mask: [B, n] bool, false for padding.
        image_ids: [B] ids of the items' images, always on the CPU.
    """

    features: Tensor
    boxes: Tensor
    mask: Tensor
    image_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def of_image(cls, regions: Regions, max_boxes: int | None = None) -> "RegionBatch":
        """Returns the regions of one image as a batch of one item.

        Args:
            max_boxes: Number of regions to take, the most confident ones (``confident_rows``); None takes all.
        """
        regions = confident_regions(regions, max_boxes)
        features = torch.from_numpy(regions.features)[None]
        boxes = torch.from_numpy(regions.boxes / _corners(np.array([regions.width, regions.height])))[None]
        return RegionBatch(features, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), np.array([regions.image_id]))

    def to(self: BatchT, device: torch.device | str) -> BatchT:
        """Returns the batch on a device, with features in float32. Copies to a GPU are asynchronous."""
        moved: dict[str, Any] = {
            name: upload(value, device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return type(self)(**moved | {"features": moved["features"].float()})

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of the tensors on a GPU until ``stream`` has done what it is given while the batch lives."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)

    def without_regions(self: BatchT) -> BatchT:
        """Returns the batch with all regions masked, for a model that is trained without looking at images."""
        return replace(self, mask=torch.zeros_like(self.mask))


class BatchMaker:
    """Makes batches of the items at given indices of a data set. Subclasses add more than the regions.

    Args:
        image_ids: [N] id of each item's image.
        reader: Reader of features that have all these images.
        name: Name of the data set, for the message about images without features.
        max_boxes: Number of regions to take of each image, the most confident ones (``confident_rows``); None takes
            all.

    Attributes:
        num_boxes: [N] number of regions of each item's image, or None if the files do not tell without being read.

    Raises:
        InputError: Some images have no features.
    """

    def __init__(self, image_ids: np.ndarray, reader: "RegionReader", name: str, max_boxes: int | None = None):
        self.image_ids, self.reader, self.max_boxes = image_ids, reader, max_boxes
        self.stores = reader.locate(image_ids, name)
        self.num_boxes = reader.num_boxes(image_ids, self.stores)
        if self.num_boxes is not None and max_boxes is not None:
            self.num_boxes = np.minimum(self.num_boxes, max_boxes)

    def __call__(self, indices: Any) -> RegionBatch:
        """Returns the batch of the items at ``indices`` [B], in the order of ``in_order``. Subclasses may take more."""
        return RegionBatch(**self.regions(self.in_order(indices)))

    def in_order(self, indices: np.ndarray) -> np.ndarray:
        """Returns indices in the order that ``regions`` needs: the images of one file after those of another."""
        return indices[np.argsort(self.stores[indices], kind="stable")]

    def regions(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns the fields of the items' ``RegionBatch``."""
        image_ids = self.image_ids[indices]
        features, boxes, mask = self.reader.read(image_ids, self.stores[indices], self.max_boxes)
        return {"features": features, "boxes": boxes, "mask": mask, "image_ids": image_ids}


class RegionLoader(TrainingLoader):
    """Yields batches without end, as ``TrainingLoader`` does: the order depends on the random seed, and a resumed run
    continues it. Threads read the batches in advance.

    If the features are in the flat format, the images of a batch have similar numbers of boxes, so that little of it is
    padding. At most ``threads`` + 2 batches are in memory, or on the device.

    Args:
        make: Makes a batch from what ``_shares`` yields. An epoch has each of its items once.
        batch_size: Number of items of a batch, over all processes.
        seed: Random seed of the order.
        threads: Number of threads that read; with 0, a batch is read when it is asked for.
        device: Device that batches are on, as ``RegionBatch.to`` copies them; None leaves them as they were read.
        process_index, num_processes: Which share of each batch this process gets.

    Raises:
        InputError: There are no items, or a batch cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        make: BatchMaker,
        batch_size: int,
        *,
        seed: int,
        threads: int = 2,
        device: torch.device | str | None = None,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        super().__init__(
            range(len(make.image_ids)),
            make,
            batch_size,
            seed=seed,
            groups=None if make.num_boxes is None else make.num_boxes // BOXES_PER_BUCKET,
            process_index=process_index,
            num_processes=num_processes,
        )
        self.threads, self.device = threads, device

    def __iter__(self) -> Iterator[RegionBatch]:
        for batch in _batches(self.mapper, self._shares(), self.threads, self.device):
            self._advance()
            yield batch

    def _shares(self) -> Iterator[Any]:
        """Yields the indices [B] of the items of each batch, or what else ``make`` takes."""
        for share in self._batches(self.epoch, self.position):
            yield np.array([index for _, index in share])


def every_item_once(
    make: BatchMaker, batch_size: int, threads: int = 2, device: torch.device | str | None = None
) -> Iterator[Any]:
    """Yields the batch that ``make`` makes of every item once, for evaluation.

    Items about one image, and about images with similar numbers of boxes, come together. The last batch may be
    smaller. ``threads`` and ``device`` are those of ``RegionLoader``.
    """
    ids = make.image_ids
    order = np.lexsort((ids, np.zeros(len(ids)) if make.num_boxes is None else make.num_boxes))
    shares = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return _batches(make, shares, threads, device)


class RegionReader:
    """Reads the regions of images into tensors, from one or several files of features.

    Features in the flat format are read at the speed of memory, without conversion from float16. Other formats are
    decoded image by image.

    Args:
        stores: Feature stores, as ``open_features`` gives them. An image is read from the first that has it.
        names: Names of their files, for messages.
        pin_memory: Whether to read into page-locked memory, from which copies to a GPU are asynchronous.

    Attributes:
        name: Names of the files, for messages.
        dim: D, the feature dimension.

    Raises:
        InputError: No store has any regions, or the stores differ in their feature dimension.
    """

    def __init__(
        self, stores: Sequence[FeatureStore], *, names: Sequence[str] = ("features",), pin_memory: bool = False
    ):
        self.stores, self.name, self.pin_memory = list(stores), " + ".join(names), pin_memory
        dims = sorted({_dim(store) for store in self.stores} - {0})
        if not dims:
            raise InputError(f"{self.name}: no image has any regions; extract them again")
        if len(dims) > 1:
            raise InputError(
                f"{self.name}: the feature dimension is {dims[0]} in one and {dims[-1]} in another; use files of one "
                "detector"
            )
        self.dim = dims[0]
        is_half = all(isinstance(store, FlatFeatures) and store.dtype == np.float16 for store in self.stores)
        self.dtype = torch.float16 if is_half else torch.float32

    @classmethod
    def open(cls, paths: Iterable[str | Path], *, pin_memory: bool = False) -> "RegionReader":
        """Opens files or folders in any format.

        Raises:
            InputError: No path is given, or one cannot be opened.
        """
        names = list(map(str, paths))
        if not names:
            raise InputError("features: no files given; name files that have all the images")
        return cls([open_features(name) for name in names], names=names, pin_memory=pin_memory)

    def locate(self, image_ids: np.ndarray, name: str) -> np.ndarray:
        """Returns the indices [N] of the stores that have the images.

        Args:
            image_ids: [N] ids of images.
            name: Name of the data set that the images are of, for the message.

        Raises:
            InputError: No store has some of the images. The message says how many, and the first of them.
        """
        different, places = np.unique(image_ids, return_inverse=True)
        found = np.full(len(different), -1)
        for number, image_id in enumerate(different.tolist()):
            found[number] = next((i for i, store in enumerate(self.stores) if image_id in store), -1)
        missing = different[found < 0].tolist()
        if missing:
            raise InputError(
                f"{self.name}: lacks {len(missing)} of the {len(different)} images of {name}: {first_of(missing)}; "
                "extract features of these images too, or also name the file that has them"
            )
        return found[places]

    def num_boxes(self, image_ids: np.ndarray, stores: np.ndarray) -> np.ndarray | None:
        """Returns the number of regions [N] of each image, or None if the files do not tell without being read.

        Args:
            image_ids: [N] ids of images.
            stores: [N] as ``locate`` gives them.
        """
        counts = np.zeros(len(image_ids), np.int64)
        for number, store in enumerate(self.stores):
            if not isinstance(store, FlatFeatures):
                return None
            chosen = stores == number
            counts[chosen] = store.counts[store.rows(image_ids[chosen])]
        return counts

    def places(self, image_ids: np.ndarray, stores: np.ndarray) -> np.ndarray:
        """Returns [N] int64, the first region of each image in its file, which must be in the flat format.

        Args:
            image_ids, stores: As for ``num_boxes``.
        """
        places = np.zeros(len(image_ids), np.int64)
        for number, store in enumerate(self.stores):
            chosen = stores == number
            if isinstance(store, FlatFeatures):
                places[chosen] = store.offsets[store.rows(image_ids[chosen])]
        return places

    def rows_of_images(self, image_ids: np.ndarray, stores: np.ndarray, max_boxes: int) -> dict[int, np.ndarray]:
        """Returns ``confident_rows`` of those images that have more than ``max_boxes`` regions, by their position.

        Args:
            image_ids, stores: [B], of files in the flat format.
        """
        chosen: dict[int, np.ndarray | None] = {}
        for number in np.unique(stores):
            store, positions = self.stores[number], np.flatnonzero(stores == number)
            chosen.update(zip(positions.tolist(), _rows_in_flat(store, image_ids[positions].tolist(), max_boxes)))
        return {position: rows for position, rows in chosen.items() if rows is not None}

    def read(
        self, image_ids: np.ndarray, stores: np.ndarray, max_boxes: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ``features``, ``boxes`` and ``mask`` of a ``RegionBatch``, where n is at least 1.

        Args:
            image_ids: [B] ids of images.
            stores: [B] as ``locate`` gives them, in ascending order.
            max_boxes: As for ``BatchMaker``.
        """
        parts = [(self.stores[number], image_ids[stores == number].tolist()) for number in np.unique(stores)]
        read = [_counts_and_regions(store, ids, max_boxes) for store, ids in parts]
        most = max(1, *(int(counts.max()) for counts, _ in read))
        features = torch.empty((len(image_ids), most, self.dim), dtype=self.dtype, pin_memory=self.pin_memory)
        boxes = np.zeros((len(image_ids), most, 4), np.float32)
        start = 0
        for (store, ids), (_, regions) in zip(parts, read):
            rows = slice(start, start + len(ids))
            if regions is None:
                _read_flat(store, ids, features[rows].numpy(), boxes[rows], max_boxes)
            else:
                _copy(regions, features[rows].numpy(), boxes[rows])
            start += len(ids)
        counts = np.concatenate([counts for counts, _ in read])
        mask = np.arange(most) < counts[:, None]
        return features, torch.from_numpy(boxes), torch.from_numpy(mask)


def _batches(
    make: Callable[[Any], RegionBatch], shares: Iterable[Any], threads: int, device: torch.device | str | None
) -> Iterator[RegionBatch]:
    return read_ahead(make, shares, threads) if device is None else read_ahead_on(device, make, shares, threads)


def _dim(store: FeatureStore) -> int:
    """Returns the feature dimension, or 0 if there are no regions."""
    if isinstance(store, FlatFeatures):
        return store.dim
    return next((regions.features.shape[1] for regions in store.values() if len(regions)), 0)


def _counts_and_regions(
    store: FeatureStore, ids: list[int], max_boxes: int | None
) -> tuple[np.ndarray, list[Regions] | None]:
    """Returns the number of regions of each image, and the regions; None instead of the regions in the flat format,
    which ``_read_flat`` reads."""
    if isinstance(store, FlatFeatures):
        counts = store.counts[store.rows(ids)].astype(np.int64)
        return counts if max_boxes is None else np.minimum(counts, max_boxes), None
    once = {image_id: confident_regions(store[image_id], max_boxes) for image_id in dict.fromkeys(ids)}
    regions = [once[image_id] for image_id in ids]
    return np.array([len(image) for image in regions]), regions


def _read_flat(
    store: FlatFeatures, ids: list[int], features: np.ndarray, boxes: np.ndarray, max_boxes: int | None
) -> None:
    most = int(store.counts[store.rows(ids)].max(initial=0))
    fits = store.dtype == features.dtype and most <= features.shape[1]
    batch = store.read(ids, out=features if fits else None)
    if max_boxes is not None and most > max_boxes:
        batch = _cut(batch, _rows_in_flat(store, ids, max_boxes), max_boxes)
        most = max_boxes
    if not fits:
        features[:, :most] = batch.features
    features[:, most:] = 0
    boxes[:, :most] = batch.boxes / _corners(batch.sizes)[:, None]


def _rows_in_flat(store: FeatureStore, ids: list[int], max_boxes: int) -> list[np.ndarray | None]:
    """Returns ``confident_rows`` of each image."""
    assert isinstance(store, FlatFeatures)
    rows = store.rows(ids)
    return [
        confident_rows(count, store.object_scores(row), max_boxes) if count > max_boxes else None
        for row, count in zip(rows.tolist(), store.counts[rows].tolist())
    ]


def _cut(batch: Batch, rows: list[np.ndarray | None], number: int) -> Batch:
    """Returns a batch with ``number`` regions of each image: those in its ``rows``, or else the first ones."""
    first = np.arange(number)
    indices = np.stack([first if chosen is None else chosen for chosen in rows])[:, :, None]
    features, boxes = (np.take_along_axis(part, indices, axis=1) for part in (batch.features, batch.boxes))
    return batch._replace(features=features, boxes=boxes, counts=np.minimum(batch.counts, number))


def _copy(regions: list[Regions], features: np.ndarray, boxes: np.ndarray) -> None:
    for row, image in enumerate(regions):
        count = len(image)
        if count:
            features[row, :count] = image.features
            boxes[row, :count] = image.boxes / _corners(np.array([image.width, image.height]))
        features[row, count:] = 0


def _corners(sizes: np.ndarray) -> np.ndarray:
    """Returns [..., 4] float32, by which x1y1x2y2 in pixels is divided to give fractions; 1 for a size of 0, which
    stands for an unknown one.

    Args:
        sizes: [..., 2] widths and heights of images.
    """
    corners: np.ndarray = np.tile(np.maximum(sizes, 1), 2).astype(np.float32)
    return corners
