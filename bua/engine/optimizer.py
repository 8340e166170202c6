"""Builds the optimizer, the schedule and gradient clipping from ``cfg.SOLVER``, whose keys are Detectron2's."""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from bua.errors import InputError

# Of these, only the learning rate is configured.
ADAPTIVE = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
}
# For these, torch can update all parameters with a few kernels. On the CPU, SGD keeps the order of its operations.
FUSED = {"cpu": ("Adam", "AdamW"), "cuda": ("SGD", "Adam", "AdamW")}
# The arguments of an optimizer that say how it computes. They are saved with its state.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds ``SOLVER.OPTIMIZER`` for the parameters that require gradients.

    The parameters with the same learning rate and weight decay form a group. Biases have the learning rate
    ``BASE_LR * BIAS_LR_FACTOR`` (the factor is 2 in the original's train.prototxt), and the weight decay
    ``WEIGHT_DECAY_BIAS`` if that is not None. Normalisation layers have the weight decay ``WEIGHT_DECAY_NORM``.

    The model must be on its device. On a GPU the optimizer is fused if torch has such an implementation (Adamax has
    none), and no step waits for the GPU.
    """
    solver = cfg.SOLVER
    groups = defaultdict(list)
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr, decay = solver.BASE_LR, solver.WEIGHT_DECAY
            if isinstance(module, NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            if name == "bias":
                lr *= solver.BIAS_LR_FACTOR
                decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
            groups[lr, decay].append(parameter)
    parameters = [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]
    devices = {parameter.device.type for parameter in seen}
    fused = {"fused": True} if all(solver.OPTIMIZER in FUSED.get(device, ()) for device in devices) else {}
    if solver.OPTIMIZER == "SGD":
        momentum = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
        if solver.NESTEROV and not solver.MOMENTUM:
            raise InputError("SOLVER.NESTEROV is True, but SOLVER.MOMENTUM is 0; set a momentum, or NESTEROV False")
        return torch.optim.SGD(parameters, lr=solver.BASE_LR, **momentum, **fused)
    if solver.OPTIMIZER in ADAPTIVE:
        return ADAPTIVE[solver.OPTIMIZER](parameters, lr=solver.BASE_LR, **fused)
    raise InputError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use one of SGD, {', '.join(ADAPTIVE)}")


def can_skip_updates(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether a step leaves the parameters unchanged if the tensor ``optimizer.found_inf`` is 1.

    torch's fused optimizers do this on the device, for ``torch.amp.GradScaler``.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restores the state that ``optimizer.state_dict()`` returned on any device, and keeps the own implementation.

    The raised errors are those of ``optimizer.load_state_dict``, and a ValueError if the state is of another optimizer,
    or of parameters of other shapes.
    """
    if not _same_kind(optimizer.param_groups[0], state["param_groups"][0]):
        raise ValueError(f"the checkpoint is of another optimizer than {type(optimizer).__name__}")
    groups = [
        {**saved, **{key: own[key] for key in IMPLEMENTATION if key in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups)
    ]
    groups += state["param_groups"][len(groups) :]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")


def _same_kind(own: dict, saved: dict) -> bool:
    """Returns whether two parameter groups have the settings of the same one of torch's optimizers."""
    decoupled = "decoupled_weight_decay"  # of AdamW; older versions of torch do not save it
    if decoupled in own and decoupled in saved and own[decoupled] != saved[decoupled]:
        return False
    return all((key in own) == (key in saved) for key in ("momentum", "betas", "amsgrad"))


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Builds a scheduler that multiplies every group's learning rate by ``lr_factor``. Step it once per iteration."""
    lr_factor(cfg, 0)  # raises the InputError for an unknown name now, not in the first iteration
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: lr_factor(cfg, iteration))


def lr_factor(cfg: CfgNode, iteration: int) -> float:
    """Returns the learning rate in ``iteration`` (from 0) divided by ``BASE_LR``.

    ``LR_SCHEDULER_NAME`` decides whether the learning rate is multiplied by ``GAMMA`` at each of ``STEPS``, falls to
    ``BASE_LR_END`` like half a cosine or linearly, or is multiplied by ``GAMMA`` in each iteration. During the first
    ``WARMUP_ITERS`` iterations it starts at ``WARMUP_FACTOR`` times the schedule's first value, and stays there or
    grows linearly to the schedule's value at the end of the warm-up.
    """
    solver = cfg.SOLVER
    if iteration >= solver.WARMUP_ITERS:
        return _schedule(solver, iteration)
    start = solver.WARMUP_FACTOR * _schedule(solver, 0)
    if solver.WARMUP_METHOD == "constant":
        return start
    if solver.WARMUP_METHOD == "linear":
        end = _schedule(solver, solver.WARMUP_ITERS)
        return start + (end - start) * iteration / solver.WARMUP_ITERS
    raise InputError(f"SOLVER.WARMUP_METHOD is {solver.WARMUP_METHOD!r}; use 'linear' or 'constant'")


def build_clip(cfg: CfgNode) -> Callable[[list[nn.Parameter]], object] | None:
    """Returns a function that clips the gradients of a list of parameters in place, or None if this is disabled.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is "value" (limits each element), "norm" (limits the norm of each parameter's
    gradient) or "full_model" (limits the norm over all gradients).
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    limit, norm = clip.CLIP_VALUE, clip.NORM_TYPE
    if clip.CLIP_TYPE == "value":
        return lambda parameters: clip_grad_value_(parameters, limit)
    if clip.CLIP_TYPE == "norm":
        return lambda parameters: [clip_grad_norm_(parameter, limit, norm) for parameter in parameters]
    if clip.CLIP_TYPE == "full_model":
        return lambda parameters: clip_grad_norm_(parameters, limit, norm)
    raise InputError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; use one of 'value', 'norm', 'full_model'")


def _schedule(solver: CfgNode, iteration: int) -> float:
    """Returns the learning rate without warm-up divided by ``BASE_LR``."""
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        return solver.GAMMA ** bisect_right(sorted(solver.STEPS), iteration)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end = _relative_end(solver)
        return end + (1 - end) * (1 + math.cos(math.pi * iteration / solver.MAX_ITER)) / 2
    if solver.LR_SCHEDULER_NAME == "WarmupLinearLR":
        end = _relative_end(solver)
        return end + (1 - end) * max(0.0, 1 - iteration / solver.MAX_ITER)
    if solver.LR_SCHEDULER_NAME == "WarmupExponentialLR":
        return solver.GAMMA**iteration
    raise InputError(
        f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME!r}; use one of 'WarmupMultiStepLR', 'WarmupCosineLR', "
        "'WarmupLinearLR', 'WarmupExponentialLR'"
    )


def _relative_end(solver: CfgNode) -> float:
    """Returns the last learning rate divided by the first."""
    if solver.BASE_LR == 0:
        raise InputError(f"SOLVER.BASE_LR is 0, which {solver.LR_SCHEDULER_NAME} cannot use; give a learning rate")
    end: float = solver.BASE_LR_END / solver.BASE_LR
    return end
