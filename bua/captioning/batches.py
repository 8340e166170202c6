"""Batches of images' regions and captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bua.captioning.dataset import CaptionDataset
from bua.captioning.decoding import MAX_LENGTH
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionLoader, RegionReader, every_item_once


@dataclass
class CaptionBatch(RegionBatch):
    """The regions of B images, and S captions of each image in L steps.

    Attributes:
        tokens: [B, S, L] int64, the input of the steps: begin, then the words.
        targets: [B, S, L] int64, the words that the steps should predict: the words, then the end unless the caption is
            cut off.
        target_mask: [B, S, L] bool, false after the end, and for images with fewer than S captions. ``tokens`` and
            ``targets`` are padded there.
    """

    tokens: Tensor
    targets: Tensor
    target_mask: Tensor


class CaptionLoader(RegionLoader):
    """Yields ``CaptionBatch`` without end, in the order of ``RegionLoader``. An epoch has every image once.

    Args:
        dataset: The captions.
        reader: The regions of all their images.
        captions_per_image: Number of captions per image, which are drawn again in each epoch; an image that has fewer
            captions gives all of them. Anderson's code takes 1; None takes all.
        max_length: Largest number of steps of a caption, the end included.
        max_boxes: Number of regions per image, the most confident ones; None takes all.
        batch_size, options: As for ``RegionLoader``.

    Raises:
        InputError: As for ``RegionLoader``; or images have no features.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        reader: RegionReader,
        batch_size: int,
        *,
        captions_per_image: int | None = 1,
        max_length: int = MAX_LENGTH,
        max_boxes: int | None = None,
        **options,
    ):
        self.num_captions = dataset.num_captions
        maker = _CaptionMaker(dataset, reader, captions_per_image, max_length, max_boxes)
        super().__init__(maker, batch_size, **options)

    def _shares(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields for each batch the indices of its images, and random ranks of all captions, which are drawn once per
        epoch."""
        ranks_of, ranks = -1, np.zeros(0)
        for share in self._batches(self.epoch, self.position):
            epoch = share[0][0]
            if ranks_of != epoch:
                ranks_of, ranks = epoch, np.random.default_rng((self.seed, epoch, 1)).random(self.num_captions)
            yield np.array([index for _, index in share]), ranks


def image_batches(
    image_ids: np.ndarray,
    reader: RegionReader,
    batch_size: int,
    *,
    name: str = "image_ids",
    max_boxes: int | None = None,
    threads: int = 2,
    device: torch.device | str | None = None,
) -> Iterator[RegionBatch]:
    """Yields every image once, in the order of ``every_item_once``. Arguments and errors not named here are those of
    ``CaptionLoader``.

    Args:
        image_ids: [N], all different.
        name: The file or option that names the images, for the message where images have no features.
    """
    return every_item_once(BatchMaker(image_ids, reader, name, max_boxes), batch_size, threads, device)


class _CaptionMaker(BatchMaker):
    """Makes batches with the captions of each image that have the lowest ranks."""

    def __init__(
        self,
        dataset: CaptionDataset,
        reader: RegionReader,
        captions_per_image: int | None,
        max_length: int,
        max_boxes: int | None,
    ):
        super().__init__(dataset.image_ids, reader, dataset.name, max_boxes)
        self.dataset, self.captions_per_image, self.max_length = dataset, captions_per_image, max_length

    def __call__(self, share: tuple[np.ndarray, np.ndarray]) -> CaptionBatch:
        indices, ranks = share
        indices = self.in_order(indices)
        tokens, targets, mask = map(torch.from_numpy, self._steps(self._captions(indices, ranks)))
        return CaptionBatch(**self.regions(indices), tokens=tokens, targets=targets, target_mask=mask)

    def _captions(self, indices: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Returns [B, S], the numbers of the chosen captions in the order of their ranks; -1 where an image has fewer
        than S captions."""
        offsets = self.dataset.caption_offsets
        counts = offsets[indices + 1] - offsets[indices]
        places = np.arange(counts.max())
        lacking = places >= counts[:, None]
        captions = np.where(lacking, -1, offsets[indices][:, None] + places)
        order = np.argsort(np.where(lacking, np.inf, ranks[captions]), axis=1)[:, : self.captions_per_image]
        return np.take_along_axis(captions, order, axis=1)

    def _steps(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ``tokens``, ``targets`` and ``target_mask`` of the captions with the numbers [B, S]."""
        offsets, words, vocabulary = self.dataset.word_offsets, self.dataset.words, self.dataset.vocabulary
        starts = offsets[captions][..., None]
        lengths = np.where(captions < 0, -1, offsets[captions + 1] - offsets[captions])[..., None]
        steps = np.minimum(lengths + 1, self.max_length)
        places = np.arange(steps.max())
        mask = places < steps
        outputs = np.where(places < lengths, words[np.minimum(starts + places, len(words) - 1)], vocabulary.end)
        begin = np.full_like(outputs[..., :1], vocabulary.begin)
        inputs = np.concatenate([begin, outputs[..., :-1]], axis=-1)
        tokens, targets = (np.where(mask, part, vocabulary.pad).astype(np.int64) for part in (inputs, outputs))
        return tokens, targets, mask
