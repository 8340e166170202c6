"""Starts processes with Detectron2's launcher and raises bua's own errors unchanged."""

import re
from collections.abc import Callable
from datetime import timedelta

import detectron2.engine
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from bua.engine import NonFiniteLoss, rendezvous
from bua.engine.launch import check_counts, error_queue, raise_reported, reported_errors, share_cores
from bua.errors import InputError

# The other processes wait this long while the first one scores an evaluation. Detectron2's default is half an hour.
WAITING_TIMEOUT = timedelta(hours=4)

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
        if num_processes * num_machines == 1:
            function(*args)
        else:
            _launch(function, args, num_processes, num_machines, machine_rank, f"tcp://{host}:{port}")
    except (InputError, NonFiniteLoss, ProcessRaisedException) as error:
        # Data loaders and processes pass on an error as the text of its traceback, which ends with the error itself.
        # The text of an InputError has no line breaks, but its argument does.
        found = _OWN_ERROR.findall(str(error.args[0]) if error.args else "")
        if not found:
            raise
        kind, message = found[-1]
        raise _OWN_ERRORS[kind](message) from None


def _launch(
    function: Callable, args: tuple, num_processes: int, num_machines: int, machine_rank: int, address: str
) -> None:
    errors = error_queue()
    try:
        detectron2.engine.launch(
            _run,
            num_processes,
            num_machines,
            machine_rank,
            dist_url=address,
            args=(function, args, num_processes, errors),
            timeout=WAITING_TIMEOUT,
        )
    except (ProcessRaisedException, ProcessExitedException) as failure:
        raise_reported(errors, failure)


def _run(function: Callable, args: tuple, num_processes: int, errors) -> None:
    share_cores(num_processes)
    with reported_errors(errors):
        function(*args)
