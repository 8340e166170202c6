"""Streams, events, pinned memory and asynchronous copies of the pretended device.

Operators run at once, but what they would do on a GPU is kept account of:

- A stream has a clock, and knows up to which time of each other stream it has waited. Using a tensor that another
  stream made later than that is an error.
- An asynchronous copy to the host fills its target with NaN or the largest integer. The values arrive when the host
  waits for the copy's stream, or for an event after it.
- Memory that an asynchronous copy to the device reads must not change until the host has waited for that copy.
"""

import threading
import time

import torch
from pretended_waits import PAGEABLE, waits

DEVICE = torch.device("cuda:0")

_lock = threading.RLock()
_local = threading.local()
_pinned: dict[int, torch.Tensor] = {}  # By address. They are kept, so that no other memory gets the address.
_written: dict[int, tuple["Stream", int]] = {}  # By address: the stream and the time of the last write.
_host_seen: dict["Stream", int] = {}  # The time of each stream up to which the host has waited.


class _Copy:
    """An asynchronous copy that the host has not waited for.

    Attributes:
        memory: Memory of the host: the target of a copy to the host, or the source of one to the device.
        values: What the target receives, or what the source had.
    """

    def __init__(self, memory: torch.Tensor, values: torch.Tensor, to_host: bool):
        self.memory, self.values, self.to_host, self.done = memory, values, to_host, False

    def finish(self) -> None:
        if self.done:
            return
        self.done = True
        if self.to_host:
            self.memory.copy_(self.values)
        elif not torch.equal(_bytes(self.memory), _bytes(self.values)):
            waits.refuse("pinned memory was changed before its asynchronous copy to the device was finished")


class Event:
    """In the place of torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, external=False):
        self.enable_timing, self.seen, self.copies, self.time = enable_timing, None, [], 0.0

    def record(self, stream: "Stream | None" = None) -> None:
        stream = stream or current_stream()
        with _lock:
            self.seen, self.copies = {**stream.seen, stream: stream.time}, [*stream.copies]
        self.time = time.perf_counter()

    def wait(self, stream: "Stream | None" = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        if self.seen is not None:
            waits.add("event")
            _host_waits(self.seen, self.copies)

    def query(self) -> bool:
        if self.seen is not None:
            _host_waits(self.seen, self.copies)
        return True

    def elapsed_time(self, end: "Event") -> float:
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        return 1000 * (end.time - self.time)


class Stream:
    """In the place of torch.cuda.Stream.

    Attributes:
        time: Number of the last operator.
        seen: The time of other streams up to which this one has waited.
        copies: Asynchronous copies that the host has not waited for.
    """

    device, device_index, device_type, cuda_stream = DEVICE, 0, 1, 0

    def __init__(self, device=None, priority: int = 0, **ids):
        self.time, self.seen, self.copies = 0, {}, []

    def __enter__(self) -> "Stream":
        self._context = torch.cuda.stream(self)
        self._context.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._context.__exit__(*error)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        with _lock:
            for stream, moment in (event.seen or {}).items():
                self.seen[stream] = max(moment, self.seen.get(stream, 0))
            self.copies = [copy for copy in (*self.copies, *event.copies) if not copy.done]

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        waits.add("synchronize")
        wait_for_stream(self)

    def query(self) -> bool:
        wait_for_stream(self)
        return True


_default = Stream()


def current_stream(device=None) -> Stream:
    """Returns the stream of this thread."""
    return getattr(_local, "stream", _default)


def default_stream(device=None) -> Stream:
    return _default


def set_stream(stream: Stream) -> None:
    _local.stream = stream


def wait_for_stream(stream: Stream | None = None) -> None:
    """The host waits for a stream, by default the current one."""
    stream = stream or current_stream()
    _host_waits({**stream.seen, stream: stream.time}, stream.copies)


def synchronize() -> None:
    """The host waits for all streams."""
    waits.add("synchronize")
    with _lock:
        streams = {stream for stream, _ in _written.values()} | {_default, current_stream()}
    for stream in streams:
        wait_for_stream(stream)


def _host_waits(seen: dict[Stream, int], copies: list[_Copy]) -> None:
    with _lock:
        for stream, moment in seen.items():
            _host_seen[stream] = max(moment, _host_seen.get(stream, 0))
        for copy in [*copies]:
            copy.finish()
        for stream in seen:
            stream.copies = [copy for copy in stream.copies if not copy.done]


def write(values: torch.Tensor) -> None:
    """Notes that the current stream writes memory of the device."""
    if values.numel():
        stream = current_stream()
        with _lock:
            stream.time += 1
            _written[address(values)] = (stream, stream.time)


def read(values: torch.Tensor) -> None:
    """Raises if the current stream reads what another one has perhaps not written yet."""
    stream = current_stream()
    writer, moment = _written.get(address(values), (stream, 0))
    if writer is not stream and max(stream.seen.get(writer, 0), _host_seen.get(writer, 0)) < moment:
        waits.refuse("a tensor is used on another stream than it was made on, and the stream has not waited for it")


def address(values: torch.Tensor) -> int:
    return values.untyped_storage().data_ptr()


def pin(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.numel():
        _pinned[address(tensor)] = tensor.detach()
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0 and address(tensor) in _pinned


def copy_to_host(target: torch.Tensor, values: torch.Tensor, non_blocking: bool) -> None:
    """Copies values of the device into memory of the host."""
    if not target.numel():
        return
    if non_blocking and is_pinned(target):
        _add(_Copy(target, values.clone(), to_host=True))
        target.fill_(torch.nan if target.is_floating_point() else _largest(target.dtype))
    else:
        waits.add("copy to the host")
        wait_for_stream()
        target.copy_(values)


def copied_to_device(source: torch.Tensor, non_blocking: bool) -> None:
    """Takes account of a copy of memory of the host into memory of the device."""
    if not source.numel():
        return
    if not non_blocking:
        waits.add("copy to the device")
        wait_for_stream()
    elif is_pinned(source):
        _add(_Copy(source, source.clone(), to_host=False))
    else:
        waits.add(PAGEABLE)


def _add(copy: _Copy) -> None:
    stream = current_stream()
    with _lock:
        stream.copies = [*(other for other in stream.copies if not other.done), copy]


def _largest(dtype: torch.dtype) -> int | bool:
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
