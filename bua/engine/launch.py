"""Starts one process per device and connects the processes to one group."""

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from tqdm import tqdm

from bua.config import check_device
from bua.errors import InputError
from bua.precision import set_float32_precision

# How long a process waits for the others in an iteration. It must cover the differences in reading data at the start.
# The waits for the main process, which may take longer, are those of ``bua.engine.collectives``.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
EXIT_TIMEOUT_SECONDS = 10
FAILED = 1
# A model and its optimizer in each process need memory, too.
MOST_PROCESSES_PER_CORE = 16
# A pipe holds 64 KiB. The process that started the others reads it only when one has ended.
LONGEST_REPORT = 32_000


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

    Ctrl-C in this process is passed on to the others once. This process waits until they are done, for example with
    saving, and raises KeyboardInterrupt. A second Ctrl-C terminates them.

    Args:
        function: A function that can be pickled and calls ``connect`` first.
        args: Arguments of ``function``.
        num_processes: Number of processes on each machine.
        num_machines: Number of machines.
        machine_rank: Number of this machine, from 0.
        address: "tcp://host:port" of machine 0, the same on all machines. "auto" takes a free port, if there is only
            one machine.

    Raises:
        InputError: The arguments contradict each other.
        Exception: An error of ``function``: bua's own errors as they are, all others as torch's ProcessRaisedException
            with the traceback.
    """
    check_counts(num_processes, num_machines)
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
    errors = error_queue()
    processes = mp.start_processes(
        _run_process,
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
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as failure:
        raise_reported(errors, failure)


def connect(device: str, float32_precision: str = "") -> Accelerator:
    """Connects this process to the group that ``launch`` or torchrun started. A single process is a group of one.

    It also sets the GPU of this process and the precision of its float32 arithmetic.

    Args:
        device: A torch device. With "cpu", all processes use the CPU. With "cuda", each process uses one GPU. "cuda:1"
            is for a single process.
        float32_precision: ``FLOAT32_PRECISION``, as for ``bua.precision.set_float32_precision``.

    Raises:
        InputError: This machine does not have the device, or several processes would share one GPU, or the precision is
            unknown.
    """
    check_device(device)
    set_float32_precision(float32_precision)
    kind, index = torch.device(device).type, torch.device(device).index
    if kind == "cuda":
        needed = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        check_processes(device, needed)
        if index is not None and needed > 1:
            raise InputError(
                f"MODEL.DEVICE is {device!r}, which is one GPU for {needed} processes; use cuda, which gives each "
                "process a GPU of its own, or --num-gpus 1"
            )
        torch.cuda.set_device(index if index is not None else int(os.environ.get("LOCAL_RANK", 0)))
    return Accelerator(
        cpu=kind == "cpu" and "LOCAL_RANK" in os.environ,
        device_placement=False,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )


def _run_process(local_rank: int, function: Callable, args: tuple, world: dict, first_rank: int, errors) -> None:
    # In a process group of its own, this process does not get Ctrl-C from the terminal. The process that started it
    # passes it on, once.
    os.setpgrp()
    os.environ.update(world, RANK=str(first_rank + local_rank), LOCAL_RANK=str(local_rank))
    share_cores(int(world["LOCAL_WORLD_SIZE"]))
    with reported_errors(errors):
        function(*args)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _stop(processes) -> None:
    """Sends SIGINT to all processes and waits for the first one, which saves.

    The others are terminated soon after it, because they may be waiting for a process that has ended.
    """
    for process in processes.processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    first, *others = processes.processes
    try:
        first.join()
        for process in others:
            process.join(EXIT_TIMEOUT_SECONDS)
    finally:
        for process in processes.processes:
            process.terminate()


def error_queue():
    """Returns a queue for ``reported_errors`` in new processes and ``raise_reported`` in the one that starts them."""
    # torch reports that it terminates the other processes. The user wants to read only why.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    return mp.get_context("spawn").SimpleQueue()


@contextmanager
def reported_errors(errors) -> Iterator[None]:
    """A context in which an error ends this process within seconds, whatever the other processes do.

    The error is put into the queue first. The process is then left without any clean-up: to destroy an NCCL group is a
    collective operation, which would wait for the other processes, while these wait for this one.
    """
    # By default, tqdm makes a lock for several processes, whose semaphore would be left behind.
    tqdm.set_lock(threading.RLock())
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        own = type(error).__module__.startswith("bua.") or isinstance(error, KeyboardInterrupt)
        errors.put(error if own else traceback.format_exc()[-LONGEST_REPORT:])
        for worker in mp.active_children():
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED)


def raise_reported(errors, failure: mp.ProcessRaisedException | mp.ProcessExitedException) -> NoReturn:
    """Raises the error that the first process to fail has reported, after torch has terminated the others.

    Args:
        errors: The queue.
        failure: What torch raised, which is raised again if there is no report.

    Raises:
        Exception: bua's own errors and KeyboardInterrupt as they are. All others are torch's ProcessRaisedException
            with the traceback, or, if a process was killed, its ProcessExitedException.
    """
    if errors.empty():
        raise failure
    # Only the first report is read. One after it may be incomplete, because its process was terminated.
    report = errors.get()
    if isinstance(report, BaseException):
        raise report from None
    text = f"\n\n-- A process ended with the following error:\n{report}"
    raised = mp.ProcessRaisedException(text, failure.error_index, failure.error_pid)
    # The others lose their connection to a process that was killed, and report this.
    if isinstance(failure, mp.ProcessExitedException) and failure.exit_code < 0:
        raise failure from raised
    raise raised from None


def share_cores(num_processes: int) -> None:
    """Limits the threads of this process to its share of the cores, unless OMP_NUM_THREADS is set.

    If each of several processes had a thread on every core, an iteration would take twice as long.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // num_processes)
        torch.set_num_threads(threads)
        # Without the variable, accelerate would choose a number of its own, and warn in each process.
        os.environ["OMP_NUM_THREADS"] = str(threads)


def check_processes(device: str, num_processes: int) -> None:
    """Checks that this machine has a GPU, or at least a share of a core, for each process.

    Processes on the CPU that have less than a core each are allowed, with a warning on standard error.

    Raises:
        InputError: This machine does not have the device, or has fewer GPUs than processes; or there are more processes
            than ``MOST_PROCESSES_PER_CORE`` allows.
    """
    check_device(device)
    if torch.device(device).type == "cuda":
        if torch.cuda.device_count() < num_processes:
            raise InputError(
                f"MODEL.DEVICE is {device!r}: {num_processes} GPUs are needed, but {torch.cuda.device_count()} found; "
                "lower --num-gpus or add MODEL.DEVICE cpu to the command"
            )
        return
    cores = os.cpu_count() or 1
    if num_processes > cores * MOST_PROCESSES_PER_CORE:
        raise InputError(
            f"--num-gpus {num_processes}: too many processes for the {cores} cores of this machine; lower it"
        )
    if num_processes > cores:
        print(
            f"warning: --num-gpus {num_processes} starts {num_processes} processes on the {cores} cores of this "
            "machine, which is slower than a process a core",
            file=sys.stderr,
        )


def check_counts(num_processes: int, num_machines: int) -> None:
    """Raises an InputError if a number of processes or machines is less than 1."""
    if num_processes < 1 or num_machines < 1:
        raise InputError(f"--num-gpus {num_processes}, --num-machines {num_machines}: both must be 1 or more")


def rendezvous(address: str, num_machines: int, machine_rank: int) -> tuple[str, int]:
    """Returns the host and the port at which the processes connect. Arguments and errors are those of ``launch``."""
    if not 0 <= machine_rank < num_machines:
        raise InputError(f"--machine-rank {machine_rank}: must be from 0 to {num_machines - 1}, as --num-machines says")
    if address == "auto":
        if num_machines > 1:
            raise InputError("--dist-url auto: for several machines, set it to tcp://host:port of the first one")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return "127.0.0.1", free.getsockname()[1]
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not host or not port.isdigit():
        raise InputError(f"--dist-url {address}: it must have the form tcp://host:port")
    return host, int(port)
