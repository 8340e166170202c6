"""From images to their regions on many devices: a process for each, which takes work when it gets free."""

import logging
import math
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait

import torch

from bua.errors import InputError
from bua.extraction.extractor import FLUSH, Extractor, Outcome
from bua.extraction.extractor_config import ExtractorConfig
from bua.extraction.sources import ImageFile

# Images that a process has besides those in work, so that it does not wait for more.
SPARE = 32

# Of processes on a device, one after the other and without an image done between, before it is left alone.
MAX_DEATHS = 3

GRACE_SECONDS = 10

logger = logging.getLogger(__name__)


def devices_of(device: str, number: int) -> list[str]:
    """``number`` devices of the kind of ``device``: the first GPUs, or the CPU that many times.

    Raises:
        InputError: there are fewer GPUs.
    """
    if number < 1:
        raise InputError(f"--num-gpus {number}: must be 1 or more")
    if torch.device(device).type != "cuda":
        return [device] * number
    if torch.cuda.device_count() < number:
        raise InputError(
            f"--num-gpus {number}: {torch.cuda.device_count()} GPUs found; lower it, or add --device cpu for processes "
            "on the CPU"
        )
    return [f"cuda:{index}" for index in range(number)]


@contextmanager
def on_devices(config: ExtractorConfig, devices: list[str]) -> Iterator["Pool"]:
    """Processes that have loaded the detector, one on each device; they end with the block.

    Raises:
        InputError: what ``ExtractorConfig.load`` raises in the processes.
    """
    pool = Pool(config, devices)
    try:
        pool.wait_until_ready()
        yield pool
    finally:
        pool.close()


class Pool:
    """Extracts on many devices. A process that dies is reported, and others do its images; a new one takes its
    place. Those images that it had in work then are done alone, and one with which a process dies again is given up.
    """

    def __init__(self, config: ExtractorConfig, devices: list[str]):
        self._config = config
        self._threads = max(1, (os.cpu_count() or 1) // len(devices))
        self._workers: list[_Worker] = []
        for number, device in enumerate(devices):
            self._workers.append(_Worker(config, device, self._threads, quiet=number > 0))

    def wait_until_ready(self) -> None:
        for worker in self._workers:
            worker.wait_until_ready()

    def __call__(self, images: list[ImageFile]) -> Iterator[Outcome]:
        """The outcome of each image, in the order in which they get done.

        Raises:
            InputError: the processes of all devices have died.
        """
        waiting, suspects = deque(images), deque()
        while waiting or suspects or any(worker.images for worker in self._workers):
            if not self._workers:
                raise InputError(
                    f"the processes on all devices died; {len(waiting) + len(suspects)} images are left, and the "
                    "same command goes on with them"
                )
            for worker in self._workers:
                # An even share, so that all end together.
                worker.give(waiting, suspects, most=math.ceil(len(waiting) / len(self._workers)))
            answered = wait([worker.connection for worker in self._workers])
            for worker in [worker for worker in self._workers if worker.connection in answered]:
                if not worker.ready:
                    self._greet(worker)
                    continue
                try:
                    yield worker.receive()
                except (EOFError, OSError):
                    yield from self._replace(worker, waiting, suspects)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []

    def _greet(self, worker: "_Worker") -> None:
        try:
            worker.wait_until_ready()
        except InputError as error:
            logger.warning("%s; %d devices are left", error, len(self._workers) - 1)
            self._workers.remove(worker)
            worker.close()

    def _replace(self, worker: "_Worker", waiting: deque, suspects: deque) -> Iterator[Outcome]:
        self._workers.remove(worker)
        exit_code = worker.wait_until_dead()
        logger.warning(
            "the process on %s died (exit code %s); others do its %d images",
            worker.device,
            exit_code,
            len(worker.images),
        )
        in_work, rest = worker.images[: worker.held], worker.images[worker.held :]
        waiting.extendleft(reversed(rest))
        if worker.alone:
            for image in in_work:
                yield Outcome(image, None, f"two processes died at it, the second with exit code {exit_code}")
        else:
            suspects.extend(in_work)
        deaths = worker.deaths + 1
        if deaths < MAX_DEATHS:
            self._workers.append(_Worker(self._config, worker.device, self._threads, quiet=True, deaths=deaths))
        else:
            logger.warning("%d processes died on %s; %d devices are left", deaths, worker.device, len(self._workers))


class _Worker:
    """The main process's end of one process.

    Attributes:
        images: those it was given and has not answered, in their order.
        alone: whether it was given a suspect, and that alone.
        flushed: whether it holds none of its images back for a fuller batch.
        held: the largest number of its images that are in work at a time.
        deaths: of the processes before it on this device, since one of them did an image.
    """

    def __init__(self, config: ExtractorConfig, device: str, threads: int, *, quiet: bool, deaths: int = 0):
        # Processes are forked from one that has done the imports, and nothing else: CUDA does not survive a fork.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.device, self.deaths = device, deaths
        self.images: list[ImageFile] = []
        self.ready = self.alone = self.flushed = False
        self.held = 0
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, config, device, threads, quiet), daemon=True)
        self.process.start()
        # The process holds the only other end, so that its death ends the connection.
        other.close()

    def wait_until_ready(self) -> None:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise InputError(
                f"the process on {self.device} died while it loaded the detector (exit code {self.wait_until_dead()})"
            ) from None
        if isinstance(answer, InputError):
            raise answer
        self.held, self.ready = answer, True

    def give(self, waiting: deque[ImageFile], suspects: deque[ImageFile], most: int) -> None:
        """Hands over what the process can take, at most so many of the waiting ones."""
        if not self.ready or (self.alone and self.images):
            return
        if suspects and not self.images:
            # One that killed a process must not take others with it.
            self.alone = True
            self._send([suspects.popleft()], flush=True)
        elif waiting and len(self.images) <= self.held + SPARE:
            self.alone = False
            number = min(most, self.held + 2 * SPARE - len(self.images))
            images = [waiting.popleft() for _ in range(number)]
            # With no more than it can hold it would wait for ever.
            self._send(images, flush=not waiting or len(self.images) + number <= self.held)
        elif not waiting and self.images and not self.flushed:
            self._send([], flush=True)

    def receive(self) -> Outcome:
        outcome = self.connection.recv()
        self.images.remove(outcome.image)
        self.deaths = 0
        return outcome

    def wait_until_dead(self) -> int | None:
        """The exit code, when the connection has ended."""
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode

    def close(self) -> None:
        """Ends the process: at once if it is at work, otherwise when it has given back what it holds."""
        self.connection.close()
        if self.images or not self.ready:
            self.process.kill()
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()

    def _send(self, images: list[ImageFile], flush: bool) -> None:
        self.images += images
        self.flushed = flush
        # Of a process that is gone one hears when its answer is read.
        with suppress(OSError):
            self.connection.send([*images, FLUSH] if flush else images)


def _work(connection: Connection, config: ExtractorConfig, device: str, threads: int, quiet: bool) -> None:
    # Ctrl-C reaches every process of the terminal; the main one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch.device(device).type == "cpu":
        torch.set_num_threads(threads)
    # The main process may be gone.
    with suppress(BrokenPipeError):
        try:
            # What there is to say about the weights, one process says.
            logging.disable(logging.WARNING if quiet else logging.NOTSET)
            detector = config.load(device)
            logging.disable(logging.NOTSET)
            extractor = Extractor(
                detector, config.choice, batch_size=config.batch_size, num_workers=min(config.num_workers, threads)
            )
        except InputError as error:
            connection.send(error)
            return
        connection.send(extractor.held)
        for outcome in extractor(_received(connection)):
            connection.send(outcome)


def _received(connection: Connection) -> Iterator[ImageFile | None]:
    """The images that the main process hands over. They are taken from the connection at once: were it full, the
    main process would wait for this one, and this one, with an outcome to send, for the main process."""
    incoming: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, incoming), daemon=True).start()
    while (images := incoming.get()) is not None:
        yield from images


def _receive(connection: Connection, images: queue.SimpleQueue) -> None:
    try:
        while True:
            images.put(connection.recv())
    except (EOFError, OSError):
        images.put(None)
