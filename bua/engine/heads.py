"""Training of the models that live on region features: what all of them have in common."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn

from bua.config import engine_cfg
from bua.engine.optimizer import build_clip, build_optimizer, build_scheduler
from bua.engine.trainer import Trainer
from bua.errors import InputError


def head_cfg() -> CfgNode:
    """A new configuration with the keys that the training of every head reads; a task adds ``MODEL`` and ``DATA``.

    ``SOLVER.IMS_PER_BATCH`` counts the items of a step, over all devices; ``TEST.EVAL_PERIOD`` and
    ``SOLVER.CHECKPOINT_PERIOD`` count epochs.
    """
    cfg = engine_cfg()
    cfg.SOLVER.OPTIMIZER = "Adamax"
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.SOLVER.EPOCHS = 30
    # BASE_LR is multiplied by the number of each epoch, and by the last number in all later ones. Empty: by
    # LR_SCHEDULER_NAME instead, whose STEPS and WARMUP_ITERS are iterations.
    cfg.SOLVER.EPOCH_FACTORS = []
    # Parts of a batch that go through the model one after the other, where the whole does not fit the memory.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.TEST.EVAL_PERIOD = 1
    cfg.DATA = CfgNode()
    return cfg


def micro_batch_size(cfg: CfgNode) -> int:
    """Items that go through the model at a time, over all devices.

    Raises:
        InputError: ``SOLVER.IMS_PER_BATCH`` cannot be shared by ``SOLVER.ACCUMULATE``.
    """
    size, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if size < 1 or parts < 1 or size % parts:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {size}; it must be a multiple of SOLVER.ACCUMULATE, {parts}")
    return size // parts


def train_head(
    cfg: CfgNode,
    model: nn.Module,
    loader,
    losses: Callable[[nn.Module, object], dict[str, torch.Tensor]],
    *,
    accelerator: Accelerator,
    ids: Callable[[object], list],
    unit: str,
    evaluate: Callable[[], dict[str, float]] | None = None,
    best: str | None = None,
    extra: dict | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Trains ``model`` for ``SOLVER.EPOCHS`` epochs into ``OUTPUT_DIR``; arguments and result as for ``Trainer``.

    Args:
        loader: a ``TrainingLoader`` of batches of ``micro_batch_size(cfg)``.
    """
    if cfg.SOLVER.EPOCHS < 1:
        raise InputError(f"SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS}; it must be 1 or more")
    epoch = max(1, loader.batches_per_epoch // cfg.SOLVER.ACCUMULATE)
    cfg = cfg.clone()
    cfg.SOLVER.MAX_ITER = epoch * cfg.SOLVER.EPOCHS
    optimizer = build_optimizer(cfg, model)
    trainer = Trainer(
        model,
        loader,
        optimizer,
        _scheduler(cfg, optimizer, epoch),
        accelerator=accelerator,
        output_dir=cfg.OUTPUT_DIR,
        max_iter=cfg.SOLVER.MAX_ITER,
        ids=ids,
        losses=losses,
        accumulate=cfg.SOLVER.ACCUMULATE,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD * epoch,
        evaluate=evaluate,
        eval_period=cfg.TEST.EVAL_PERIOD * epoch,
        best=best if evaluate else None,
        keep_all=False,
        clip=build_clip(cfg),
        precision=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32",
        config=cfg,
        extra=extra,
        unit=unit,
    )
    return trainer.run(resume)


def _scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer, epoch: int) -> torch.optim.lr_scheduler.LambdaLR:
    factors = cfg.SOLVER.EPOCH_FACTORS
    if not factors:
        return build_scheduler(cfg, optimizer)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: factors[min(iteration // epoch, len(factors) - 1)]
    )
