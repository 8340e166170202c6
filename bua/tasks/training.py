"""The models that live on region features: what their training and their checkpoints have in common."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn
from tqdm import tqdm

from bua.config import engine_cfg
from bua.engine.launch import connect
from bua.engine.optimizer import build_clip, build_optimizer, build_scheduler
from bua.engine.random_state import seed_run
from bua.engine.trainer import Trainer
from bua.errors import InputError
from bua.tasks.region_batches import RegionReader


def head_cfg() -> CfgNode:
    """A new configuration with the keys that the training of every head reads; a task adds to ``MODEL`` and ``DATA``.

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
    # A folder that a program in datasets/ prepared, its splits to learn from and the one to choose the best model by.
    cfg.DATA.FOLDER = ""
    cfg.DATA.TRAIN = ("train",)
    cfg.DATA.VAL = "val"
    # Files of features, of any format, that have the images of all splits.
    cfg.DATA.FEATURES = ()
    return cfg


def constructor_keys(model: type, without: tuple[str, ...] = ("feature_dim",)) -> CfgNode:
    """The keyword arguments of a class with their defaults, but for those that the data say."""
    parameters = inspect.signature(model).parameters.values()
    return CfgNode(
        {
            parameter.name.upper(): parameter.default
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in without
        }
    )


class Run(NamedTuple):
    """What the training of a head begins with.

    Attributes:
        accelerator: for ``train_head``.
        device: of this process.
        loading: arguments of a ``RegionLoader``.
    """

    accelerator: Accelerator
    device: torch.device
    loading: dict


def start(cfg: CfgNode) -> Run:
    """Connects the processes and seeds them.

    Raises:
        InputError: as ``micro_batch_size``.
    """
    accelerator = connect(cfg.MODEL.DEVICE)
    loading = {
        "batch_size": micro_batch_size(cfg, accelerator.num_processes),
        "seed": seed_run(cfg.SEED, accelerator),
        "threads": cfg.DATALOADER.NUM_WORKERS,
        "process_index": accelerator.process_index,
        "num_processes": accelerator.num_processes,
    }
    return Run(accelerator, torch.device(cfg.MODEL.DEVICE), loading)


def open_reader(cfg: CfgNode, program: str) -> RegionReader:
    """The features that ``cfg`` names.

    Args:
        program: in datasets/, what prepares ``DATA.FOLDER``.

    Raises:
        InputError: none are named, or they cannot be read; no folder or splits are named.
    """
    for key, wanted in (
        ("FOLDER", f"a folder that datasets/{program} wrote"),
        ("TRAIN", "splits of the folder to learn from"),
        ("FEATURES", "the files that tools/extract.py wrote"),
    ):
        if not cfg.DATA[key]:
            raise InputError(f"DATA.{key}: empty; name {wanted}")
    return RegionReader.open(cfg.DATA.FEATURES, pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda")


def micro_batch_size(cfg: CfgNode, num_processes: int = 1) -> int:
    """Items that go through the model at a time, over all devices.

    Raises:
        InputError: ``SOLVER.IMS_PER_BATCH`` cannot be shared by ``SOLVER.ACCUMULATE`` and the processes.
    """
    size, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if size < 1 or parts < 1 or size % (parts * num_processes):
        times = f" times {num_processes} processes" if num_processes > 1 else ""
        raise InputError(f"SOLVER.IMS_PER_BATCH is {size}; it must be a multiple of SOLVER.ACCUMULATE, {parts}{times}")
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


def restore_cfg(cfg: CfgNode, saved: str, path: str | Path) -> None:
    """Changes ``cfg`` in place to the configuration that the checkpoint at ``path`` holds.

    Raises:
        InputError: it is of another version of bua.
    """
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(saved)))
    except (KeyError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: its configuration is of another version ({reason}); train it again") from error


def restore_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Gives ``model`` the weights that the checkpoint at ``path`` holds.

    Raises:
        InputError: they do not fit.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit its configuration: {' '.join(str(error).split())}") from error


def progress_bar(total: int, unit: str, show: bool) -> tqdm:
    """Counts items, such as questions; in a file there is a line of it every half minute."""
    return tqdm(total=total, unit=f" {unit}", disable=not show, mininterval=0.2 if sys.stderr.isatty() else 30)


def _scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer, epoch: int) -> torch.optim.lr_scheduler.LambdaLR:
    factors = cfg.SOLVER.EPOCH_FACTORS
    if not factors:
        return build_scheduler(cfg, optimizer)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: factors[min(iteration // epoch, len(factors) - 1)]
    )
