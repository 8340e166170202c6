"""All random number generators that training draws from: their seed, and their state as what a checkpoint can hold."""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


def random_state() -> dict:
    """Of python, numpy, torch, and torch's current GPU where it is in use; only plain values and tensors."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - libraries draw from the global generator
    state = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Puts back what ``random_state`` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def seed_run(seed: int, accelerator: Accelerator) -> int:
    """Seeds the processes of a run, each otherwise.

    Args:
        seed: of the run; below 0 for one that is drawn.

    Returns:
        the run's seed, the same in all processes.
    """
    shared = broadcast_object_list([seed if seed >= 0 else secrets.randbits(31)])[0]
    seed_everything(shared + accelerator.process_index)
    return shared


@contextmanager
def undisturbed() -> Iterator[None]:
    """What runs inside may draw random numbers; those drawn after it are as if it had not."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
