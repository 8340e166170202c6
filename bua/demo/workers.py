"""Runs jobs in parallel processes, which are stopped when this process is interrupted."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import TypeVar

import torch

Job = TypeVar("Job", bound=tuple)
Result = TypeVar("Result")


def run_parallel(
    function: Callable[..., Result], jobs: Iterable[Job], *, workers: int, threads: int
) -> Generator[tuple[Job, Result], None, None]:
    """Yields each job with the result of ``function(*job)``, in the order in which the jobs are completed.

    After Ctrl-C in this process, or if a job fails, no further job is started, and the jobs that are running get
    SIGINT. This process waits until they have ended, for example after saving a checkpoint, and raises the exception. A
    second Ctrl-C terminates them. The same happens when the generator is closed, so use ``contextlib.closing``: an
    exception between two results would otherwise leave the jobs running.

    Args:
        function: A function that can be pickled.
        jobs: Arguments of ``function`` for each job.
        workers: Number of processes.
        threads: Number of threads that PyTorch uses in each process.
    """
    # The processes are spawned and not forked, because threads of this process may hold locks.
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _start_worker, (stopped, threads)) as pool:
        try:
            futures = {pool.submit(_run, function, job): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            # The event comes before the signal, so that a worker that misses the signal between two jobs sees the event
            # before it starts the next one.
            stopped.set()
            processes = set(multiprocessing.active_children()) - others
            _interrupt(processes)
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:
                for process in processes:
                    process.terminate()
            raise


def _interrupt(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGINT)


# In a worker: the event that ``run_parallel`` sets when no further job is to start. It can be passed to a process only
# when the process starts, not with a job.
_stopped: Event


def _start_worker(stopped: Event, threads: int) -> None:
    global _stopped
    _stopped = stopped
    # In a process group of its own, a worker does not get Ctrl-C from the terminal. The process that started it passes
    # it on, once. Between two jobs SIGINT is ignored: it would end the worker, and the pool would then terminate the
    # other workers before they have saved.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    # A signal that kills the whole process group of the parent process does not reach this worker.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(function: Callable[..., Result], job: tuple) -> Result:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if _stopped.is_set():
            raise KeyboardInterrupt
        return function(*job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
