"""Sets the random seed of all generators that training draws from, and saves and restores their state."""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator

from bua.engine.collectives import broadcast


def random_state() -> dict:
    """Returns the state of the generators of Python, numpy, torch, and of torch's current GPU if it is in use.

    The state consists of plain values and tensors only, so that a checkpoint can hold it.
    """
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002 - libraries draw from the global generator
    assert isinstance(numpy_state, tuple)
    name, keys, *rest = numpy_state
    state = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Restores a state that ``random_state`` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Sets the random seed of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def seed_run(seed: int, accelerator: Accelerator) -> int:
    """Sets the random seed of each process of a run, a different one in each.

    Args:
        seed: The run's random seed. If it is negative, a random one is used.
        accelerator: The group of processes, from ``connect``.

    Returns:
        The run's random seed, which is the same in all processes.
    """
    shared = broadcast(seed if seed >= 0 else secrets.randbits(31))
    seed_everything(shared + accelerator.process_index)
    return shared


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """A context that restores the random state when it ends.

    Random numbers drawn in the context do not change those that are drawn after it.
    """
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
