"""Batches of captions with the regions of their pictures, read from files of features while a model computes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bua.data.captions import CaptionDataset
from bua.data.loader import TrainingLoader
from bua.data.vqa_batches import BOXES_PER_BUCKET, RegionReader, _read_ahead

# Anderson's: steps of a caption, the end included.
MAX_LENGTH = 20


@dataclass
class PictureBatch:
    """The regions of B pictures.

    Attributes:
        features: [B, n, D], float32 or, as read from features in float16, float16; 0 in padding.
        boxes: [B, n, 4] float32 x1y1x2y2 in fractions of the picture's width and height; 0 in padding.
        mask: [B, n] bool, false for padding. n is 1 at least.
        image_ids: [B], always on the CPU.
    """

    features: Tensor
    boxes: Tensor
    mask: Tensor
    image_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str) -> "PictureBatch":
        """The batch on a device, with features in float32. Does not wait for the copy from pinned memory."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return type(self)(**moved | {"features": moved["features"].float()})


@dataclass
class CaptionBatch(PictureBatch):
    """The regions of B pictures, and S captions of each in L steps.

    Attributes:
        tokens: [B, S, L] int64, what the steps read: begin, then the words.
        targets: [B, S, L] int64, what they are to say: the words, then the end, where the caption is not cut.
        target_mask: [B, S, L] bool, false after the end and for captions that a picture lacks; ``tokens`` and
            ``targets`` are padded there.
    """

    tokens: Tensor
    targets: Tensor
    target_mask: Tensor


class CaptionLoader(TrainingLoader):
    """Yields ``CaptionBatch`` without end, in an order that follows from the seed and can be taken up again, as
    ``TrainingLoader``; threads read them ahead of time. An epoch has every picture once.

    A batch is of pictures with like numbers of boxes where the features are in the flat format, so that little of it
    is padding. ``threads`` + 2 batches are in memory at most.

    Args:
        dataset: the captions.
        reader: of all their pictures.
        batch_size: pictures, over all processes; each gets its share of every batch.
        captions_per_image: so many of a picture's captions, drawn each time anew, or all where it has fewer; 1 is
            Anderson's. None takes all.
        max_length: most steps of a caption, the end included.
        max_boxes: so many regions of a picture, its first ones; None takes all.
        threads: that read; 0 reads a batch when it is asked for.
        process_index, num_processes: which share of the batches this process gets.

    Raises:
        InputError: no captions, pictures without features, or a batch that cannot be shared evenly.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        reader: RegionReader,
        batch_size: int,
        *,
        seed: int,
        captions_per_image: int | None = 1,
        max_length: int = MAX_LENGTH,
        max_boxes: int | None = None,
        threads: int = 2,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self._maker = _BatchMaker(dataset, reader, captions_per_image, max_length, max_boxes)
        self.threads = threads
        counts = self._maker.regions.num_boxes
        super().__init__(
            dataset,
            self._maker,
            batch_size,
            seed=seed,
            groups=None if counts is None else counts // BOXES_PER_BUCKET,
            process_index=process_index,
            num_processes=num_processes,
        )

    def __iter__(self) -> Iterator[CaptionBatch]:
        for batch in _read_ahead(self._maker, self._shares(), self.threads):
            self.position += 1
            if self.position == self.batches_per_epoch:
                self.epoch, self.position = self.epoch + 1, 0
            yield batch

    def _shares(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        ranks_of, ranks = None, None
        for share in self._batches(self.epoch, self.position):
            epoch = share[0][0]
            if ranks_of != epoch:
                ranks_of, ranks = epoch, np.random.default_rng((self.seed, epoch, 1)).random(self.dataset.num_captions)
            yield np.array([index for _, index in share]), ranks


def picture_batches(
    image_ids: np.ndarray,
    reader: RegionReader,
    batch_size: int,
    *,
    name: str = "those asked for",
    max_boxes: int | None = None,
    threads: int = 2,
) -> Iterator[PictureBatch]:
    """Every picture once, those with like numbers of boxes together; the last batch may be smaller.

    Args:
        image_ids: [N], all different.
        name: what asks for them, for the message where some lack features.
        Others and errors as for ``CaptionLoader``.
    """
    regions = _Regions(image_ids, reader, name, max_boxes)
    counts = np.zeros(len(image_ids)) if regions.num_boxes is None else regions.num_boxes
    order = np.argsort(counts, kind="stable")
    shares = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return _read_ahead(lambda indices: PictureBatch(**regions.read(indices)), shares, threads)


class _Regions:
    """The regions of the pictures of a data set."""

    def __init__(self, image_ids: np.ndarray, reader: RegionReader, name: str, max_boxes: int | None):
        self.image_ids, self.reader, self.max_boxes = image_ids, reader, max_boxes
        self.stores = reader.locate(image_ids, name)
        self.num_boxes = reader.num_boxes(image_ids, self.stores)
        if self.num_boxes is not None and max_boxes is not None:
            self.num_boxes = np.minimum(self.num_boxes, max_boxes)

    def order(self, indices: np.ndarray) -> np.ndarray:
        """As ``read`` wants them."""
        return indices[np.argsort(self.stores[indices], kind="stable")]

    def read(self, indices: np.ndarray) -> dict:
        """The fields of a ``PictureBatch`` of the pictures at these places, in the order of ``order``."""
        indices = self.order(indices)
        image_ids = self.image_ids[indices]
        parts = self.reader.read(image_ids, self.stores[indices])
        features, boxes, mask = (part[:, : self.max_boxes] for part in parts)
        return {"features": features, "boxes": boxes, "mask": mask, "image_ids": image_ids}


class _BatchMaker:
    """Makes a batch of the pictures at given places in a data set, and of their captions of lowest rank."""

    def __init__(
        self,
        dataset: CaptionDataset,
        reader: RegionReader,
        captions_per_image: int | None,
        max_length: int,
        max_boxes: int | None,
    ):
        self.dataset, self.captions_per_image, self.max_length = dataset, captions_per_image, max_length
        self.regions = _Regions(dataset.image_ids, reader, dataset.name, max_boxes)

    def __call__(self, share: tuple[np.ndarray, np.ndarray]) -> CaptionBatch:
        indices, ranks = share
        indices = self.regions.order(indices)
        tokens, targets, mask = map(torch.from_numpy, self._steps(self._captions(indices, ranks)))
        return CaptionBatch(**self.regions.read(indices), tokens=tokens, targets=targets, target_mask=mask)

    def _captions(self, indices: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """[B, S] which captions of all, in the order of their ranks; -1 where a picture has no more."""
        offsets = self.dataset.caption_offsets
        counts = offsets[indices + 1] - offsets[indices]
        places = np.arange(counts.max())
        lacking = places >= counts[:, None]
        captions = np.where(lacking, -1, offsets[indices][:, None] + places)
        order = np.argsort(np.where(lacking, np.inf, ranks[captions]), axis=1)[:, : self.captions_per_image]
        return np.take_along_axis(captions, order, axis=1)

    def _steps(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``tokens``, ``targets`` and ``target_mask`` of captions [B, S]."""
        offsets, words, vocabulary = self.dataset.word_offsets, self.dataset.words, self.dataset.vocabulary
        starts = offsets[captions][..., None]
        lengths = np.where(captions < 0, -1, offsets[captions + 1] - offsets[captions])[..., None]
        steps = np.minimum(lengths + 1, self.max_length)
        places = np.arange(steps.max())
        mask = places < steps
        said = np.where(places < lengths, words[np.minimum(starts + places, len(words) - 1)], vocabulary.end)
        begin = np.full_like(said[..., :1], vocabulary.begin)
        read = np.concatenate([begin, said[..., :-1]], axis=-1)
        tokens, targets = (np.where(mask, part, vocabulary.pad).astype(np.int64) for part in (read, said))
        return tokens, targets, mask
