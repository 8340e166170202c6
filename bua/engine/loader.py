"""Loads batches for training, in an order that a resumed run continues where it stopped."""

import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bua.errors import InputError


class IndexedDataset(Protocol):
    """A data set whose items are accessed by their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TrainingLoader:
    """Yields batches of a data set without end, each epoch in another order.

    The batches depend on ``seed`` and on the number of batches yielded so far, and on nothing else: not on the number
    of workers or processes, nor on any global random state. Every epoch contains every item. If the last batch of an
    epoch is not full, items from the start of the epoch are added to it.

    Args:
        dataset: The data set.
        mapper: ``mapper(dataset[i], rng)`` makes item i of a batch. It runs in worker processes. If it needs random
            numbers, it draws them from ``rng``, whose random seed is derived from ``seed``, the epoch and i.
        batch_size: Number of items in a batch, over all processes. Each process gets its share of every batch.
        seed: Random seed.
        groups: [len(dataset)] ints. The items of a batch are from the same group, except in the last batches of an
            epoch. None means that all items are in one group.
        keep: Indices of the items to use. By default all are used.
        num_workers: Number of processes that make items in advance. With 0, this process makes them when it needs them.
        collate: Makes a batch from a list of items.
        pin_memory: Whether batches are in page-locked memory, from which copies to a GPU are asynchronous. If items are
            neither tensors nor collections of them, they have a method ``pin_memory``.
        process_index, num_processes: Number of this process, from 0, and number of all processes. They determine which
            share of each batch this process gets.

    Raises:
        InputError: There are no items, or a batch cannot be shared evenly. Iterating raises the errors of ``mapper``.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        mapper: Callable,
        batch_size: int,
        *,
        seed: int,
        groups: np.ndarray | None = None,
        keep: np.ndarray | None = None,
        num_workers: int = 0,
        collate: Callable = list,
        pin_memory: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        check_batch_size(batch_size, num_processes)
        self.keep = np.arange(len(dataset)) if keep is None else np.asarray(keep)
        if not len(self.keep):
            raise InputError(
                "training set: it has no items, or none with annotations; check DATASETS.TRAIN (for a detector) or "
                "DATA.TRAIN (for a task)"
            )
        self.dataset, self.mapper, self.collate = dataset, mapper, collate
        self.groups = None if groups is None else np.asarray(groups)[self.keep]
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.pin_memory = pin_memory
        self.process_index, self.num_processes = process_index, num_processes
        self.epoch, self.position = 0, 0

    def __iter__(self) -> Iterator:
        """Continues after the last batch that was yielded. Items that workers made in advance are made again."""
        loader = DataLoader(
            _Mapped(self.dataset, self.mapper, self.seed),
            batch_sampler=self._batches(self.epoch, self.position),
            num_workers=self.num_workers,
            collate_fn=_Collate(self.collate),
            pin_memory=self.pin_memory,
            worker_init_fn=_init_worker,
            # DataLoader draws from its generator when it starts workers. If this were torch's global generator, the
            # model would draw other random numbers.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            self._advance()
            yield batch

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.keep) // self.batch_size)

    def state_dict(self) -> dict:
        """Returns the ``seed``, the current ``epoch`` and the number of ``items`` of it that were yielded."""
        return {"seed": self.seed, "epoch": self.epoch, "items": self.position * self.batch_size}

    def load_state_dict(self, state: dict) -> None:
        """Makes the next ``iter`` continue from ``state``.

        If the batch size has changed, it starts with the batch that contains the next item.
        """
        if any(type(state[key]) is not int or state[key] < 0 for key in ("seed", "epoch", "items")):
            raise ValueError("seed, epoch and items are not whole numbers")
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.position = min(state["items"] // self.batch_size, self.batches_per_epoch - 1)

    def plan(self, epoch: int) -> np.ndarray:
        """Returns all batches of an epoch: [batches_per_epoch, batch_size] indices into the data set."""
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
        """Counts a batch that is yielded."""
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


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Raises an InputError if the processes cannot share a batch evenly."""
    if batch_size < 1 or batch_size % num_processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a multiple of {num_processes}, the number of processes"
        )


def aspect_groups(sizes: np.ndarray) -> np.ndarray:
    """Groups images into tall (0) and wide (1) ones, as Detectron2 does, so that batches need little padding.

    Args:
        sizes: [N, 2] (height, width) of the images.

    Returns:
        [N] int64.
    """
    return (sizes[:, 1] > sizes[:, 0]).astype(np.int64)


class _Mapped(Dataset):
    """Makes items by their (epoch, index).

    If ``mapper`` raises an InputError, this error is the item, because a data loader would add the worker's traceback
    to an error that is raised in a worker.
    """

    def __init__(self, dataset: IndexedDataset, mapper: Callable, seed: int):
        self.dataset, self.mapper, self.seed = dataset, mapper, seed

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        try:
            return self.mapper(self.dataset[index], np.random.default_rng((self.seed, epoch, index)))
        except InputError as error:
            return error


class _Collate:
    """Makes a batch from items, or returns the first InputError among them."""

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, items: list):
        return next((item for item in items if isinstance(item, InputError)), None) or self.collate(items)


def _init_worker(worker: int) -> None:
    # Workers get Ctrl-C from the terminal too, but the process that started them decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
