"""Starts processes with Detectron2's launcher and raises bua's own errors unchanged."""

import re
from collections.abc import Callable

import detectron2.engine
import torch
from torch.multiprocessing import ProcessRaisedException

from bua.engine import NonFiniteLoss, rendezvous
from bua.engine.launch import check_counts, share_cores
from bua.errors import InputError

_OWN_ERRORS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (InputError, NonFiniteLoss)}
_OWN_ERROR = re.compile(rf"^({'|'.join(map(re.escape, _OWN_ERRORS))}): (.*)$", re.MULTILINE)


def launch(
    function: Callable,
    args: tuple = (),
    *,
    address: str = "auto",
    machine_rank: int = 0,
    num_machines: int = 1,
    num_processes: int = 1,
) -> None:
    """Does the same as ``bua.engine.launch`` with ``detectron2.engine.launch``."""
    check_counts(num_processes, num_machines)
    if num_processes > 1 and torch.cuda.is_available() and torch.cuda.device_count() < num_processes:
        raise InputError(f"--num-gpus {num_processes}: this machine has {torch.cuda.device_count()} GPUs; lower it")
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
        # Data loaders and processes pass on an error as the text of its traceback, which ends with the error itself.
        found = _OWN_ERROR.findall(str(error))
        if not found:
            raise
        kind, message = found[-1]
        raise _OWN_ERRORS[kind](message) from None


def _run(function: Callable, args: tuple, num_processes: int) -> None:
    share_cores(num_processes)
    function(*args)
