"""Batches of images' regions and captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bua.captioning.dataset import CaptionDataset
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionLoader, RegionReader, every_item_once

# Anderson's: steps of a caption, the end included.
MAX_LENGTH = 20


@dataclass
class CaptionBatch(RegionBatch):
    """The regions of B images, and S captions of each in L steps.

    Attributes:
        tokens: [B, S, L] int64, what the steps read: begin, then the words.
        targets: [B, S, L] int64, what they are to say: the words, then the end, where the caption is not cut.
        target_mask: [B, S, L] bool, false after the end and for captions that an image lacks; ``tokens`` and
            ``targets`` are padded there.
    """

    tokens: Tensor
    targets: Tensor
    target_mask: Tensor


class CaptionLoader(RegionLoader):
    """Yields ``CaptionBatch`` as ``RegionLoader``. An epoch has every image once.

    Args:
        dataset: the captions.
        reader: of all their images.
        captions_per_image: so many of an image's captions, drawn each time anew, or all where it has fewer; 1 is
            Anderson's. None takes all.
        max_length: most steps of a caption, the end included.
        max_boxes: so many regions of an image, its first ones; None takes all.
        batch_size, options: as for ``RegionLoader``.

    Raises:
        InputError: as ``RegionLoader``, and images without features.
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
        maker = _CaptionMaker(dataset, reader, captions_per_image, max_length, max_boxes)
        super().__init__(dataset, maker, batch_size, **options)

    def _shares(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The indices of the images of each batch, and the ranks of all captions in its epoch."""
        ranks_of, ranks = None, None
        for share in self._batches(self.epoch, self.position):
            epoch = share[0][0]
            if ranks_of != epoch:
                ranks_of, ranks = epoch, np.random.default_rng((self.seed, epoch, 1)).random(self.dataset.num_captions)
            yield np.array([index for _, index in share]), ranks


def image_batches(
    image_ids: np.ndarray,
    reader: RegionReader,
    batch_size: int,
    *,
    name: str = "those asked for",
    max_boxes: int | None = None,
    threads: int = 2,
) -> Iterator[RegionBatch]:
    """Every image once, as ``every_item_once``.

    Args:
        image_ids: [N], all different.
        name: what asks for them, for the message where some lack features.
        Others and errors as for ``CaptionLoader``.
    """
    return every_item_once(BatchMaker(image_ids, reader, name, max_boxes), batch_size, threads)


class _CaptionMaker(BatchMaker):
    """Takes of each image the captions of lowest rank."""

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
        """[B, S] which captions of all, in the order of their ranks; -1 where an image has no more."""
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
