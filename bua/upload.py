"""Copies tensors to a device without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Tensor | Sequence, device: torch.device | str) -> Tensor:
    """Returns a tensor on a device. A copy from memory to a GPU goes through pinned memory and is not waited for.

    Args:
        values: A tensor, or numbers or nested lists of numbers, which become float32.
    """
    device = torch.device(device)
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float32)
    if device.type != "cuda":
        return tensor.to(device)
    if tensor.device.type == "cpu" and tensor.numel():
        # The pinned memory is not used again before the copy is done: PyTorch's allocator sees to that.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
