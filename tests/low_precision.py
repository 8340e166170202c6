"""Which layers of a model compute in float32 under autocast."""

from collections.abc import Callable

import torch
from torch import nn


def float32_layers(model: nn.Module, compute: Callable[[], object]) -> set[str]:
    """Returns the names of the layers that get float32 inputs outside of autocast while ``compute`` runs
    under autocast to bfloat16."""
    found, others = set(), set()

    def remember(name: str):
        def hook(layer, inputs):
            in_float32 = not torch.is_autocast_enabled("cpu") and all(x.dtype == torch.float32 for x in inputs)
            (found if in_float32 else others).add(name)

        return hook

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in model.named_modules()]
    with torch.autocast("cpu", torch.bfloat16):
        compute()
    for handle in handles:
        handle.remove()
    return found - others
