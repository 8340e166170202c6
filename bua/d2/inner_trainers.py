"""The trainers that take the steps of ``bua.d2.Trainer``: Detectron2's own, and one for what these do not support."""

import time
from collections.abc import Callable, Iterable

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

# Limits the gradients of parameters, in place (``bua.engine.build_clip``).
Clip = Callable[[list[nn.Parameter]], object]


def build_inner_trainer(
    model: nn.Module,
    data_loader: Iterable[list[dict]],
    optimizer: torch.optim.Optimizer,
    *,
    dtype: torch.dtype | None,
    clip: Clip | None,
) -> tuple[SimpleTrainer, torch.amp.GradScaler]:
    """Returns the trainer of Detectron2 that takes the steps, and the scaler of its losses.

    It is ``AMPTrainer`` for mixed precision on a GPU, ``CPUAMPTrainer`` for mixed precision on the CPU, and otherwise
    ``SimpleTrainer``.

    Args:
        dtype: Type of mixed precision, or None for none. The scaler is enabled for float16.
        clip: Limits the gradients before each step of the optimizer; None does not.
    """
    device = next(model.parameters()).device.type
    scaler = ClippingGradScaler(device, clip, enabled=dtype is torch.float16)
    if dtype is not None and device == "cuda":
        return AMPTrainer(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype), scaler
    if clip is not None:

        def clip_before_step(stepped: torch.optim.Optimizer, *_: object) -> None:
            clip(_with_gradients(stepped))

        optimizer.register_step_pre_hook(clip_before_step)
    if dtype is not None:
        return CPUAMPTrainer(model, data_loader, optimizer, precision=dtype), scaler
    return SimpleTrainer(model, data_loader, optimizer), scaler


class CPUAMPTrainer(SimpleTrainer):
    """``SimpleTrainer`` with mixed precision on the CPU, which Detectron2's ``AMPTrainer`` refuses."""

    def __init__(self, model: nn.Module, data_loader, optimizer: torch.optim.Optimizer, *, precision: torch.dtype):
        super().__init__(model, data_loader, optimizer)
        self.precision = precision

    def run_step(self) -> None:
        """Does the same as ``SimpleTrainer.run_step``, with the forward pass in mixed precision."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", self.precision):
            losses = self.model(batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


class ClippingGradScaler(torch.amp.GradScaler):
    """A ``GradScaler`` that clips gradients after it has divided them by the scale.

    A hook of the optimizer would be too early: fused optimizers divide by the scale in their step.
    """

    def __init__(self, device: str, clip: Clip | None, *, enabled: bool):
        super().__init__(device, enabled=enabled)
        self.clip = clip

    def step(self, optimizer: torch.optim.Optimizer, *args, **kwargs):
        """Clips the gradients, and does the step unless some are not finite."""
        if self.clip is not None:
            self.unscale_(optimizer)
            self.clip(_with_gradients(optimizer))
        return super().step(optimizer, *args, **kwargs)


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
