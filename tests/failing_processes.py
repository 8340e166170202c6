"""A script in which one of two processes fails while the other one waits for it.

The failing process could not clean up: as with NCCL, to destroy its process group waits for the other process.
"""

import argparse
import atexit
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bua.engine import connect, launch
from bua.errors import InputError, command

FOREVER_SECONDS = 3600


def assert_that_all_processes_end(engine: str, place: str) -> None:
    """Runs this script. Processes that wait forever would hold the pipes open, so that ``run`` would not return."""
    script = Path(__file__)
    done = subprocess.run(
        [sys.executable, script, "--engine", engine, "--place", place],
        env={**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: a.jpg: is a truncated JPEG file; fetch it again"
    assert "Traceback" not in done.stderr


def fail():
    raise InputError("a.jpg: is a truncated JPEG file; fetch it again")


def never_returns(*args):
    time.sleep(FOREVER_SECONDS)


def fail_on_the_torch_engine(place: str, folder: str) -> None:
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


def fail_in_detectron2(place: str, folder: str) -> None:
    atexit.register(never_returns)
    if torch.distributed.get_rank() == {"loading": 1, "evaluating": 0}[place]:
        fail()
    torch.distributed.all_reduce(torch.zeros(1))


@command
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["torch", "detectron2"])
    parser.add_argument("--place", choices=["loading", "training", "evaluating"])
    args = parser.parse_args()
    start, function = launch, fail_on_the_torch_engine
    if args.engine == "detectron2":
        from bua.d2.launch import launch as start

        function = fail_in_detectron2
    with tempfile.TemporaryDirectory() as folder:
        start(function, (args.place, folder), num_processes=2)


if __name__ in ("__main__", "__mp_main__"):
    sys.path.append(os.path.join(os.path.dirname(__file__), "engine"))
    from toy_training import train_toy

if __name__ == "__main__":
    sys.exit(main())
