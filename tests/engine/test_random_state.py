import random

import numpy as np
import torch

from bua.checkpoint import read_checkpoint, save_checkpoint
from bua.engine.random_state import preserved_random_state, random_state, seed_everything, set_random_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()  # noqa: NPY002


def test_the_state_is_restored_from_a_checkpoint(tmp_path):
    seed_everything(3)
    draw()
    save_checkpoint(tmp_path / "state.pth", random=random_state())
    expected = [draw(), draw()]
    set_random_state(read_checkpoint(tmp_path / "state.pth")["random"])
    assert [draw(), draw()] == expected


def test_the_same_seed_gives_the_same_numbers():
    seed_everything(3)
    first = draw()
    seed_everything(4)
    second = draw()
    seed_everything(3)
    assert draw() == first != second


def test_numbers_drawn_in_the_context_do_not_change_later_ones():
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with preserved_random_state():
        draw()
    assert draw() == expected
