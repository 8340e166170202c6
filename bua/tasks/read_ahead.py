"""Makes batches ahead in threads, in memory or on a device, while a model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

ShareT = TypeVar("ShareT")
MadeT = TypeVar("MadeT")
BatchT = TypeVar("BatchT", bound="DeviceBatch")


class DeviceBatch(Protocol):
    """A batch that can be copied to a device."""

    def to(self: BatchT, device: torch.device, /) -> BatchT: ...

    def record_stream(self, stream: torch.cuda.Stream, /) -> None: ...


def read_ahead(make: Callable[[ShareT], MadeT], shares: Iterable[ShareT], threads: int) -> Iterator[MadeT]:
    """Yields what ``make`` makes of each share, in order. ``threads`` threads make the next ones while one is used."""
    if threads == 0:
        yield from map(make, shares)
        return
    pending: deque[Future[MadeT]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for share in shares:
                pending.append(pool.submit(make, share))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def read_ahead_on(
    device: torch.device | str, make: Callable[[ShareT], BatchT], shares: Iterable[ShareT], threads: int
) -> Iterator[BatchT]:
    """Yields batches as ``read_ahead`` does, on a device. At most ``threads`` + 2 of them are on it.

    The threads copy batches to a GPU on a stream of their own, so that copies and the model's work run at the same
    time, and neither the threads nor the caller wait for the GPU. A batch is ready for the stream that is current where
    the iterator is advanced.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield from read_ahead(lambda share: make(share).to(device), shares, threads)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def made(share: ShareT) -> tuple[BatchT, torch.cuda.Event]:
        # The stream also sets the current device of the thread, which would otherwise be the first GPU.
        with torch.cuda.stream(stream):
            batch = make(share).to(device)
            return batch, stream.record_event()

    for batch, ready in read_ahead(made, shares, threads):
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        # The memory belongs to the other stream, which must not reuse it before this one has read it.
        batch.record_stream(current)
        yield batch
