"""Extracts the regions of images on several devices of this machine. Each device has a process, which gets more images
when it is free, and writes their regions into shards."""

import logging
import math
import multiprocessing
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import torch

from bua.errors import InputError, make_folder
from bua.extraction.extractor import FLUSH_BATCHES, Extractor, Outcome
from bua.extraction.extractor_config import ExtractorConfig
from bua.extraction.shards import SHARD_SECONDS, Shard, ShardFolder, ShardWriter, Written
from bua.extraction.sources import ImageFile
from bua.extraction.write_behind import MAX_UNWRITTEN, record_behind
from bua.signals import without_ctrl_c

# Number of images that a process has in addition to those in progress, so that it never waits for more.
QUEUED_IMAGES = 32

# Number of processes that may die on a device one after the other, without any finished image between, before the
# device is no longer used.
MAX_DEATHS = 3

# Time that a process has to end by itself.
GRACE_SECONDS = 10

# A mark in place of images, after all of them are finished: the process completes its shard.
CLOSE_SHARD = "close the shard"

logger = logging.getLogger(__name__)


def devices_of(device: str, number: int) -> list[str]:
    """Returns ``number`` devices of the kind of ``device``: the first GPUs, or the CPU that many times.

    Raises:
        InputError: There are fewer GPUs.
    """
    if number < 1:
        raise InputError(f"--num-gpus {number}: must be 1 or more")
    if torch.device(device).type != "cuda":
        logger.info("--num-gpus %d: the device is %s, so that %d processes share its cores", number, device, number)
        return [device] * number
    if torch.cuda.device_count() < number:
        raise InputError(
            f"--num-gpus {number}: {torch.cuda.device_count()} GPUs found; lower it, or add --device cpu for processes "
            "on the CPU"
        )
    return [f"cuda:{index}" for index in range(number)]


@contextmanager
def start_device_pool(config: ExtractorConfig, devices: list[str], shards: ShardFolder) -> Iterator["DevicePool"]:
    """Starts a process on each device, waits until all have loaded the detector, and ends them after the block.

    Raises:
        InputError: What ``ExtractorConfig.load_detector`` raises in the processes.
    """
    pool = DevicePool(config, devices, shards)
    try:
        pool.wait_until_ready()
        yield pool
    finally:
        pool.close()


class DevicePool:
    """Extracts on several devices. The processes write the regions into shards.

    When a process dies, a new one is started in its place, and other processes continue with its images. The images
    that it had in progress are suspects: each is tried once more on its own, and an image that kills a second process
    is marked as failed. The shard of a process that dies is left in the folder.
    """

    def __init__(self, config: ExtractorConfig, devices: list[str], shards: ShardFolder):
        self._config, self._shards = config, shards
        self._threads = max(1, (os.cpu_count() or 1) // len(devices))
        self._workers: list[_Worker] = []
        for number, device in enumerate(devices):
            self._workers.append(_Worker(config, device, self._threads, shards, quiet=number > 0))

    def wait_until_ready(self) -> None:
        """Waits until all processes have loaded the detector."""
        for worker in self._workers:
            worker.wait_until_ready()

    def __call__(self, images: list[ImageFile]) -> Iterator[Outcome | Written | Shard]:
        """Yields for each image that it is written or why it failed, in the order in which they are finished, and each
        shard as soon as it is complete.

        Raises:
            InputError: The processes on all devices have died, or a shard cannot be written.
        """
        make_folder(self._shards.path)
        waiting: deque[ImageFile] = deque(images)
        suspects: deque[ImageFile] = deque()
        while waiting or suspects or any(worker.images for worker in self._workers):
            if not self._workers:
                raise InputError(
                    f"the processes on all devices died; {len(waiting) + len(suspects)} images are left; run the same "
                    "command again to continue with them"
                )
            for worker in self._workers:
                # Each gets an equal share, so that all finish at the same time.
                worker.give(waiting, suspects, most=math.ceil(len(waiting) / len(self._workers)))
            answered = wait([worker.connection for worker in self._workers])
            for worker in [worker for worker in self._workers if worker.connection in answered]:
                if not worker.ready:
                    self._finish_start(worker)
                    continue
                try:
                    answer = worker.receive()
                except (EOFError, OSError):
                    yield from self._replace(worker, waiting, suspects)
                    continue
                if isinstance(answer, InputError):
                    raise answer
                yield answer
        for worker in self._workers:
            if worker.ready and (shard := worker.close_shard()):
                yield shard

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def _finish_start(self, worker: "_Worker") -> None:
        """Reads from a new process whether it could load the detector."""
        try:
            worker.wait_until_ready()
        except InputError as error:
            logger.warning("%s; %d devices are left", error, len(self._workers) - 1)
            self._workers.remove(worker)
            worker.close()

    def _replace(self, worker: "_Worker", waiting: deque[ImageFile], suspects: deque[ImageFile]) -> Iterator[Outcome]:
        """Starts a new process in the place of a dead one, whose images go to ``waiting`` and ``suspects``."""
        self._workers.remove(worker)
        exit_code = worker.wait_until_dead()
        logger.warning(
            "the process on %s died (exit code %s); other processes continue with its %d images",
            worker.device,
            exit_code,
            len(worker.images),
        )
        in_progress, rest = worker.images[: worker.max_in_progress], worker.images[worker.max_in_progress :]
        waiting.extendleft(reversed(rest))
        if worker.has_suspect:
            for image in in_progress:
                yield Outcome(
                    image, None, f"two processes died while they processed it, the second with exit code {exit_code}"
                )
        else:
            suspects.extend(in_progress)
        deaths = worker.deaths + 1
        if deaths < MAX_DEATHS:
            self._workers.append(
                _Worker(self._config, worker.device, self._threads, self._shards, quiet=True, deaths=deaths)
            )
        else:
            logger.warning("%d processes died on %s; %d devices are left", deaths, worker.device, len(self._workers))


class _Worker:
    """One process, as the main process sees it.

    Attributes:
        images: Images that it was given and has not finished, in their order.
        ready: Whether it has loaded the detector.
        has_suspect: Whether it was given a suspect, and nothing else.
        flushed: Whether it was told to hold back none of its images for a fuller batch.
        max_in_progress: Largest number of its images that are in progress at a time.
        deaths: Number of processes that died on this device before it, since one of them finished an image.
    """

    def __init__(
        self,
        config: ExtractorConfig,
        device: str,
        threads: int,
        shards: ShardFolder,
        *,
        quiet: bool,
        deaths: int = 0,
    ):
        # Processes are forked from a server that has only done the imports, because CUDA does not survive a fork.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.device, self.deaths = device, deaths
        self.images: list[ImageFile] = []
        self.ready = self.has_suspect = self.flushed = False
        self.max_in_progress = 0
        self.connection, other = context.Pipe()
        arguments = (other, config, device, threads, shards, quiet)
        self.process = context.Process(target=run_worker, args=arguments, daemon=True)
        try:
            # Ctrl-C reaches every process of the terminal; the main process ends the others.
            with without_ctrl_c():
                self.process.start()
        except (EOFError, OSError) as error:
            # The server was killed at this moment, or the system has no more processes or memory.
            raise InputError(
                f"cannot start a process on {device} ({error}); run the same command again to continue"
            ) from error
        # The process has the only copy of the other end, so that the connection ends when it dies.
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
        self.max_in_progress, self.ready = answer, True

    def give(self, waiting: deque[ImageFile], suspects: deque[ImageFile], most: int) -> None:
        """Gives the process as many images as it can take: a suspect, or at most ``most`` of the waiting ones."""
        if not self.ready or (self.has_suspect and self.images):
            return
        if suspects and not self.images:
            # If it kills this process too, no other image is lost.
            self.has_suspect = True
            self._send([suspects.popleft()], flush=True)
        elif waiting and len(self.images) <= self.max_in_progress + QUEUED_IMAGES:
            self.has_suspect = False
            number = min(most, self.max_in_progress + 2 * QUEUED_IMAGES - len(self.images))
            images = [waiting.popleft() for _ in range(number)]
            # Without more images than it can hold back, it would wait for ever.
            self._send(images, flush=not waiting or len(self.images) + number <= self.max_in_progress)
        elif not waiting and self.images and not self.flushed:
            self._send([], flush=True)

    def receive(self) -> Outcome | Written | Shard | InputError:
        answer: Outcome | Written | Shard | InputError = self.connection.recv()
        if isinstance(answer, (Outcome, Written)):
            self.images.remove(answer.image)
            self.deaths = 0
        return answer

    def close_shard(self) -> Shard | None:
        """Lets a process without images complete its shard, and returns this.

        Raises:
            InputError: The shard cannot be written.
        """
        try:
            self.connection.send(CLOSE_SHARD)
            shard: Shard | InputError | None = self.connection.recv()
        except (EOFError, OSError):
            logger.warning("the process on %s died after its last image", self.device)
            return None
        if isinstance(shard, InputError):
            raise shard
        return shard

    def wait_until_dead(self) -> int | None:
        """Returns the exit code of a process whose connection has ended."""
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode

    def close(self) -> None:
        """Ends the process: at once if it is at work, otherwise when it has noticed that the connection ended."""
        self.connection.close()
        if self.images or not self.ready:
            self.process.kill()
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()

    def _send(self, images: list[ImageFile], flush: bool) -> None:
        self.images += images
        self.flushed = flush
        # If the process is dead, this is noticed when its answer is read.
        with suppress(OSError):
            self.connection.send([*images, FLUSH_BATCHES] if flush else images)


def run_worker(
    connection: Connection, config: ExtractorConfig, device: str, threads: int, shards: ShardFolder, quiet: bool
) -> None:
    """Runs in the process of a ``_Worker``: sends the largest number of images in progress, or an InputError, and then
    for each image that it receives that it is written or why it failed, and each shard when it is complete."""
    if torch.device(device).type == "cpu":
        torch.set_num_threads(threads)
    # The main process may have ended.
    with suppress(ConnectionError):
        try:
            if torch.device(device).type == "cuda":
                # Otherwise, what names no GPU would use the first one, and its memory, in every process.
                torch.cuda.set_device(device)
            # Only one process reports on the weights.
            logging.disable(logging.WARNING if quiet else logging.NOTSET)
            extractor = Extractor.from_config(replace(config, num_workers=min(config.num_workers, threads)), device)
            logging.disable(logging.NOTSET)
        except InputError as error:
            connection.send(error)
            return
        # An image is in progress until it is written.
        connection.send(extractor.max_in_progress + MAX_UNWRITTEN + 1)
        writer = _WorkerShards(connection, shards)
        for _ in record_behind(writer.write, extractor(_received(connection, writer.close))):
            pass
        writer.close()


class _WorkerShards:
    """Writes outcomes into shards, and tells the main process about them. Two threads can use it."""

    def __init__(self, connection: Connection, shards: ShardFolder):
        self._connection, self._writer, self._lock = connection, ShardWriter(shards), threading.Lock()

    def write(self, outcome: Outcome) -> None:
        with self._lock:
            try:
                answer = self._writer.write(outcome)
                # The image comes last: after all images, the main process expects no shard that it has not asked for.
                if shard := self._writer.close(SHARD_SECONDS):
                    self._connection.send(shard)
            except InputError as error:
                self._connection.send(error)
                return
            self._connection.send(answer)

    def close(self) -> None:
        with self._lock:
            try:
                answer: Shard | InputError | None = self._writer.close()
            except InputError as error:
                answer = error
            self._connection.send(answer)


def _received(connection: Connection, close_shard: Callable[[], None]) -> Iterator[ImageFile | None]:
    """Yields the images that the main process sends, and calls ``close_shard`` when it says so.

    They are taken from the connection at once. If it were full, the main process would wait for this process, while
    this process, with an outcome to send, waits for the main process.
    """
    incoming: queue.SimpleQueue[list[ImageFile | None] | str | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, incoming), daemon=True).start()
    while (images := incoming.get()) is not None:
        if isinstance(images, str):
            close_shard()
        else:
            yield from images


def _receive(connection: Connection, incoming: queue.SimpleQueue[list[ImageFile | None] | str | None]) -> None:
    try:
        while True:
            incoming.put(connection.recv())
    except (EOFError, OSError):
        incoming.put(None)
