"""Trains and evaluates the detector with Detectron2's trainer, as a configuration describes."""

import argparse
import contextlib
import logging
import re
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, default_setup
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.logger import setup_logger
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset, Subset

from bua.checkpoint import load_weights
from bua.d2.config import explaining_build_errors
from bua.d2.dump_features import DumpFeatures
from bua.d2.evaluation import VisualGenomeEvaluator
from bua.d2.inner_trainers import build_inner_trainer
from bua.d2.mapper import AttributeDatasetMapper, InferenceMapper
from bua.detection.catalog import get_dataset
from bua.detection.description import KEY, DetectorDescription, describe_detector
from bua.detection.evaluation.output import checkpoint_label
from bua.detection.evaluation.zero_rows import numbers_of_zero_rows
from bua.detection.training import (
    TrainingSet,
    build_evaluator,
    check_evaluated_classes,
    label_of_iteration,
    load_initial_weights,
    print_metrics,
    training_set,
    weights_to_evaluate,
    write_evaluations,
)
from bua.engine import (
    autocast_dtype,
    build_clip,
    build_optimizer,
    build_scheduler,
)
from bua.engine.checkpoints import save_newest, to_cpu
from bua.engine.loader import check_batch_size
from bua.engine.losses import LossHistory, NonFiniteLoss
from bua.engine.optimizer import load_optimizer_state
from bua.engine.resume import checkpoint_to_resume, only_training, read_to_resume, restore
from bua.errors import InputError
from bua.precision import set_float32_precision
from bua.weights.files import check_finite, read_file
from bua.weights.zoo import fetch

_COLOURS = re.compile("\x1b\\[[0-9;]*m")
# Loggers of Detectron2 that describe a run: the environment, the configuration, the network, and the scores in a form
# for programs.
_DESCRIBING = ("detectron2", "detectron2.engine.defaults", "detectron2.evaluation.testing")


class Trainer(DefaultTrainer):
    """Detectron2's trainer with bua's data, optimizer and evaluation.

    Steps are taken by the inner trainers of Detectron2, as in ``DefaultTrainer``, hooks are those of ``DefaultTrainer``
    and ``DumpFeatures``. What differs is what the ``build_`` methods return, and:

    - SOLVER.AMP.DTYPE is the precision of ``AMPTrainer``, and mixed precision and several processes also run on the
      CPU.
    - Losses that are not finite end the run with a ``NonFiniteLoss``, which names the images.
    - Checkpoints have the content of the torch engine's, and either engine can continue from those of the other.
    """

    def __init__(self, cfg: CfgNode):
        # Not that of DefaultTrainer, which puts the parts together without a place for those that differ.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        device = next(model.parameters()).device
        optimizer = self.build_optimizer(cfg, model)
        data = training_set(cfg)
        self.history = LossHistory()
        model.register_forward_hook(self._add_losses)
        parallel = create_ddp_model(model, **({} if device.type == "cuda" else {"device_ids": None}))
        if isinstance(parallel, torch.nn.parallel.DistributedDataParallel):
            # The argument of the constructor has different names in the versions of torch.
            parallel.broadcast_buffers = False
        self._trainer, self.scaler = build_inner_trainer(
            parallel,
            _build_loader(cfg, data),
            optimizer,
            dtype=autocast_dtype(cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32", device),
            clip=build_clip(cfg),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            parallel,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            **{KEY: _SavedDescription(describe_detector(cfg, data.objects.names, data.attribute_names.names))},
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool | str | Path = True) -> None:
        """Loads the newest checkpoint in OUTPUT_DIR, of either engine, or else MODEL.WEIGHTS.

        Args:
            resume: Whether to look for a checkpoint in OUTPUT_DIR; or the path of the checkpoint.

        Raises:
            InputError: The checkpoint is damaged or does not fit, or OUTPUT_DIR contains a run and ``resume`` is False.
        """
        path = checkpoint_to_resume(self.cfg.OUTPUT_DIR, resume)
        if path is None:
            self._load_initial_weights(self.cfg.MODEL.WEIGHTS)
            return
        saved = read_to_resume(path, self.cfg.OUTPUT_DIR, self.max_iter)
        load_weights(self.checkpointer.model, path)
        restore({"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}, saved, path)
        self.iter = self.start_iter = saved["iteration"]
        logging.getLogger(__name__).info("resumed %s after %d iterations", path, self.iter)

    def _load_initial_weights(self, weights: str) -> None:
        catalog = weights.startswith("catalog://")
        if weights and self.cfg.MODEL.ROI_HEADS.NAME == "AttributeRes5ROIHeads" and not catalog:
            load_initial_weights(self.checkpointer.model, weights, verbose=comm.is_main_process())
        elif weights:
            # For other detectors and for weights of Detectron2's catalogue, its rules of matching names are needed.
            self.checkpointer.load(weights if catalog else str(fetch(weights)), checkpointables=[])

    def run_step(self) -> None:
        """Takes one step.

        Raises:
            NonFiniteLoss: A loss is infinite or not a number. All processes raise it.
        """
        # In the main process, Detectron2 refuses such a loss first, without naming the images.
        with contextlib.suppress(FloatingPointError):
            super().run_step()
        self.history.read()

    def _add_losses(
        self, model: torch.nn.Module, arguments: tuple[list[dict]], losses: dict[str, torch.Tensor]
    ) -> None:
        """Is called after each forward pass of the model, also in evaluations."""
        if model.training:
            (batch,) = arguments
            self.history.add(self.iter + 1, losses, [image["image_id"] for image in batch])

    def state_dict(self) -> dict:
        """Returns the state that checkpoints hold besides the model."""
        parts = {"optimizer": to_cpu(self.optimizer.state_dict()), "scaler": self.scaler.state_dict()}
        return {**TrainerBase.state_dict(self), **parts}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores a state that ``state_dict`` returned."""
        TrainerBase.load_state_dict(self, state_dict)
        load_optimizer_state(self.optimizer, state_dict["optimizer"])
        self.scaler.load_state_dict(state_dict["scaler"])

    def build_hooks(self) -> list[HookBase]:
        """Returns the hooks of ``DefaultTrainer``, and before the last one, which writes the metrics, ``DumpFeatures``
        if MODEL.BUA.DUMP.OUTPUT is set."""
        hooks = super().build_hooks()
        dump = self.cfg.MODEL.BUA.DUMP
        if dump.OUTPUT:
            hook = DumpFeatures(
                dump.PERIOD,
                self.cfg,
                dump.OUTPUT,
                dump.FORMAT,
                min_boxes=dump.MIN_BOXES,
                max_boxes=dump.MAX_BOXES,
            )
            hooks.insert(len(hooks) - comm.is_main_process(), hook)
        return hooks

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> dict:
        """Evaluates as ``DefaultTrainer.test`` does, and prints the metrics as the torch engine does.

        All processes use the normalisation statistics of the first process, which are the ones in checkpoints.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        elif evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
            if has_event_storage():
                # In a training. After the last iteration, this is already the number of the next one.
                iterations = min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER)
                write_evaluations(cfg, evaluators, label_of_iteration(cfg, iterations))
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        results = super().test(cfg, model, evaluators)
        if results and comm.is_main_process():
            own = [evaluator for evaluator in evaluators if isinstance(evaluator, VisualGenomeEvaluator)]
            print_metrics(flatten_results_dict(results), own)
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Builds the model on MODEL.DEVICE.

        Raises:
            InputError: Detectron2 cannot build such a model.
        """
        with explaining_build_errors():
            model = super().build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            # Convolutions on the CPU are faster in this order of the elements. The torch engine uses it too.
            model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Builds the same optimizer as the torch engine, so that a run can be continued by the other engine."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """Builds the same scheduler as the torch engine."""
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Builds Detectron2's loader of DATASETS.TRAIN. It uses the same images as the torch engine."""
        return _build_loader(cfg, training_set(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Builds Detectron2's loader with one image per batch. Each process gets its share of the images."""
        dataset = get_dataset(dataset_name, cfg.DATASETS.FILES)
        zero_rows = None
        if cfg.MODEL.BUA.EVALUATION.ZERO_ROWS:
            zero_rows = dict(zip(dataset.image_ids.tolist(), numbers_of_zero_rows(dataset).tolist()))
        return build_detection_test_loader(
            dataset=dataset,
            mapper=InferenceMapper(cfg, zero_rows),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> VisualGenomeEvaluator:
        """Builds the evaluator of a data set."""
        return build_evaluator(cfg, dataset_name, VisualGenomeEvaluator)


def _build_loader(cfg: CfgNode, data: TrainingSet):
    check_batch_size(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
    dataset: Dataset = data.dataset
    if data.keep is not None:
        dataset = Subset(dataset, cast(Sequence[int], data.keep))
    return build_detection_train_loader(cfg, mapper=AttributeDatasetMapper(data.mapper), dataset=dataset)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which saves checkpoints as the torch engine does: they are complete whenever they
    exist, and on the disk before an older one is forgotten. It reads files without executing code from them."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves a checkpoint as ``<name>.pth``.

        Raises:
            NonFiniteLoss: A parameter is not finite. Nothing has been written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        state = {"model": self.model.state_dict(), **parts, **kwargs}
        save_newest(Path(self.save_dir), f"{name}.pth", state, kwargs.get("iteration", -1) + 1)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Reads a file as ``DetectionCheckpointer`` does, in which fvcore provides for other formats.

        Raises:
            InputError: The file is damaged, or holds other objects than arrays, or weights that are not finite.
        """
        content = read_file(filename)
        of_caffe2 = filename.endswith(".pkl") and not ("model" in content and "__author__" in content)
        weights = content.get("blobs", content) if of_caffe2 else content.get("model", content)
        if not isinstance(weights, dict):
            raise InputError(f"{filename}: holds no weights; give a checkpoint or a state dict")
        weights = {key: torch.as_tensor(value) for key, value in weights.items() if not key.endswith("_momentum")}
        check_finite(weights, filename)
        if of_caffe2:
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        return {**content, "model": weights} if "model" in content else {"model": weights}


class _SavedDescription:
    """Puts what is known about a detector into its checkpoints."""

    def __init__(self, description: DetectorDescription):
        self.description = description

    def state_dict(self) -> dict:
        return self.description.state()

    def load_state_dict(self, state: dict) -> None:
        """Does nothing: the configuration of the run that continues is what counts."""


def train_detector(cfg: CfgNode, resume: bool | str | Path = False) -> None:
    """Does the same as ``bua.detection.training.train_detector`` with Detectron2, without returning metrics.

    To train on several devices, run this function by ``bua.d2.launch.launch``.
    """
    _check_device(cfg)
    with only_training(cfg.OUTPUT_DIR, comm.is_main_process()):
        checkpoint_to_resume(cfg.OUTPUT_DIR, resume)
        comm.synchronize()
        _set_up(cfg, argparse.Namespace(resume=bool(resume)))
        logging.getLogger(TrainerBase.__module__).addFilter(_has_traceback_to_log)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        trainer.train()


def evaluate_checkpoint(cfg: CfgNode) -> dict[str, float]:
    """Does the same as ``bua.detection.training.evaluate_checkpoint`` with Detectron2.

    Each process evaluates its share of the images. The first one returns the metrics, the others an empty dict.
    """
    _check_device(cfg)
    weights = weights_to_evaluate(cfg)
    _set_up(cfg, argparse.Namespace(eval_only=True))
    evaluators = [Trainer.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
    for evaluator in evaluators:
        check_evaluated_classes(weights, evaluator)
    model = Trainer.build_model(cfg)
    load_weights(model, weights)
    write_evaluations(cfg, evaluators, checkpoint_label(weights, cfg.OUTPUT_DIR))
    return flatten_results_dict(Trainer.test(cfg, model, evaluators))


def _has_traceback_to_log(record: logging.LogRecord) -> bool:
    """Returns whether a record of Detectron2's training loop is to be logged: not the traceback of an error that the
    command reports in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], InputError | NonFiniteLoss | FloatingPointError))


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    if cfg.INPUT.FORMAT != "BGR":
        raise InputError(f"config: INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; bua's data loaders give BGR, so set it to BGR")
    # The handlers that default_setup, which calls this with the same arguments, uses for its first messages.
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
    logger.addFilter(_without_colours)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(_is_for_console)
    default_setup(cfg, args)
    # Detectron2 leaves torch's defaults with FLOAT32_PRECISION "". Both engines compute the same.
    set_float32_precision(cfg.FLOAT32_PRECISION)


def _is_for_console(record: logging.LogRecord) -> bool:
    """Returns whether a record is shown: not the hundreds of lines that describe the run, which are in OUTPUT_DIR's
    ``log.txt``."""
    return record.levelno >= logging.WARNING or record.name not in _DESCRIBING


def _without_colours(record: logging.LogRecord) -> bool:
    """Removes the colours from a record of ``default_setup``, which writes the configuration in colours to any
    file."""
    record.msg = _COLOURS.sub("", str(record.msg))
    return True


def _check_device(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        raise InputError(
            "MODEL.DEVICE is cpu: on a machine with GPUs, processes of Detectron2 communicate through the GPUs; hide "
            "these with CUDA_VISIBLE_DEVICES=''"
        )
