"""The way of images through an extraction: they are prepared ahead in threads, taken in batches, and on a GPU several
batches are in progress at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import NamedTuple

import torch

from bua.extraction.sources import ImageFile
from bua.structures import DetectorInput, Regions

# A mark in a stream of images. After it, no more images may come for a while, so the extractor finishes the images that
# it holds back for a fuller batch.
FLUSH_BATCHES = None


class Outcome(NamedTuple):
    """The regions of an image, or the reason why there are none."""

    image: ImageFile
    regions: Regions | None
    reason: str | None = None


class PreparedImage(NamedTuple):
    """An image file, and the detector's input or the reason why it cannot be read."""

    image: ImageFile
    inputs: DetectorInput | str


class TooLarge(NamedTuple):
    """What comes instead of a batch's outcomes if the batch does not fit into memory."""

    reason: str


# Computes the outcomes of a batch.
Extract = Callable[[list[PreparedImage]], list[Outcome] | TooLarge]


def prepare_ahead(
    images: Iterable[ImageFile | None],
    prepare: Callable[[ImageFile], DetectorInput | str],
    threads: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[PreparedImage | None]:
    """Yields images in their order. While one is in use, ``threads`` prepare at most ``ahead`` others."""
    waiting: deque[tuple[ImageFile, Future[DetectorInput | str]]] = deque()
    for image in images:
        if image is not FLUSH_BATCHES:
            waiting.append((image, threads.submit(prepare, image)))
        while waiting and (image is FLUSH_BATCHES or len(waiting) > ahead):
            first, inputs = waiting.popleft()
            yield PreparedImage(first, inputs.result())
        if image is FLUSH_BATCHES:
            yield FLUSH_BATCHES
    for image, inputs in waiting:
        yield PreparedImage(image, inputs.result())


def take_batches(images: Iterable[PreparedImage | None], size: int) -> Iterator[list[PreparedImage] | None]:
    """Yields batches of ``size`` images in their order, and FLUSH_BATCHES where it is, after a smaller batch."""
    batch: list[PreparedImage] = []
    for image in images:
        if image is not FLUSH_BATCHES:
            batch.append(image)
        if batch and (image is FLUSH_BATCHES or len(batch) == size):
            yield batch
            batch = []
        if image is FLUSH_BATCHES:
            yield FLUSH_BATCHES
    if batch:
        yield batch


def run_one_by_one(batches: Iterable[list[PreparedImage] | None], extract: Extract) -> Iterator[Outcome]:
    """Yields the outcomes of the batches, each computed in this thread when the one before has been used."""
    for batch in batches:
        if batch is not FLUSH_BATCHES:
            outcomes = extract(batch)
            if isinstance(outcomes, TooLarge):
                yield from _one_image_at_a_time(batch, outcomes, extract)
            else:
                yield from outcomes


class Lanes:
    """Runs several batches at a time on a GPU, each in a thread and on a stream of its own.

    Wherever a batch waits, for the GPU or for the host, the others go on: while the regions of one are selected on the
    host, the GPU computes the next ones, and while one copies its images to the GPU, another computes.
    """

    def __init__(self, device: torch.device, number: int):
        """
        Args:
            number: Largest number of batches that are in progress at a time.
        """
        self.device, self.number = device, number
        # The streams are kept, because each has its own cache of memory.
        self._streams: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
        for _ in range(number):
            self._streams.put(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    def run(self, batches: Iterable[list[PreparedImage] | None], extract: Extract) -> Iterator[Outcome]:
        """Yields the outcomes of the batches in their order. At FLUSH_BATCHES, all are finished first."""
        # What was computed so far, such as the network's weights, may still be under way.
        ready = torch.cuda.current_stream(self.device).record_event()
        running: deque[tuple[list[PreparedImage], Future[list[Outcome] | TooLarge]]] = deque()

        def run_batch(batch: list[PreparedImage]) -> list[Outcome] | TooLarge:
            stream = self._streams.get()
            try:
                with torch.cuda.stream(stream):
                    stream.wait_event(ready)
                    return extract(batch)
            finally:
                self._streams.put(stream)

        def finish_first() -> Iterator[Outcome]:
            batch, future = running.popleft()
            outcomes = future.result()
            if isinstance(outcomes, TooLarge):
                # The others take memory too.
                wait([other for _, other in running])
                yield from _one_image_at_a_time(
                    batch, outcomes, lambda images: threads.submit(run_batch, images).result()
                )
            else:
                yield from outcomes

        threads = ThreadPoolExecutor(self.number, "extract")
        try:
            for batch in batches:
                while running and (batch is FLUSH_BATCHES or len(running) == self.number):
                    yield from finish_first()
                if batch is not FLUSH_BATCHES:
                    running.append((batch, threads.submit(run_batch, batch)))
            while running:
                yield from finish_first()
        finally:
            threads.shutdown(cancel_futures=True)


def _one_image_at_a_time(batch: list[PreparedImage], failure: TooLarge, extract: Extract) -> Iterator[Outcome]:
    """Yields the outcomes of a batch that did not fit into memory."""
    for prepared in batch:
        outcomes = extract([prepared])
        if isinstance(outcomes, TooLarge):
            yield Outcome(prepared.image, None, outcomes.reason)
        else:
            yield from outcomes
