"""Batches of sentences and their phrases with the regions of their images."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bua.features.flat import FlatFeatures
from bua.grounding.dataset import GroundingDataset
from bua.grounding.recall import hits
from bua.tasks.prepared import offsets_of
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionLoader, RegionReader, every_item_once

logger = logging.getLogger(__name__)


@dataclass
class GroundingBatch(RegionBatch):
    """B sentences with up to E phrases each, and the regions of their images.

    Attributes:
        words: [B, L] int64, ids of the words, padded at the end.
        positions: [B, E] int64, the place of the last word of each phrase; 0 in padding.
        phrase_mask: [B, E] bool, false for padding.
        sentences: [B] int64, the numbers of the sentences in the data set; always on the CPU.
        places: [T, 3] int64; region ``places[t, 2]`` is right for phrase ``places[t, 1]`` of sentence ``places[t, 0]``.
    """

    words: Tensor
    positions: Tensor
    phrase_mask: Tensor
    sentences: np.ndarray
    places: Tensor

    def targets(self) -> Tensor:
        """Returns [B, E, n] float32, 1 for each region that is right for a phrase, on the device of the batch."""
        targets = torch.zeros(*self.positions.shape, self.mask.shape[1], device=self.places.device)
        targets[tuple(self.places.T)] = 1
        return targets


@dataclass
class RightRegions:
    """The regions of its image that are right for each of P phrases.

    Attributes:
        offsets: [P + 1] int64; phrase i has the regions ``regions[offsets[i]:offsets[i + 1]]``.
        regions: [T] int32, numbers of regions in their images.
    """

    offsets: np.ndarray
    regions: np.ndarray


class GroundingLoader(RegionLoader):
    """Yields ``GroundingBatch`` without end, in the order of ``RegionLoader``.

    Args:
        dataset: The sentences.
        reader: The regions of all their images.
        right: The right regions of all their phrases, as ``right_regions`` returns them.
        batch_size, options: As for ``RegionLoader``.

    Raises:
        InputError: As for ``RegionLoader``; or images have no features.
    """

    def __init__(
        self, dataset: GroundingDataset, reader: RegionReader, right: RightRegions, batch_size: int, **options
    ):
        super().__init__(_GroundingMaker(dataset, reader, right), batch_size, **options)


def evaluation_batches(
    dataset: GroundingDataset,
    reader: RegionReader,
    batch_size: int,
    *,
    threads: int = 2,
    device: torch.device | str | None = None,
) -> Iterator[GroundingBatch]:
    """Yields every sentence once, in the order of ``every_item_once``. The batches have no targets."""
    none = RightRegions(np.zeros(len(dataset.spans) + 1, np.int64), np.zeros(0, np.int32))
    return every_item_once(_GroundingMaker(dataset, reader, none), batch_size, threads, device)


def region_boxes(dataset: GroundingDataset, reader: RegionReader, *, progress: bool = True) -> dict[int, np.ndarray]:
    """Reads the boxes of the regions of every image of a data set.

    Features in another format than the flat one are read completely for this.

    Returns:
        By image id [n, 4] float32 x1y1x2y2 in pixels.

    Raises:
        InputError: Images have no features.
    """
    image_ids, first = np.unique(dataset.image_ids, return_index=True)
    stores = reader.locate(image_ids, dataset.name)
    boxes, other_sizes = {}, []
    images = zip(image_ids.tolist(), stores.tolist(), dataset.sizes[first].tolist())
    for image_id, number, size in tqdm(images, "boxes", len(first), unit=" images", disable=not progress):
        store = reader.stores[number]
        if isinstance(store, FlatFeatures):
            boxes[image_id] = store.boxes(image_id)
            row = store.rows([image_id])[0]
            found = [int(store.widths[row]), int(store.heights[row])]
        else:
            regions = store[image_id]
            boxes[image_id], found = regions.boxes, [regions.width, regions.height]
        if found != size and all(found):
            other_sizes.append(image_id)
    if other_sizes:
        logger.warning(
            "features: %d of the %d images of %s have another size than in the annotations, such as %s: extract "
            "features from the original images, or the boxes will not match",
            len(other_sizes),
            len(first),
            dataset.name,
            other_sizes[0],
        )
    return boxes


def right_regions(
    dataset: GroundingDataset, boxes: dict[int, np.ndarray], *, protocol: str = "any", progress: bool = True
) -> RightRegions:
    """Returns the regions that are right for each phrase of a data set.

    Args:
        boxes: The boxes of the regions, as ``region_boxes`` returns them.
        protocol: "any" or "merged", see ``bua.grounding.recall``.
    """
    # A thing that several sentences name always has the same boxes.
    known: dict[tuple[int, int], np.ndarray] = {}
    keys = list(zip(dataset.image_ids[dataset.sentence_of].tolist(), dataset.chains.tolist()))
    for phrase, key in enumerate(tqdm(keys, "right regions", unit=" phrases", disable=not progress)):
        if key not in known:
            known[key] = np.flatnonzero(hits(boxes[key[0]], dataset.boxes_of(phrase), protocol)).astype(np.int32)
    found = [known[key] for key in keys]
    return RightRegions(offsets_of([len(regions) for regions in found]), np.concatenate(found))


class _GroundingMaker(BatchMaker):
    def __init__(self, dataset: GroundingDataset, reader: RegionReader, right: RightRegions):
        super().__init__(dataset.image_ids, reader, dataset.name)
        self.dataset, self.right = dataset, right
        self.lengths = (dataset.words != len(dataset.vocabulary)).sum(axis=1)

    def __call__(self, indices: np.ndarray) -> GroundingBatch:
        indices, dataset = self.in_order(indices), self.dataset
        starts, counts = dataset.phrase_offsets[indices], np.diff(dataset.phrase_offsets)[indices]
        phrase_mask = np.arange(counts.max()) < counts[:, None]
        phrases = (starts[:, None] + np.arange(counts.max()))[phrase_mask]
        positions = np.zeros(phrase_mask.shape, np.int64)
        positions[phrase_mask] = dataset.spans[phrases, 1] - 1
        # Positions of ban-vqa's code (``authors_span``) may lie in the padding.
        length = max(int(self.lengths[indices].max()), int(positions.max()) + 1)
        cells = np.stack(phrase_mask.nonzero(), axis=1)
        return GroundingBatch(
            **self.regions(indices),
            words=torch.from_numpy(dataset.words[indices, :length].astype(np.int64)),
            positions=torch.from_numpy(positions),
            phrase_mask=torch.from_numpy(phrase_mask),
            sentences=indices,
            places=torch.from_numpy(self._places(cells, phrases)),
        )

    def _places(self, cells: np.ndarray, phrases: np.ndarray) -> np.ndarray:
        """Returns ``places`` [T, 3].

        Args:
            cells: [K, 2], the sentence and the column of each phrase in the batch.
            phrases: [K], the number of each phrase in the data set.
        """
        offsets, regions = self.right.offsets, self.right.regions
        counts = offsets[phrases + 1] - offsets[phrases]
        chosen = [regions[offsets[phrase] : offsets[phrase + 1]] for phrase in phrases.tolist()]
        return np.concatenate([np.repeat(cells, counts, axis=0), np.concatenate(chosen)[:, None]], axis=1)
