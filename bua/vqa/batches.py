"""Batches of questions with the regions of their images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionLoader, RegionReader, every_item_once
from bua.tasks.words import pad_in_front
from bua.vqa.dataset import VqaDataset


@dataclass
class VqaBatch(RegionBatch):
    """B questions and the regions of their images.

    Attributes:
        words: [B, L] int64, ids of the words, padded at the side that the model needs.
        question_ids: [B] int64, always on the CPU.
        rows, labels: [T] int64; the answer ``labels[t]`` to question ``rows[t]`` has the score ``scores[t]``. They are
            empty where the answers are not known.
        scores: [T] float32.
        num_answers: A, size of the answer vocabulary.
    """

    words: Tensor
    question_ids: np.ndarray
    rows: Tensor
    labels: Tensor
    scores: Tensor
    num_answers: int

    def targets(self) -> Tensor:
        """Returns [B, A] float32, the score of each answer, on the device of the batch."""
        targets = torch.zeros(len(self), self.num_answers, device=self.scores.device)
        return targets.index_put_((self.rows, self.labels), self.scores)


class VqaLoader(RegionLoader):
    """Yields ``VqaBatch`` without end, in the order of ``RegionLoader``.

    Args:
        dataset: The questions.
        reader: The regions of all their images.
        word_padding: "front" or "end", the side at which the model needs questions padded.
        batch_size, options: As for ``RegionLoader``.

    Raises:
        InputError: As for ``RegionLoader``; or images have no features.
    """

    def __init__(self, dataset: VqaDataset, reader: RegionReader, batch_size: int, *, word_padding: str, **options):
        super().__init__(_VqaMaker(dataset, reader, word_padding), batch_size, **options)


def evaluation_batches(
    dataset: VqaDataset,
    reader: RegionReader,
    batch_size: int,
    *,
    word_padding: str,
    threads: int = 2,
    device: torch.device | str | None = None,
) -> Iterator[VqaBatch]:
    """Yields every question once, in the order of ``every_item_once``; arguments and errors as for ``VqaLoader``."""
    return every_item_once(_VqaMaker(dataset, reader, word_padding), batch_size, threads, device)


class _VqaMaker(BatchMaker):
    def __init__(self, dataset: VqaDataset, reader: RegionReader, word_padding: str):
        if word_padding not in ("front", "end"):
            raise ValueError(f"word_padding {word_padding!r}: use front or end")
        super().__init__(dataset.image_ids, reader, dataset.name)
        self.dataset, self.words = dataset, dataset.questions
        if word_padding == "front":
            self.words = pad_in_front(dataset.questions, len(dataset.words))

    def __call__(self, indices: np.ndarray) -> VqaBatch:
        indices = self.in_order(indices)
        targets = self.dataset.targets
        rows = labels = np.zeros(0, np.int64)
        scores = np.zeros(0, np.float32)
        if targets is not None:
            rows, entries = targets.entries(indices)
            labels, scores = targets.labels[entries].astype(np.int64), targets.scores[entries]
        return VqaBatch(
            **self.regions(indices),
            words=torch.from_numpy(self.words[indices].astype(np.int64)),
            question_ids=self.dataset.question_ids[indices],
            rows=torch.from_numpy(rows),
            labels=torch.from_numpy(labels),
            scores=torch.from_numpy(scores),
            num_answers=len(self.dataset.answers),
        )
