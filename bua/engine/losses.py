"""Reads the losses of iterations without letting the GPU run idle, and refuses those that are not finite."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bua.engine.collectives import gather, num_processes


class NonFiniteLoss(RuntimeError):
    """A loss or a parameter is infinite or not a number.

    The message is one line, which contains the iteration and, for a loss, the ids of the batch's items.
    """


class LossReading(NamedTuple):
    """The losses of a batch, as ``LossHistory.read`` returns them.

    Attributes:
        iteration: Number of the iteration, from 1.
        means: The means over all processes, by the names of the losses.
        request: Whether any process has requested something.
    """

    iteration: int
    means: dict[str, float]
    request: bool


class _Row(NamedTuple):
    iteration: int
    names: list[str]
    ids: list
    # [2 * number of losses + 1]: the means of all processes, the mean of their requests, this process's own losses.
    values: Tensor


class LossHistory:
    """The losses of the latest batches, which have not been read yet.

    Losses must be known to be finite before the parameters are updated with them. There are two ways:

    - ``at_once``: each batch's losses are copied to the CPU while the GPU computes the backward pass. ``read`` then
      waits for the forward pass only, and is called before the update.
    - Otherwise the losses stay on the device until ``read``, which waits for all work there. The update itself must be
      skipped if ``not_finite`` is 1, as torch's fused optimizers do. This variable stays 1, so that the parameters
      remain as they were before the first loss that was not finite, until ``read`` reports it.

    All processes must make the same calls.

    Attributes:
        not_finite: [] float32 on the losses' device: 1 if any mean was infinite or not a number, else 0.
    """

    def __init__(self, at_once: bool = True):
        self.at_once = at_once
        self.not_finite: Tensor | None = None
        self._rows: list[_Row] = []
        self._event: torch.cuda.Event | None = None

    def add(self, iteration: int, losses: dict[str, Tensor], ids: Iterable, request: bool = False) -> None:
        """Adds the losses of a batch, right after its forward pass.

        Args:
            iteration: Number of the iteration, from 1.
            losses: Scalars on one device. All processes have the same names.
            ids: Ids of the items in this process's batch.
            request: Whether this process requests something of all processes, such as to stop.
        """
        with torch.no_grad():
            own = torch.stack([loss.float() for loss in losses.values()])
            means = torch.cat([own, own.new_full((1,), float(request))])
            if num_processes() > 1:
                dist.all_reduce(means)
                means /= num_processes()
            values = torch.cat([means, own])
            if not self.at_once:
                broken = 1 - means.isfinite().all().float()
                self.not_finite = broken if self.not_finite is None else torch.maximum(self.not_finite, broken)
        if self.at_once and values.device.type == "cuda":
            # The copy is into pinned memory, which torch does not use again before the copy is done.
            values = values.to("cpu", non_blocking=True)
            # With "blocking", the CPU does not spin while it waits, but leaves the core to the threads that load data.
            self._event = torch.cuda.Event(blocking=True)
            self._event.record()
        self._rows.append(_Row(iteration, list(losses), list(ids), values))

    def read(self) -> list[LossReading]:
        """Returns the losses that were added since the last call, and waits until they are computed.

        Raises:
            NonFiniteLoss: A mean is not finite. The message is about the first batch with such a mean.
        """
        if not self._rows:
            return []
        rows, self._rows = self._rows, []
        if self._event is not None:
            self._event.synchronize()
        values = iter(torch.cat([row.values for row in rows]).tolist())
        readings = []
        for row in rows:
            means = {name: next(values) for name in row.names}
            request = next(values) > 0
            own = {name: next(values) for name in row.names}
            if not all(map(math.isfinite, means.values())):
                raise NonFiniteLoss(_describe(row, [name for name, value in own.items() if not math.isfinite(value)]))
            readings.append(LossReading(row.iteration, means, request))
        return readings


def _describe(row: _Row, own_names: list[str]) -> str:
    """Returns the error message. All processes must call it.

    Args:
        own_names: Names of the losses that are not finite in this process.
    """
    failures = gather((own_names, list(map(str, row.ids))))
    names = dict.fromkeys(name for names, _ in failures for name in names)
    items = [item for names, items in failures if names for item in items]
    return (
        f"iteration {row.iteration}: {', '.join(names)} not finite in the batch of {', '.join(items)}; "
        "check the annotations of these or lower the learning rate"
    )
