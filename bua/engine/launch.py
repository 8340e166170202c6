"""One process a device: starting them, and joining them to one group."""

import os
import signal
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from bua.config import check_device
from bua.errors import InputError

# Processes wait for each other while one of them evaluates.
PATIENCE = timedelta(hours=12)
GRACE_SECONDS = 10


def launch(
    function: Callable,
    args: tuple = (),
    *,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    address: str = "auto",
) -> None:
    """Runs ``function(*args)`` in this process, or in ``num_processes`` new ones on each of ``num_machines``.

    Ctrl-C in this process reaches the others once; what they then do, such as saving, is waited for, and
    KeyboardInterrupt raised. A second Ctrl-C ends them.

    Args:
        function: can be pickled; calls ``connect`` first.
        machine_rank: of this machine, from 0.
        address: "tcp://host:port" of machine 0, the same on all machines; "auto" takes a free port where there is
            one machine.

    Raises:
        InputError: arguments that do not go together.
        bua's own errors as ``function`` raised them; others as torch's ProcessRaisedException with the traceback.
    """
    if num_processes < 1 or num_machines < 1:
        raise InputError(f"--num-gpus {num_processes}, --num-machines {num_machines}: must be 1 or more")
    if num_processes * num_machines == 1:
        function(*args)
        return
    host, port = rendezvous(address, num_machines, machine_rank)
    world = {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes * num_machines),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    # torch hands on a failure as the text of its traceback; bua's own errors come by this queue as they are.
    errors = mp.get_context("spawn").SimpleQueue()
    processes = mp.start_processes(
        _process,
        (function, args, world, machine_rank * num_processes, errors),
        nprocs=num_processes,
        join=False,
        start_method="spawn",
    )
    try:
        while not processes.join():
            pass
    except KeyboardInterrupt:
        _stop(processes)
        raise
    except (mp.ProcessRaisedException, mp.ProcessExitedException):
        if errors.empty():
            raise
        raise errors.get() from None


def connect(device: str) -> Accelerator:
    """Joins the group of processes that ``launch`` (or torchrun) started this one in; alone, a group of one.

    Args:
        device: a torch device. Several processes share "cpu", or take one GPU each where it is "cuda".

    Raises:
        InputError: no such device here.
    """
    check_device(device)
    kind = torch.device(device).type
    if kind == "cuda":
        needed = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if torch.cuda.device_count() < needed:
            raise InputError(
                f"MODEL.DEVICE {device}: {needed} GPUs needed and {torch.cuda.device_count()} found; "
                "lower --num-gpus or add MODEL.DEVICE cpu to the command"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else torch.device(device))
    return Accelerator(
        cpu=kind == "cpu" and "LOCAL_RANK" in os.environ,
        device_placement=False,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )


def _process(local_rank: int, function: Callable, args: tuple, world: dict, first_rank: int, errors) -> None:
    # Out of the terminal's reach: Ctrl-C there comes once, by way of the process that started this one.
    os.setpgrp()
    os.environ.update(world, RANK=str(first_rank + local_rank), LOCAL_RANK=str(local_rank))
    share_cores(int(world["LOCAL_WORLD_SIZE"]))
    try:
        function(*args)
    except Exception as error:
        if type(error).__module__.startswith("bua."):
            errors.put(error)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _stop(processes) -> None:
    """Asks all to stop and waits for the first, which saves; the others may be waiting for it in vain."""
    for process in processes.processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    first, *others = processes.processes
    try:
        first.join()
        for process in others:
            process.join(GRACE_SECONDS)
    finally:
        for process in processes.processes:
            process.terminate()


def share_cores(num_processes: int) -> None:
    """Gives this process its part of the cores, where OMP_NUM_THREADS does not say another: with a thread on every core
    in each of several processes, a step takes twice as long."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, os.cpu_count() // num_processes))


def rendezvous(address: str, num_machines: int, machine_rank: int) -> tuple[str, int]:
    """The host and the port where the processes meet; arguments and errors as for ``launch``."""
    if not 0 <= machine_rank < num_machines:
        raise InputError(f"--machine-rank {machine_rank}: must be from 0 to {num_machines - 1} for --num-machines")
    if address == "auto":
        if num_machines > 1:
            raise InputError("--dist-url auto: several machines need tcp://host:port of the first one")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return "127.0.0.1", free.getsockname()[1]
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not host or not port.isdigit():
        raise InputError(f"--dist-url {address}: write it as tcp://host:port")
    return host, int(port)
