"""Batches for training without end, in an order that can be taken up again where it was left."""

import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bua.errors import InputError


class TrainingLoader:
    """Yields batches of a data set, epoch after epoch, each epoch in another order.

    What it yields depends on ``seed`` and on how many batches it has yielded, and on nothing else: not on the number
    of workers or processes, nor on any global random state. Every epoch has every item; its last batch is filled up
    with items from the epoch's start.

    Args:
        dataset: ``dataset[i]`` is handed to ``mapper``.
        mapper: ``mapper(dataset[i], rng)`` makes an item; runs in worker processes, and draws from ``rng``, which is
            seeded by ``seed``, the epoch and i.
        batch_size: over all processes; each gets its share of every batch.
        groups: [len(dataset)] ints; a batch is from one group, but for an epoch's last ones. None is one group.
        keep: ids of the items to use; all by default.
        num_workers: processes that make items ahead of time; 0 makes them when they are asked for.
        collate: makes a batch of a list of items.
        process_index, num_processes: which share of the batches this process gets.

    Raises:
        InputError: no items, or a batch that cannot be shared evenly. Iterating raises what ``mapper`` raises.
    """

    def __init__(
        self,
        dataset: Sequence,
        mapper: Callable,
        batch_size: int,
        *,
        seed: int,
        groups: np.ndarray | None = None,
        keep: np.ndarray | None = None,
        num_workers: int = 0,
        collate: Callable = list,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if batch_size < 1 or batch_size % num_processes:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a multiple of {num_processes} processes"
            )
        self.keep = np.arange(len(dataset)) if keep is None else np.asarray(keep)
        if not len(self.keep):
            raise InputError(
                "training set: no items, or none with annotations; see DATASETS.TRAIN, or DATA.TRAIN of a head"
            )
        self.dataset, self.mapper, self.collate = dataset, mapper, collate
        self.groups = None if groups is None else np.asarray(groups)[self.keep]
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.process_index, self.num_processes = process_index, num_processes
        self.epoch, self.position = 0, 0

    def __iter__(self) -> Iterator:
        """Goes on after the last batch that was taken; what workers had made beyond it is made again."""
        loader = DataLoader(
            _Mapped(self.dataset, self.mapper, self.seed),
            batch_sampler=self._batches(self.epoch, self.position),
            num_workers=self.num_workers,
            collate_fn=_Collate(self.collate),
            worker_init_fn=_init_worker,
            # Its own, because starting workers draws from it, and torch's global one belongs to the model.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            self._advance()
            yield batch

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.keep) // self.batch_size)

    def state_dict(self) -> dict:
        """Where the batches that were taken end: ``epoch``, ``items`` taken in it, and the ``seed``."""
        return {"seed": self.seed, "epoch": self.epoch, "items": self.position * self.batch_size}

    def load_state_dict(self, state: dict) -> None:
        """Makes the next ``iter`` go on there, at the start of the batch where the batch size is another."""
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.position = min(state["items"] // self.batch_size, self.batches_per_epoch - 1)

    def plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch: [batches_per_epoch, batch_size] indices into the data set."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.keep))
        size = self.batch_size
        if self.groups is not None:
            members = [order[self.groups[order] == group] for group in np.unique(self.groups)]
        else:
            members = [order]
        whole = [group[: len(group) // size * size] for group in members]
        rest = np.concatenate([group[len(group) // size * size :] for group in members])
        filling = np.resize(order, -len(rest) % size)
        batches = np.concatenate([*whole, rest, filling]).reshape(-1, size)
        return self.keep[rng.permutation(batches)]

    def _advance(self) -> None:
        """Counts a batch that is taken."""
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0

    def _batches(self, epoch: int, position: int) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.num_processes
        mine = slice(self.process_index * share, (self.process_index + 1) * share)
        while True:
            for batch in self.plan(epoch)[position:]:
                yield [(epoch, index) for index in batch[mine].tolist()]
            epoch, position = epoch + 1, 0


def aspect_groups(sizes: np.ndarray) -> np.ndarray:
    """Groups images of [N, 2] (height, width) into tall (0) and wide (1), as Detectron2, so that batches need
    little padding."""
    return (sizes[:, 1] > sizes[:, 0]).astype(np.int64)


class _Mapped(Dataset):
    """Makes the item (epoch, index). An InputError is an item, because a data loader would turn one that is raised in
    a worker into many lines."""

    def __init__(self, dataset: Sequence, mapper: Callable, seed: int):
        self.dataset, self.mapper, self.seed = dataset, mapper, seed

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        try:
            return self.mapper(self.dataset[index], np.random.default_rng((self.seed, epoch, index)))
        except InputError as error:
            return error


class _Collate:
    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, items: list):
        return next((item for item in items if isinstance(item, InputError)), None) or self.collate(items)


def _init_worker(worker: int) -> None:
    # Ctrl-C reaches workers too; the process that they work for decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
