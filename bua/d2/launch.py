"""Detectron2's launcher, with bua's errors as they are."""

import re
from collections.abc import Callable

import detectron2.engine
import torch
from torch.multiprocessing import ProcessRaisedException

from bua.engine import NonFiniteLoss, rendezvous
from bua.engine.launch import share_cores
from bua.errors import InputError

_OWN_ERRORS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (InputError, NonFiniteLoss)}
_OWN_ERROR = re.compile(rf"^({'|'.join(map(re.escape, _OWN_ERRORS))}): (.*)$", re.MULTILINE)


def launch(
    function: Callable,
    args: tuple = (),
    *,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    address: str = "auto",
) -> None:
    """As ``bua.engine.launch``, through ``detectron2.engine.launch``."""
    if num_processes < 1 or num_machines < 1:
        raise InputError(f"--num-gpus {num_processes}, --num-machines {num_machines}: must be 1 or more")
    if num_processes > 1 and torch.cuda.is_available() and torch.cuda.device_count() < num_processes:
        raise InputError(f"--num-gpus {num_processes}: there are {torch.cuda.device_count()} here")
    host, port = rendezvous(address, num_machines, machine_rank)
    try:
        detectron2.engine.launch(
            _run,
            num_processes,
            num_machines,
            machine_rank,
            dist_url=f"tcp://{host}:{port}",
            args=(function, args, num_processes),
        )
    except (InputError, NonFiniteLoss, ProcessRaisedException) as error:
        # Data loaders and processes hand on an error as the text of its traceback, which ends with the error itself.
        found = _OWN_ERROR.findall(str(error))
        if not found:
            raise
        kind, message = found[-1]
        raise _OWN_ERRORS[kind](message) from None


def _run(function: Callable, args: tuple, num_processes: int) -> None:
    share_cores(num_processes)
    function(*args)
