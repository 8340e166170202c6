"""Training of a task's model: what all tasks have in common."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from bua.engine.launch import connect
from bua.engine.loader import TrainingLoader
from bua.engine.optimizer import build_clip, build_optimizer, build_scheduler
from bua.engine.random_state import seed_run
from bua.engine.resume import only_training
from bua.engine.trainer import Trainer
from bua.errors import InputError
from bua.features.settings import settings_for_model
from bua.tasks.checkpoint import ModelT
from bua.tasks.prepared import PreparedDataset
from bua.tasks.region_batches import BatchT, RegionLoader, RegionReader
from bua.tasks.resident_regions import on_device

DatasetT = TypeVar("DatasetT", bound=PreparedDataset)


class TaskTraining(ABC, Generic[ModelT, DatasetT, BatchT]):
    """A training run of a task's model.

    Creating it connects and seeds the processes, opens the features, loads the data sets, and builds the model and its
    loader. ``run`` then trains. A subclass says what its task does differently.

    Attributes:
        program: Name of the command that prepares ``DATA.FOLDER``.
        unit: What the log calls the items of a batch.
        metric: The metric of ``evaluate`` by which the best checkpoint is chosen.
        scores: Names of the scores in percent that ``losses`` also returns. Their means are logged after each epoch.
        dataset: The splits ``DATA.TRAIN`` together.
        validation: The split ``DATA.VAL``, or None without one.
        trained: The model, as ``build`` returns it, on the device of the process.
    """

    program: ClassVar[str]
    unit: ClassVar[str]
    metric: ClassVar[str]
    scores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: As the task's ``load_cfg`` gives it.

        Raises:
            InputError: A setting, a file or a split that cannot be used.
        """
        self.cfg = cfg
        self.processes = connect_processes(cfg)
        self.reader = open_reader(cfg, self.program)
        self.dataset = self.load(*cfg.DATA.TRAIN)
        self.validation = self.load_validation(cfg.DATA.VAL) if cfg.DATA.VAL else None
        if self.validation is not None:
            # Images that lack features are reported before the training instead of after its first epoch.
            self.reader.locate(self.validation.image_ids, self.validation.name)
        self.trained = self.build()
        self.trained.features = settings_for_model(cfg.DATA.FEATURES)
        self.trained.model.to(self.processes.device)
        self.reader = self._on_device()
        self.loader = self.build_loader(self.processes.loading)

    @abstractmethod
    def load(self, *splits: str) -> DatasetT:
        """Returns splits of ``DATA.FOLDER`` as one data set."""

    def load_validation(self, split: str) -> DatasetT:
        """Returns the split that the model is evaluated on."""
        return self.load(split)

    @abstractmethod
    def build(self) -> ModelT:
        """Returns the model on the CPU with its initial weights."""

    @abstractmethod
    def build_loader(self, loading: dict[str, Any]) -> RegionLoader:
        """Returns the loader of ``dataset``.

        Args:
            loading: The arguments of ``RegionLoader`` that do not depend on the task.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: BatchT) -> dict[str, Tensor]:
        """Returns the losses of a batch on its device, whose sum is minimised, and its ``scores``.

        Args:
            model: The network, in ``DistributedDataParallel`` if several processes train it.
        """

    @abstractmethod
    def evaluate(self, validation: DatasetT) -> dict[str, float]:
        """Returns the metrics of the model on a data set, in percent."""

    def item_ids(self, batch: BatchT) -> list[int]:
        """Returns the ids of a batch's items, for messages."""
        ids: list[int] = batch.image_ids.tolist()
        return ids

    def run(self, resume: bool | str = False) -> dict[str, float]:
        """Trains into ``OUTPUT_DIR`` and evaluates on ``DATA.VAL`` every ``TEST.EVAL_PERIOD`` epochs.

        Every checkpoint holds the vocabularies; the one with the best ``metric`` is ``model_best.pth``.

        Args:
            resume: Continue from the newest checkpoint in ``OUTPUT_DIR`` if there is one, or from the one at this path.

        Returns:
            The metrics of the last evaluation, in percent; empty without one.
        """
        return train_task(
            self.cfg,
            self.trained.model,
            self.loader,
            self.losses,
            accelerator=self.processes.accelerator,
            ids=self.item_ids,
            unit=self.unit,
            scores=self.scores,
            evaluate=None if self.validation is None else partial(self.evaluate, self.validation),
            best=self.metric,
            extra=self.trained.describe(),
            resume=resume,
        )

    def _on_device(self) -> RegionReader:
        """Returns the reader of all images of the run, which reads them from the device if ``DATA.ON_DEVICE`` says so.

        The model is already there, and so counts in the memory that is not free.
        """
        used = [dataset.image_ids for dataset in (self.dataset, self.validation) if dataset is not None]
        return on_device(
            self.reader,
            np.concatenate(used),
            self.processes.device,
            self.cfg.DATA.ON_DEVICE,
            threads=self.cfg.DATALOADER.NUM_WORKERS,
            progress=self.processes.accelerator.is_main_process,
        )


class Processes(NamedTuple):
    """The processes of a training run, as one of them sees them.

    Attributes:
        accelerator: The accelerator, for ``train_task``.
        device: The device of this process.
        loading: Arguments of ``RegionLoader``.
    """

    accelerator: Accelerator
    device: torch.device
    loading: dict[str, Any]


def connect_processes(cfg: CfgNode) -> Processes:
    """Connects the processes of a run and seeds their random number generators.

    Raises:
        InputError: As ``micro_batch_size``.
    """
    accelerator = connect(cfg.MODEL.DEVICE, cfg.FLOAT32_PRECISION)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        # "cuda" alone would mean the first GPU in the threads of the loader.
        device = torch.device("cuda", torch.cuda.current_device())
    loading = {
        "batch_size": micro_batch_size(cfg, accelerator.num_processes),
        "seed": seed_run(cfg.SEED, accelerator),
        "threads": cfg.DATALOADER.NUM_WORKERS,
        "device": device,
        "process_index": accelerator.process_index,
        "num_processes": accelerator.num_processes,
    }
    return Processes(accelerator, device, loading)


def open_reader(cfg: CfgNode, program: str) -> RegionReader:
    """Opens the features that ``cfg`` names.

    Args:
        program: Name of the command that prepares ``DATA.FOLDER``.

    Raises:
        InputError: No features, folder or splits are named, or the features cannot be read.
    """
    for key, wanted in (
        ("FOLDER", f"a folder that bua {program} wrote"),
        ("TRAIN", "splits of the folder to train on"),
        ("FEATURES", "the files that bua extract wrote"),
    ):
        if not cfg.DATA[key]:
            raise InputError(f"DATA.{key}: empty; name {wanted}")
    return RegionReader.open(cfg.DATA.FEATURES, pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda")


def micro_batch_size(cfg: CfgNode, num_processes: int = 1) -> int:
    """Returns the number of items that go through the model at a time, over all devices.

    Raises:
        InputError: ``SOLVER.IMS_PER_BATCH`` cannot be divided by ``SOLVER.ACCUMULATE`` and the processes.
    """
    size: int = cfg.SOLVER.IMS_PER_BATCH
    parts: int = cfg.SOLVER.ACCUMULATE
    if size < 1 or parts < 1 or size % (parts * num_processes):
        times = f" times {num_processes} processes" if num_processes > 1 else ""
        raise InputError(f"SOLVER.IMS_PER_BATCH is {size}; it must be a multiple of SOLVER.ACCUMULATE, {parts}{times}")
    return size // parts


def train_task(
    cfg: CfgNode,
    model: nn.Module,
    loader: TrainingLoader,
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    *,
    accelerator: Accelerator,
    ids: Callable[[Any], list[Any]],
    unit: str,
    scores: Collection[str] = (),
    evaluate: Callable[[], dict[str, float]] | None = None,
    best: str | None = None,
    extra: dict[str, Any] | None = None,
    resume: bool | str = False,
) -> dict[str, float]:
    """Trains ``model`` for ``SOLVER.EPOCHS`` epochs into ``OUTPUT_DIR``; arguments and result as for ``Trainer``.

    Args:
        loader: Yields batches of ``micro_batch_size(cfg)`` items.
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
        scores=scores,
        epoch=epoch,
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
    with only_training(cfg.OUTPUT_DIR, accelerator.is_main_process):
        return trainer.run(resume)


def progress_bar(total: int, unit: str, show: bool) -> "tqdm[NoReturn]":
    """Returns a bar that counts items, such as questions. In a log file it writes a line every half minute."""
    return tqdm(total=total, unit=f" {unit}", disable=not show, mininterval=0.2 if sys.stderr.isatty() else 30)


def _scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer, epoch: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the schedule of the learning rate; ``epoch`` is the number of iterations in an epoch."""
    factors = cfg.SOLVER.EPOCH_FACTORS
    if not factors:
        return build_scheduler(cfg, optimizer)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: factors[min(iteration // epoch, len(factors) - 1)]
    )
