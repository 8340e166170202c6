"""Runs in which one of two processes fails while the other one waits for it.

The failing process could not clean up: as with NCCL, to destroy its process group waits for the other process.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from bua.engine import connect, launch
from bua.errors import InputError

FOREVER_SECONDS = 3600
LIMIT_SECONDS = 1200
MESSAGE = "a.jpg: is a truncated JPEG file; fetch it again"


def assert_that_all_processes_end(engine: str, place: str, folder: Path, capfd) -> None:
    """Asserts that a run in two processes ends with the error of one of them, and leaves no process behind."""
    start, function = launch, fail_on_the_torch_engine
    if engine == "detectron2":
        from bua.d2.launch import launch as start

        function = fail_in_detectron2

    def give_up(*_):
        for process in multiprocessing.active_children():
            process.kill()
        raise TimeoutError("processes wait for each other")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_SECONDS)
    try:
        with pytest.raises(InputError) as error:
            start(function, (place, folder), num_processes=2)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert str(error.value) == MESSAGE
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err


def fail():
    raise InputError(MESSAGE)


def never_returns(*args):
    time.sleep(FOREVER_SECONDS)


def fail_on_the_torch_engine(place: str, folder: Path) -> None:
    sys.path.append(str(Path(__file__).with_name("engine")))
    from toy_training import train_toy

    torch.distributed.destroy_process_group = never_returns
    atexit.register(never_returns)
    rank = int(os.environ["RANK"])
    if place == "loading":
        if rank == 1:
            fail()
        connect("cpu")
    elif place == "training":
        train_toy(folder, noisy=False, at_iteration={3: fail} if rank == 1 else {})
    else:
        train_toy(folder, noisy=False, evaluate=fail, eval_period=2)


def fail_in_detectron2(place: str, folder: Path) -> None:
    atexit.register(never_returns)
    if torch.distributed.get_rank() == {"loading": 1, "evaluating": 0}[place]:
        fail()
    torch.distributed.all_reduce(torch.zeros(1))
