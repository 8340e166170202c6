"""Training and evaluation by Detectron2's trainer, from a configuration."""

import argparse
import time
import weakref

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model, default_setup
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch.utils.data import Subset

from bua.checkpoint import load_weights
from bua.d2.evaluation import VisualGenomeEvaluator
from bua.d2.mapper import InferenceMapper, TrainingMapper
from bua.detection.catalog import get_dataset
from bua.detection.training import build_evaluator, print_metrics, start_from, training_set, weights_to_evaluate
from bua.engine import (
    NonFiniteLoss,
    autocast_dtype,
    build_clip,
    build_optimizer,
    build_scheduler,
    last_checkpoint,
)
from bua.errors import InputError
from bua.weights.zoo import fetch


class Trainer(DefaultTrainer):
    """Detectron2's trainer with bua's data, optimiser and evaluation.

    It goes on from checkpoints of the torch engine, and that from its own. Unlike ``DefaultTrainer`` it takes its
    steps itself, because that one's inner trainer trains on one GPU a process or a single CPU, and in float16 or
    float32 only: here several CPU processes train too, and SOLVER.AMP.DTYPE is heeded.
    """

    # DefaultTrainer shows those of its inner trainer under these names.
    model = data_loader = optimizer = None

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        self.device = next(model.parameters()).device
        self.optimizer = self.build_optimizer(cfg, model)
        self.data_loader = self.build_train_loader(cfg)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.clip = build_clip(cfg)
        self.dtype = autocast_dtype(cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32", self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        devices = {} if self.device.type == "cuda" else {"device_ids": None}
        self.model = create_ddp_model(model, broadcast_buffers=False, **devices)
        self.model.train()
        self.checkpointer = DetectionCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the newest checkpoint in OUTPUT_DIR, of either engine, or starts from MODEL.WEIGHTS."""
        if not (resume and self.checkpointer.has_checkpoint()):
            self._start_from(self.cfg.MODEL.WEIGHTS)
            return
        rest = self.checkpointer.resume_or_load("", resume=True)
        if "optimizer" in rest:  # the torch engine's
            for part in ("optimizer", "scheduler", "scaler"):
                getattr(self, part).load_state_dict(rest[part])
            self.start_iter = rest["iteration"]
        else:
            self.start_iter = self.iter + 1

    def _start_from(self, weights: str) -> None:
        catalog = weights.startswith("catalog://")
        if weights and self.cfg.MODEL.ROI_HEADS.NAME == "AttributeRes5ROIHeads" and not catalog:
            start_from(self.checkpointer.model, weights, verbose=comm.is_main_process())
        elif weights:
            # Other detectors, and Detectron2's own catalogue, need its rules of matching names.
            self.checkpointer.load(weights if catalog else str(fetch(weights)), checkpointables=[])

    def before_train(self) -> None:
        super().before_train()
        self.batches = iter(self.data_loader)

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self.batches)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            losses = self.model(batch)
        bad = [name for name, loss in losses.items() if not loss.isfinite()]
        if bad:
            ids = ", ".join(str(x["image_id"]) for x in batch)
            raise NonFiniteLoss(
                f"iteration {self.iter + 1}: {', '.join(bad)} not finite in the batch of {ids}; "
                "look at their annotations or lower the learning rate"
            )
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip([p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None])
        SimpleTrainer.write_metrics(losses, data_time, self.iter)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        parts = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return {**TrainerBase.state_dict(self), **parts}

    def load_state_dict(self, state_dict: dict) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.scaler.load_state_dict(state_dict["scaler"])

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> dict:
        """As ``DefaultTrainer.test``, with the first process's statistics of normalisation, which checkpoints have, in
        all of them."""
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return super().test(cfg, model, evaluators)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = super().build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            # As the torch engine does: its convolutions are faster in this order of the elements.
            model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The torch engine's, so that a run can change engines."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Detectron2's loader over DATASETS.TRAIN; images without a box are left out where the torch engine does."""
        batch_size, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
        if batch_size < 1 or batch_size % processes:
            raise InputError(f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a multiple of {processes} processes")
        dataset, mapper, keep = training_set(cfg)
        if keep is not None:
            dataset = Subset(dataset, keep)
        return build_detection_train_loader(cfg, mapper=TrainingMapper(mapper), dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Detectron2's loader, one image a batch; each process gets its share."""
        return build_detection_test_loader(
            dataset=get_dataset(dataset_name), mapper=InferenceMapper(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> VisualGenomeEvaluator:
        return build_evaluator(cfg, dataset_name, VisualGenomeEvaluator)


def train_detector(cfg: CfgNode, resume: bool = False) -> None:
    """As ``bua.detection.training.train_detector``; ``bua.d2.launch`` runs it on several devices."""
    _check_device(cfg)
    if not resume and (last := last_checkpoint(cfg.OUTPUT_DIR)):
        raise InputError(f"{cfg.OUTPUT_DIR}: holds a run already ({last.name}); --resume it or set OUTPUT_DIR")
    comm.synchronize()
    default_setup(cfg, argparse.Namespace(resume=resume))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()


def evaluate_checkpoint(cfg: CfgNode) -> dict[str, float]:
    """As ``bua.detection.training.evaluate_checkpoint``; all processes share the images, and the first one has the
    metrics."""
    _check_device(cfg)
    weights = weights_to_evaluate(cfg)
    default_setup(cfg, argparse.Namespace(eval_only=True))
    model = Trainer.build_model(cfg)
    load_weights(model, weights)
    metrics = flatten_results_dict(Trainer.test(cfg, model))
    if comm.is_main_process():
        print_metrics(metrics)
    return metrics


def _check_device(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        raise InputError(
            "MODEL.DEVICE is cpu: on a machine with GPUs Detectron2 has several processes talk through these; "
            "hide them with CUDA_VISIBLE_DEVICES=''"
        )
