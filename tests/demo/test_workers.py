import os
import signal
import threading
import time
from contextlib import closing

import pytest

from bua.demo.workers import run_parallel
from bua.engine.interruption import Interruption

SECONDS = 600  # far more than a busy machine needs


def train(folder, name):
    """Stands for a training: it runs until it is interrupted, and then saves."""
    if name == "quick":
        (folder / "quick.started").touch()
        return "result"
    if name == "bad":
        _wait_for(folder / "a.started")
        raise ValueError("the job failed")
    end = time.monotonic() + SECONDS
    with Interruption() as interruption:
        (folder / f"{name}.started").touch()
        while not interruption.requested and time.monotonic() < end:
            time.sleep(0.02)
        (folder / f"{name}.saved").touch()
    raise KeyboardInterrupt


def _wait_for(*paths):
    end = time.monotonic() + SECONDS
    while not all(path.exists() for path in paths) and time.monotonic() < end:
        time.sleep(0.02)


def _names(folder, suffix):
    return {path.stem for path in folder.glob(f"*.{suffix}")}


def test_an_interrupt_of_the_main_process_alone_stops_the_others(tmp_path):
    first_result = threading.Event()

    def interrupt():
        first_result.wait(SECONDS)
        _wait_for(*(tmp_path / f"{name}.started" for name in ("a", "b")))
        os.kill(os.getpid(), signal.SIGINT)

    jobs = [(tmp_path, name) for name in ("quick", "a", "b", "c", "d")]
    results = []

    def run():
        with closing(run_parallel(train, jobs, workers=2, threads=1)) as completed:
            for result in completed:
                results.append(result)
                first_result.set()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert results == [((tmp_path, "quick"), "result")]
    assert _names(tmp_path, "started") == {"quick", "a", "b"}
    assert _names(tmp_path, "saved") == {"a", "b"}


def test_a_job_that_fails_stops_the_others(tmp_path):
    """The other job can save, although the signal also reaches the process of the job that failed, which is idle."""
    with pytest.raises(ValueError, match="the job failed"):
        list(run_parallel(train, [(tmp_path, name) for name in ("a", "bad")], workers=2, threads=1))
    assert _names(tmp_path, "saved") == {"a"}
