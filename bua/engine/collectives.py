"""Exchanges Python objects between the processes of a run, and lets them wait for each other, on the CPU.

NCCL is made for tensors on GPUs: a process that waits in it keeps its GPU busy, notices late that another one has
ended, and objects would be copied to the GPU and back. These functions use a group of gloo's beside it. They work with
either engine, and with a single process, which need not have connected.
"""

import functools
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# The other processes wait for the main process while it computes scores or writes a checkpoint. If a process ends
# meanwhile, gloo notices its closed connection at once, so that this limit only ends a wait for a machine that has
# vanished from the network.
WAITING_TIMEOUT = timedelta(hours=12)


def gather(value: Any) -> list[Any]:
    """Returns the values that all processes pass, by their rank. All processes must call it."""
    number = num_processes()
    if number == 1:
        return [value]
    values: list[Any] = [None] * number
    dist.all_gather_object(values, value, group=_host_group(dist.group.WORLD))
    return values


def gather_to_main(value: Any) -> list[Any] | None:
    """Returns the values that all processes pass, by their rank, in the main process, and None in the others."""
    number = num_processes()
    if number == 1:
        return [value]
    values: list[Any] | None = [None] * number if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=_host_group(dist.group.WORLD))
    return values


def broadcast(value: Any) -> Any:
    """Returns the value that the main process passes. All processes must call it."""
    if num_processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_host_group(dist.group.WORLD))
    return values[0]


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    if num_processes() > 1:
        dist.barrier(group=_host_group(dist.group.WORLD))


def num_processes() -> int:
    """Returns the number of connected processes, which is 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@functools.cache
def _host_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=WAITING_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)  # for a process outside of a group, torch returns a number
    return group
