"""Batches of questions with the regions of their pictures, read from files of features while a model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bua.data.loader import TrainingLoader
from bua.data.vqa import VqaDataset
from bua.data.vqa_files import first_of
from bua.data.vqa_questions import pad_in_front
from bua.errors import InputError
from bua.features import FeatureStore, open_features
from bua.features.flat import FlatFeatures
from bua.structures import Regions

# Batches are of pictures whose numbers of boxes are in the same range of so many.
BOXES_PER_BUCKET = 4


@dataclass
class VqaBatch:
    """B questions and the regions of their pictures.

    Attributes:
        features: [B, n, D], float32 or, as read from features in float16, float16; 0 in padding.
        boxes: [B, n, 4] float32 x1y1x2y2 in fractions of the picture's width and height; 0 in padding.
        mask: [B, n] bool, false for padding. n is 1 at least.
        words: [B, L] int64, padded where the model wants it.
        question_ids, image_ids: [B] int64, always on the CPU.
        rows, labels: [T] int64, scores: [T] float32: question ``rows[t]``'s answer ``labels[t]`` scores ``scores[t]``;
            empty where the answers are not known.
        num_answers: A, of the vocabulary.
    """

    features: Tensor
    boxes: Tensor
    mask: Tensor
    words: Tensor
    question_ids: np.ndarray
    image_ids: np.ndarray
    rows: Tensor
    labels: Tensor
    scores: Tensor
    num_answers: int

    def __len__(self) -> int:
        return len(self.question_ids)

    def to(self, device: torch.device | str) -> "VqaBatch":
        """The batch on a device, with features in float32. Does not wait for the copy from pinned memory."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return VqaBatch(**moved | {"features": moved["features"].float()})

    def targets(self) -> Tensor:
        """[B, A] float32, dense, on the batch's device."""
        targets = torch.zeros(len(self), self.num_answers, device=self.scores.device)
        return targets.index_put_((self.rows, self.labels), self.scores)


class RegionReader:
    """The regions of pictures side by side, from one or several files of features.

    Features in the flat format are read as they are, float16 too, at the speed of memory; other formats decode a
    picture at a time.

    Args:
        stores: what ``open_features`` gives; the first that has a picture is taken.
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
            raise InputError("features: no files given; name those of all the pictures")
        return cls([open_features(path) for path in paths], names=paths, pin_memory=pin_memory)

    def locate(self, image_ids: np.ndarray, name: str) -> np.ndarray:
        """[N] which of the stores has each picture.

        Args:
            image_ids: [N].
            name: what asks for them, for the message.

        Raises:
            InputError: pictures that none has; says how many and the first of them.
        """
        different, places = np.unique(image_ids, return_inverse=True)
        found = np.full(len(different), -1)
        for number, image_id in enumerate(different.tolist()):
            found[number] = next((i for i, store in enumerate(self.stores) if image_id in store), -1)
        missing = different[found < 0].tolist()
        if missing:
            raise InputError(
                f"{self.name}: lacks {len(missing)} of the {len(different)} pictures of {name}: {first_of(missing)}; "
                "extract them, or name the file that has them too"
            )
        return found[places]

    def num_boxes(self, image_ids: np.ndarray, stores: np.ndarray) -> np.ndarray | None:
        """[N] how many regions each picture has; None where the files do not tell without being read."""
        counts = np.zeros(len(image_ids), np.int64)
        for number, store in enumerate(self.stores):
            if not isinstance(store, FlatFeatures):
                return None
            chosen = stores == number
            counts[chosen] = store.counts[store.rows(image_ids[chosen])]
        return counts

    def read(self, image_ids: np.ndarray, stores: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """``features``, ``boxes`` and ``mask`` of a ``VqaBatch``.

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


class VqaLoader(TrainingLoader):
    """Yields ``VqaBatch`` without end, in an order that follows from the seed and can be taken up again, as
    ``TrainingLoader``; threads read them ahead of time.

    A batch is of pictures with like numbers of boxes where the features are in the flat format, so that little of it
    is padding. ``threads`` + 2 batches are in memory at most.

    Args:
        dataset: the questions.
        reader: of all their pictures.
        batch_size: over all processes; each gets its share of every batch.
        word_padding: "front" or "end", as the model wants it.
        threads: that read; 0 reads a batch when it is asked for.
        process_index, num_processes: which share of the batches this process gets.

    Raises:
        InputError: no questions, pictures without features, or a batch that cannot be shared evenly.
    """

    def __init__(
        self,
        dataset: VqaDataset,
        reader: RegionReader,
        batch_size: int,
        *,
        seed: int,
        word_padding: str,
        threads: int = 2,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self._maker, self.threads = _BatchMaker(dataset, reader, word_padding), threads
        counts = self._maker.num_boxes
        super().__init__(
            dataset,
            self._maker,
            batch_size,
            seed=seed,
            groups=None if counts is None else counts // BOXES_PER_BUCKET,
            process_index=process_index,
            num_processes=num_processes,
        )

    def __iter__(self) -> Iterator[VqaBatch]:
        shares = ([index for _, index in share] for share in self._batches(self.epoch, self.position))
        for batch in _read_ahead(self._maker, shares, self.threads):
            self.position += 1
            if self.position == self.batches_per_epoch:
                self.epoch, self.position = self.epoch + 1, 0
            yield batch


def evaluation_batches(
    dataset: VqaDataset, reader: RegionReader, batch_size: int, *, word_padding: str, threads: int = 2
) -> Iterator[VqaBatch]:
    """Every question once, those about pictures with like numbers of boxes, and about one picture, together; the last
    batch may be smaller. Arguments and errors as for ``VqaLoader``."""
    maker = _BatchMaker(dataset, reader, word_padding)
    counts = np.zeros(len(dataset)) if maker.num_boxes is None else maker.num_boxes
    order = np.lexsort((dataset.image_ids, counts))
    shares = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return _read_ahead(maker, shares, threads)


class _BatchMaker:
    """Makes a batch of the questions at given places in a data set."""

    def __init__(self, dataset: VqaDataset, reader: RegionReader, word_padding: str):
        if word_padding not in ("front", "end"):
            raise ValueError(f"word_padding {word_padding!r}: neither front nor end")
        self.dataset, self.reader = dataset, reader
        self.stores = reader.locate(dataset.image_ids, dataset.name)
        self.num_boxes = reader.num_boxes(dataset.image_ids, self.stores)
        self.words = dataset.questions
        if word_padding == "front":
            self.words = pad_in_front(dataset.questions, len(dataset.words))

    def __call__(self, indices: Sequence[int]) -> VqaBatch:
        indices = np.asarray(indices)
        indices = indices[np.argsort(self.stores[indices], kind="stable")]
        dataset, targets = self.dataset, self.dataset.targets
        image_ids = dataset.image_ids[indices]
        features, boxes, mask = self.reader.read(image_ids, self.stores[indices])
        rows = labels = np.zeros(0, np.int64)
        scores = np.zeros(0, np.float32)
        if targets is not None:
            rows, entries = targets.entries(indices)
            labels, scores = targets.labels[entries].astype(np.int64), targets.scores[entries]
        return VqaBatch(
            features,
            boxes,
            mask,
            torch.from_numpy(self.words[indices].astype(np.int64)),
            dataset.question_ids[indices],
            image_ids,
            *map(torch.from_numpy, (rows, labels, scores)),
            len(dataset.answers),
        )


def _read_ahead(
    make: Callable[[Sequence[int]], VqaBatch], shares: Iterable[Sequence[int]], threads: int
) -> Iterator[VqaBatch]:
    """Batches in order, some of them made while the last one is used."""
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


def _dim(store: FeatureStore) -> int:
    """Numbers a region; 0 where there are no regions."""
    if isinstance(store, FlatFeatures):
        return store.dim
    return next((regions.features.shape[1] for regions in store.values() if len(regions)), 0)


def _counts_and_regions(store: FeatureStore, ids: list[int]) -> tuple[np.ndarray, list[Regions] | None]:
    """How many regions each picture has, and, but for the flat format, the regions."""
    if isinstance(store, FlatFeatures):
        return store.counts[store.rows(ids)].astype(np.int64), None
    once = {image_id: store[image_id] for image_id in dict.fromkeys(ids)}
    regions = [once[image_id] for image_id in ids]
    return np.array([len(picture) for picture in regions]), regions


def _read_flat(store: FlatFeatures, ids: list[int], features: np.ndarray, boxes: np.ndarray) -> None:
    fits = store.dtype == features.dtype
    batch = store.read(ids, out=features if fits else None)
    most = batch.features.shape[1]
    if not fits:
        features[:, :most] = batch.features
    features[:, most:] = 0
    boxes[:, :most] = batch.boxes / _corners(batch.sizes)[:, None]


def _copy(regions: list[Regions], features: np.ndarray, boxes: np.ndarray) -> None:
    for row, picture in enumerate(regions):
        count = len(picture)
        if count:
            features[row, :count] = picture.features
            boxes[row, :count] = picture.boxes / _corners(np.array([picture.width, picture.height]))
        features[row, count:] = 0


def _corners(sizes: np.ndarray) -> np.ndarray:
    """Widths and heights [..., 2] as what x1y1x2y2 is divided by [..., 4]; 1 for sizes that a file does not know."""
    return np.tile(np.maximum(sizes, 1), 2).astype(np.float32)
