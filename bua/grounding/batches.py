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
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionLoader, RegionReader, every_item_once

logger = logging.getLogger(__name__)


@dataclass
class GroundingBatch(RegionBatch):
    """B sentences with up to E phrases each, and the regions of their images.

    Attributes:
        words: [B, L] int64, padded at the end.
        positions: [B, E] int64, the last word of each phrase; 0 in padding.
        phrase_mask: [B, E] bool, false for padding.
        sentences: [B] int64, which of the data set's; always on the CPU.
        places: [T, 3] int64: region ``places[t, 2]`` is right for phrase ``places[t, 1]`` of sentence ``places[t, 0]``.
    """

    words: Tensor
    positions: Tensor
    phrase_mask: Tensor
    sentences: np.ndarray
    places: Tensor

    def targets(self) -> Tensor:
        """[B, E, n] float32, 1 for each region that is right for a phrase, on the batch's device."""
        targets = torch.zeros(*self.positions.shape, self.mask.shape[1], device=self.places.device)
        targets[tuple(self.places.T)] = 1
        return targets


@dataclass
class RightRegions:
    """Which regions of its image are right for each of P phrases.

    Attributes:
        offsets: [P + 1] int64; those of phrase i are ``regions[offsets[i]:offsets[i + 1]]``.
        regions: int32.
    """

    offsets: np.ndarray
    regions: np.ndarray


class GroundingLoader(RegionLoader):
    """Yields ``GroundingBatch`` as ``RegionLoader``.

    Args:
        dataset: the sentences.
        reader: of all their images.
        right: of all their phrases, what ``right_regions`` gives.
        batch_size, options: as for ``RegionLoader``.

    Raises:
        InputError: as ``RegionLoader``, and images without features.
    """

    def __init__(
        self, dataset: GroundingDataset, reader: RegionReader, right: RightRegions, batch_size: int, **options
    ):
        super().__init__(dataset, _GroundingMaker(dataset, reader, right), batch_size, **options)


def evaluation_batches(
    dataset: GroundingDataset, reader: RegionReader, batch_size: int, *, threads: int = 2
) -> Iterator[GroundingBatch]:
    """Every sentence once, as ``every_item_once``. The batches do not say which regions are right."""
    none = RightRegions(np.zeros(len(dataset.spans) + 1, np.int64), np.zeros(0, np.int32))
    return every_item_once(_GroundingMaker(dataset, reader, none), batch_size, threads)


def region_boxes(dataset: GroundingDataset, reader: RegionReader, *, progress: bool = True) -> dict[int, np.ndarray]:
    """The regions' boxes [n, 4] float32 x1y1x2y2, in pixels, of every image of a data set.

    Features that are not in the flat format are read for it, all of them once.

    Raises:
        InputError: images without features.
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
            "features from the original images, or no box will fit",
            *(len(other_sizes), len(first), dataset.name, other_sizes[0]),
        )
    return boxes


def right_regions(
    dataset: GroundingDataset, boxes: dict[int, np.ndarray], *, protocol: str = "any", progress: bool = True
) -> RightRegions:
    """The regions that are right for each phrase of a data set.

    Args:
        boxes: what ``region_boxes`` gives.
        protocol: see ``bua.grounding.recall``.
    """
    # A thing is named in several sentences, always with the same boxes.
    known: dict[tuple[int, int], np.ndarray] = {}
    keys = list(zip(dataset.image_ids[dataset.sentence_of].tolist(), dataset.chains.tolist()))
    for phrase, key in enumerate(tqdm(keys, "right regions", unit=" phrases", disable=not progress)):
        if key not in known:
            known[key] = np.flatnonzero(hits(boxes[key[0]], dataset.boxes_of(phrase), protocol)).astype(np.int32)
    found = [known[key] for key in keys]
    offsets = np.concatenate([[0], np.cumsum([len(regions) for regions in found])]).astype(np.int64)
    return RightRegions(offsets, np.concatenate(found))


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
        # The seed's positions may lie in the padding.
        length = max(int(self.lengths[indices].max()), int(positions.max()) + 1)
        arrays = dataset.words[indices, :length].astype(np.int64), positions, phrase_mask
        words, positions, phrase_mask = map(torch.from_numpy, arrays)
        places = torch.from_numpy(self._places(np.stack(phrase_mask.nonzero(as_tuple=True), axis=1), phrases))
        return GroundingBatch(
            **self.regions(indices),
            words=words,
            positions=positions,
            phrase_mask=phrase_mask,
            sentences=indices,
            places=places,
        )

    def _places(self, cells: np.ndarray, phrases: np.ndarray) -> np.ndarray:
        """[T, 3] from the phrases' sentences and columns [K, 2] in the batch and their numbers [K] in the data set."""
        offsets, regions = self.right.offsets, self.right.regions
        counts = offsets[phrases + 1] - offsets[phrases]
        chosen = [regions[offsets[phrase] : offsets[phrase + 1]] for phrase in phrases.tolist()]
        return np.concatenate([np.repeat(cells, counts, axis=0), np.concatenate(chosen)[:, None]], axis=1)
