"""Batches with the regions of images, read from files of features while a model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bua.engine.loader import TrainingLoader
from bua.errors import InputError, first_of
from bua.features import FeatureStore, open_features
from bua.features.flat import FlatFeatures
from bua.structures import Regions

# Batches are of images whose numbers of boxes are in the same range of so many.
BOXES_PER_BUCKET = 4


@dataclass
class RegionBatch:
    """The regions of the images of B items, such as questions.

    Attributes:
        features: [B, n, D], float32 or, as read from features in float16, float16; 0 in padding.
        boxes: [B, n, 4] float32 x1y1x2y2 in fractions of the image's width and height; 0 in padding.
        mask: [B, n] bool, false for padding. n is 1 at least.
        image_ids: [B], always on the CPU.
    """

    features: Tensor
    boxes: Tensor
    mask: Tensor
    image_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str) -> "RegionBatch":
        """The batch on a device, with features in float32. Does not wait for the copy from pinned memory."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return type(self)(**moved | {"features": moved["features"].float()})


class BatchMaker:
    """Makes batches of the items at given places in a data set; with more than the regions in subclasses.

    Args:
        image_ids: [N], of each item's image.
        reader: of all these images.
        name: of what asks for them, for the message where some lack features.
        max_boxes: so many regions of an image, its first ones; None takes all.

    Attributes:
        num_boxes: [N] of each item's image; None where the files do not tell without being read.

    Raises:
        InputError: images without features.
    """

    def __init__(self, image_ids: np.ndarray, reader: "RegionReader", name: str, max_boxes: int | None = None):
        self.image_ids, self.reader, self.max_boxes = image_ids, reader, max_boxes
        self.stores = reader.locate(image_ids, name)
        self.num_boxes = reader.num_boxes(image_ids, self.stores)
        if self.num_boxes is not None and max_boxes is not None:
            self.num_boxes = np.minimum(self.num_boxes, max_boxes)

    def __call__(self, indices: np.ndarray) -> RegionBatch:
        """The batch of the items at ``indices`` [B], in the order of ``in_order``."""
        return RegionBatch(**self.regions(self.in_order(indices)))

    def in_order(self, indices: np.ndarray) -> np.ndarray:
        """As ``regions`` wants them: one file's images after the other's."""
        return indices[np.argsort(self.stores[indices], kind="stable")]

    def regions(self, indices: np.ndarray) -> dict:
        """The fields of the items' ``RegionBatch``."""
        image_ids = self.image_ids[indices]
        parts = self.reader.read(image_ids, self.stores[indices])
        features, boxes, mask = (part[:, : self.max_boxes] for part in parts)
        return {"features": features, "boxes": boxes, "mask": mask, "image_ids": image_ids}


class RegionLoader(TrainingLoader):
    """Yields batches without end, in an order that follows from the seed and can be taken up again, as
    ``TrainingLoader``; threads read them ahead of time.

    A batch is of images with like numbers of boxes where the features are in the flat format, so that little of it
    is padding. ``threads`` + 2 batches are in memory at most.

    Args:
        dataset: the items.
        make: takes what ``_shares`` yields.
        batch_size: over all processes; each gets its share of every batch.
        threads: that read; 0 reads a batch when it is asked for.
        process_index, num_processes: which share of the batches this process gets.

    Raises:
        InputError: no items, or a batch that cannot be shared evenly.
    """

    def __init__(
        self,
        dataset: Sequence,
        make: BatchMaker,
        batch_size: int,
        *,
        seed: int,
        threads: int = 2,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        super().__init__(
            dataset,
            make,
            batch_size,
            seed=seed,
            groups=None if make.num_boxes is None else make.num_boxes // BOXES_PER_BUCKET,
            process_index=process_index,
            num_processes=num_processes,
        )
        self.threads = threads

    def __iter__(self) -> Iterator[RegionBatch]:
        for batch in read_ahead(self.mapper, self._shares(), self.threads):
            self._advance()
            yield batch

    def _shares(self) -> Iterator[np.ndarray]:
        """The indices [B] of the items of each batch."""
        for share in self._batches(self.epoch, self.position):
            yield np.array([index for _, index in share])


def every_item_once(make: BatchMaker, batch_size: int, threads: int = 2) -> Iterator[RegionBatch]:
    """Batches of all items, those about images with like numbers of boxes, and about one image, together; the last
    batch may be smaller."""
    ids = make.image_ids
    order = np.lexsort((ids, np.zeros(len(ids)) if make.num_boxes is None else make.num_boxes))
    shares = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return read_ahead(make, shares, threads)


def read_ahead(make: Callable, shares: Iterable, threads: int) -> Iterator:
    """What ``make`` makes of each share, in order; so many ``threads`` make some while the last one is used."""
    if threads == 0:
        yield from map(make, shares)
        return
    pending: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for share in shares:
                pending.append(pool.submit(make, share))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class RegionReader:
    """The regions of images side by side, from one or several files of features.

    Features in the flat format are read as they are, float16 too, at the speed of memory; other formats decode an
    image at a time.

    Args:
        stores: what ``open_features`` gives; the first that has an image is taken.
        names: of their files, for messages.
        pin_memory: read into memory that a GPU copies from on its own.

    Raises:
        InputError: no regions in any, or features of different lengths.
    """

    def __init__(
        self, stores: Sequence[FeatureStore], *, names: Sequence[str] = ("features",), pin_memory: bool = False
    ):
        self.stores, self.name, self.pin_memory = list(stores), " + ".join(names), pin_memory
        dims = sorted({_dim(store) for store in self.stores} - {0})
        if not dims:
            raise InputError(f"{self.name}: no regions at all; extract them again")
        if len(dims) > 1:
            raise InputError(f"{self.name}: {dims[0]} and {dims[-1]} numbers a region; use features of one detector")
        self.dim = dims[0]
        is_half = all(isinstance(store, FlatFeatures) and store.dtype == np.float16 for store in self.stores)
        self.dtype = torch.float16 if is_half else torch.float32

    @classmethod
    def open(cls, paths: Iterable[str | Path], *, pin_memory: bool = False) -> "RegionReader":
        """Of files or folders in any format.

        Raises:
            InputError: none given, or one that cannot be opened.
        """
        paths = list(map(str, paths))
        if not paths:
            raise InputError("features: no files given; name those of all the images")
        return cls([open_features(path) for path in paths], names=paths, pin_memory=pin_memory)

    def locate(self, image_ids: np.ndarray, name: str) -> np.ndarray:
        """[N] which of the stores has each image.

        Args:
            image_ids: [N].
            name: what asks for them, for the message.

        Raises:
            InputError: images that none has; says how many and the first of them.
        """
        different, places = np.unique(image_ids, return_inverse=True)
        found = np.full(len(different), -1)
        for number, image_id in enumerate(different.tolist()):
            found[number] = next((i for i, store in enumerate(self.stores) if image_id in store), -1)
        missing = different[found < 0].tolist()
        if missing:
            raise InputError(
                f"{self.name}: lacks {len(missing)} of the {len(different)} images of {name}: {first_of(missing)}; "
                "extract them, or name the file that has them too"
            )
        return found[places]

    def num_boxes(self, image_ids: np.ndarray, stores: np.ndarray) -> np.ndarray | None:
        """[N] how many regions each image has; None where the files do not tell without being read."""
        counts = np.zeros(len(image_ids), np.int64)
        for number, store in enumerate(self.stores):
            if not isinstance(store, FlatFeatures):
                return None
            chosen = stores == number
            counts[chosen] = store.counts[store.rows(image_ids[chosen])]
        return counts

    def read(self, image_ids: np.ndarray, stores: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """``features``, ``boxes`` and ``mask`` of a ``RegionBatch``.

        Args:
            image_ids: [B].
            stores: [B] which store has each, in ascending order.
        """
        parts = [(self.stores[number], image_ids[stores == number].tolist()) for number in np.unique(stores)]
        read = [_counts_and_regions(store, ids) for store, ids in parts]
        most = max(1, *(int(counts.max()) for counts, _ in read))
        features = torch.empty((len(image_ids), most, self.dim), dtype=self.dtype, pin_memory=self.pin_memory)
        boxes = np.zeros((len(image_ids), most, 4), np.float32)
        start = 0
        for (store, ids), (_, regions) in zip(parts, read):
            rows = slice(start, start + len(ids))
            if regions is None:
                _read_flat(store, ids, features[rows].numpy(), boxes[rows])
            else:
                _copy(regions, features[rows].numpy(), boxes[rows])
            start += len(ids)
        counts = np.concatenate([counts for counts, _ in read])
        mask = np.arange(most) < counts[:, None]
        return features, torch.from_numpy(boxes), torch.from_numpy(mask)


def _dim(store: FeatureStore) -> int:
    """Numbers a region; 0 where there are no regions."""
    if isinstance(store, FlatFeatures):
        return store.dim
    return next((regions.features.shape[1] for regions in store.values() if len(regions)), 0)


def _counts_and_regions(store: FeatureStore, ids: list[int]) -> tuple[np.ndarray, list[Regions] | None]:
    """How many regions each image has, and, but for the flat format, the regions."""
    if isinstance(store, FlatFeatures):
        return store.counts[store.rows(ids)].astype(np.int64), None
    once = {image_id: store[image_id] for image_id in dict.fromkeys(ids)}
    regions = [once[image_id] for image_id in ids]
    return np.array([len(image) for image in regions]), regions


def _read_flat(store: FlatFeatures, ids: list[int], features: np.ndarray, boxes: np.ndarray) -> None:
    fits = store.dtype == features.dtype
    batch = store.read(ids, out=features if fits else None)
    most = batch.features.shape[1]
    if not fits:
        features[:, :most] = batch.features
    features[:, most:] = 0
    boxes[:, :most] = batch.boxes / _corners(batch.sizes)[:, None]


def _copy(regions: list[Regions], features: np.ndarray, boxes: np.ndarray) -> None:
    for row, image in enumerate(regions):
        count = len(image)
        if count:
            features[row, :count] = image.features
            boxes[row, :count] = image.boxes / _corners(np.array([image.width, image.height]))
        features[row, count:] = 0


def _corners(sizes: np.ndarray) -> np.ndarray:
    """Widths and heights [..., 2] as what x1y1x2y2 is divided by [..., 4]; 1 for sizes that a file does not know."""
    return np.tile(np.maximum(sizes, 1), 2).astype(np.float32)
