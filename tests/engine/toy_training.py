"""A small training run that draws from every random number generator. As a script, it is killed."""

import os
import random
import signal
import sys
import time

import numpy as np
import torch
from torch import nn

from bua.config import get_cfg
from bua.engine import Trainer, build_clip, build_optimizer, build_scheduler, connect, seed_everything
from bua.engine.loader import TrainingLoader

ITEMS = 10


class Toy(nn.Module):
    """A model with two losses. ``at_iteration[n]`` is called in the n-th forward pass of the process."""

    def __init__(self, noisy: bool = True, at_iteration: dict | None = None):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2) if noisy else None
        self.noisy = noisy
        self.at_iteration = at_iteration or {}
        self.passes = 0

    def forward(self, batch):
        self.passes += 1
        factor = self.at_iteration.get(self.passes, lambda: 1.0)()
        x = torch.stack([item for _, item in batch])
        if not self.noisy:
            return {"loss_a": self.linear(x).square().mean() * factor, "loss_b": self.linear(x).exp().mean()}
        x = self.norm(nn.functional.dropout(self.linear(x), 0.3))
        noise = random.random() + np.random.random() + torch.rand(())  # noqa: NPY002
        return {"loss_a": (x[:, 0] - noise).square().mean() * factor, "loss_b": x[:, 1].abs().mean()}


def to_item(index: int, rng: np.random.Generator):
    return index, torch.from_numpy(rng.normal(size=3).astype(np.float32)) + index / ITEMS


def item_ids(batch) -> list[int]:
    return [index for index, _ in batch]


def losses_and_score(model, batch) -> dict[str, torch.Tensor]:
    """Returns the losses of the model, and a score that depends on the items alone."""
    return model(batch) | {"train_score": torch.tensor(item_ids(batch), dtype=torch.float32).mean()}


def make_cfg(max_iter: int, **solver):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.05, "SOLVER.WARMUP_ITERS", 3, "SOLVER.STEPS", (6,)])
    cfg.SOLVER.MAX_ITER = max_iter
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def train_toy(
    output_dir,
    *,
    max_iter=10,
    workers=0,
    resume=False,
    noisy=True,
    at_iteration=None,
    checkpoint_period=4,
    batch_size=4,
    **options,
):
    """Returns the trainer after its run. An epoch of scores has four iterations."""
    options = {"losses": losses_and_score, "scores": ("train_score",), "epoch": 4} | options
    accelerator = connect("cpu")
    seed_everything(5 + accelerator.process_index)
    loader = TrainingLoader(
        range(ITEMS),
        to_item,
        batch_size,
        seed=1,
        groups=np.arange(ITEMS) % 2,
        num_workers=workers,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    model = Toy(noisy, at_iteration)
    cfg = make_cfg(max_iter)
    optimizer = build_optimizer(cfg, model)
    trainer = Trainer(
        model,
        loader,
        optimizer,
        build_scheduler(cfg, optimizer),
        accelerator=accelerator,
        output_dir=output_dir,
        max_iter=max_iter,
        ids=item_ids,
        checkpoint_period=checkpoint_period,
        clip=build_clip(cfg),
        log_period=3,
        **options,
    )
    trainer.metrics = trainer.run(resume)
    return trainer


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    return 1.0


def interrupt_launcher():
    """Sends Ctrl-C to the process that launched this one, which passes it on."""
    if os.environ["RANK"] == "0":
        interruption = signal.getsignal(signal.SIGINT).__self__
        os.kill(os.getppid(), signal.SIGINT)
        # Otherwise the next iterations would be done before the signal arrives.
        while not interruption.requested:
            time.sleep(0.02)
    return 1.0


def overflow():
    return float("nan")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_toy(sys.argv[1], workers=2, at_iteration={7: kill})
