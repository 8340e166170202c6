"""Training and evaluation of the detector on the torch engine, from a configuration."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.data import ConcatDataset

from bua.checkpoint import load_weights
from bua.detection.annotations import DetectionDataset
from bua.detection.catalog import get_dataset
from bua.detection.evaluation.evaluator import VisualGenomeEvaluator
from bua.detection.evaluation.run import evaluate_detector
from bua.detection.mapper import TrainingMapper, build_mapper
from bua.engine import (
    Trainer,
    build_clip,
    build_optimizer,
    build_scheduler,
    connect,
    last_checkpoint,
    seed_run,
)
from bua.engine.loader import TrainingLoader, aspect_groups
from bua.errors import InputError
from bua.modeling.detector import Detector, build_detector


def train_detector(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Trains on ``DATASETS.TRAIN`` from ``MODEL.WEIGHTS`` into ``OUTPUT_DIR``, and evaluates on ``DATASETS.TEST``
    every ``TEST.EVAL_PERIOD`` iterations and at the end. ``bua.engine.launch`` runs it on several devices.

    Args:
        resume: goes on from the newest checkpoint in ``OUTPUT_DIR`` where there is one.

    Returns:
        the metrics of the last evaluation; empty without one.
    """
    accelerator = connect(cfg.MODEL.DEVICE)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    seed = seed_run(cfg.SEED, accelerator)
    loader = training_loader(cfg, seed, accelerator.process_index, accelerator.num_processes)
    evaluators = build_evaluators(cfg) if accelerator.is_main_process else []
    detector = build_detector(cfg)
    if cfg.MODEL.WEIGHTS and not (resume and last_checkpoint(cfg.OUTPUT_DIR)):
        start_from(detector, cfg.MODEL.WEIGHTS, verbose=accelerator.is_main_process)
    optimizer = build_optimizer(cfg, detector)
    trainer = Trainer(
        detector,
        loader,
        optimizer,
        build_scheduler(cfg, optimizer),
        accelerator=accelerator,
        output_dir=cfg.OUTPUT_DIR,
        max_iter=cfg.SOLVER.MAX_ITER,
        ids=lambda batch: [image.image_id for image in batch],
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        evaluate=(lambda: _evaluate(cfg, detector, evaluators)) if cfg.DATASETS.TEST else None,
        eval_period=cfg.TEST.EVAL_PERIOD,
        clip=build_clip(cfg),
        precision=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32",
        config=cfg,
    )
    return trainer.run(resume)


def evaluate_checkpoint(cfg: CfgNode) -> dict[str, float]:
    """Evaluates ``MODEL.WEIGHTS``, or else the newest checkpoint in ``OUTPUT_DIR``, on ``DATASETS.TEST``, in the first
    of the processes that ``bua.engine.launch`` started, and prints the metrics.

    Returns:
        the metrics of ``VisualGenomeEvaluator``; with several data sets, under ``<data set>/<metric>``.
    """
    if not connect(cfg.MODEL.DEVICE).is_main_process:
        return {}
    weights = weights_to_evaluate(cfg)
    evaluators = build_evaluators(cfg)
    detector = build_detector(cfg)
    load_weights(detector, weights)
    metrics = _evaluate(cfg, detector, evaluators)
    print_metrics(metrics)
    return metrics


def print_metrics(metrics: dict[str, float]) -> None:
    """Prints fractions as a table of percentages."""
    for name, value in metrics.items():
        print(f"{name:40s} {100 * value:6.2f} %", flush=True)


def weights_to_evaluate(cfg: CfgNode) -> str:
    """``MODEL.WEIGHTS``, or else the newest checkpoint in ``OUTPUT_DIR``.

    Raises:
        InputError: neither is there, or nothing to evaluate them on.
    """
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST: empty; name a data set to evaluate on")
    weights = cfg.MODEL.WEIGHTS or last_checkpoint(cfg.OUTPUT_DIR)
    if not weights:
        raise InputError(f"MODEL.WEIGHTS: empty, and no checkpoint in {cfg.OUTPUT_DIR}; name the weights to evaluate")
    return str(weights)


def training_loader(cfg: CfgNode, seed: int, process_index: int = 0, num_processes: int = 1) -> TrainingLoader:
    """Batches of ``DetectorInput`` from all of ``DATASETS.TRAIN``."""
    dataset, mapper, keep = training_set(cfg)
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = aspect_groups(np.concatenate([part.sizes for part in dataset.datasets]))
    return TrainingLoader(
        dataset,
        mapper,
        cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        groups=groups,
        keep=keep,
        num_workers=_workers(cfg),
        process_index=process_index,
        num_processes=num_processes,
    )


def training_set(cfg: CfgNode) -> tuple[ConcatDataset, TrainingMapper, np.ndarray | None]:
    """All of ``DATASETS.TRAIN``, the mapper for it, and the indices of the images to train on; None is all.

    Raises:
        InputError: no data set, one that is not there, or vocabularies that differ or have other sizes than ``cfg``.
    """
    datasets = [_dataset(cfg, name) for name in cfg.DATASETS.TRAIN]
    if not datasets:
        raise InputError("DATASETS.TRAIN: empty; name a data set, such as shapes_train")
    first = datasets[0]
    for other in datasets[1:]:
        if (other.objects, other.attribute_names) != (first.objects, first.attribute_names):
            raise InputError(
                f"DATASETS.TRAIN: {first.name} and {other.name} have different vocabularies; prepare alike"
            )
    keep = None
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        keep = np.concatenate([_has_boxes(dataset, cfg.MODEL.BUA.BOX_CONVENTION) for dataset in datasets]).nonzero()[0]
    return ConcatDataset(datasets), build_mapper(cfg, first.objects, first.attribute_names), keep


def build_evaluators(cfg: CfgNode) -> list[VisualGenomeEvaluator]:
    """One for each of ``DATASETS.TEST``."""
    return [build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]


def build_evaluator(cfg: CfgNode, name: str, kind: type[VisualGenomeEvaluator] = VisualGenomeEvaluator):
    """An evaluator of the class ``kind`` for a data set; its tables go to ``OUTPUT_DIR/evaluation/<data set>``."""
    return kind(
        _dataset(cfg, name),
        convention=cfg.MODEL.BUA.BOX_CONVENTION,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        output_dir=f"{cfg.OUTPUT_DIR}/evaluation/{name}",
    )


def start_from(model: nn.Module, weights: str, verbose: bool = True) -> None:
    """Copies what fits from a checkpoint, and says what does not."""
    report = load_weights(model, weights, allow_missing=True)
    for line in report.lines() if verbose else ():
        print(f"{weights}: {line}", flush=True)


def _evaluate(cfg: CfgNode, detector: Detector, evaluators: Sequence[VisualGenomeEvaluator]) -> dict[str, float]:
    metrics = {}
    for evaluator in evaluators:
        prefix = "" if len(evaluators) == 1 else f"{evaluator.dataset.name}/"
        result = evaluate_detector(detector, evaluator, num_workers=_workers(cfg))
        metrics.update({prefix + name: value for name, value in result.items()})
    return metrics


def _workers(cfg: CfgNode) -> int:
    return min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)


def _dataset(cfg: CfgNode, name: str) -> DetectionDataset:
    dataset = get_dataset(name)
    sizes = {"MODEL.ROI_HEADS.NUM_CLASSES": (len(dataset.objects), cfg.MODEL.ROI_HEADS.NUM_CLASSES)}
    if cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        found, wanted = len(dataset.attribute_names), cfg.MODEL.BUA.ATTRIBUTES.NUM_CLASSES
        sizes["MODEL.BUA.ATTRIBUTES.NUM_CLASSES"] = (found, wanted)
    for key, (found, wanted) in sizes.items():
        if found != wanted:
            raise InputError(f"{key} is {wanted}, and the vocabulary of {name} has {found} classes; set it to {found}")
    return dataset


def _has_boxes(dataset: DetectionDataset, convention: str) -> np.ndarray:
    """[N] bool: whether an image has a box to train on."""
    least = 0 if convention == "caffe" else np.finfo(np.float32).tiny
    sides = (dataset.boxes(index) for index in range(len(dataset)))
    return np.array([(boxes[:, 2:] - boxes[:, :2] >= least).all(axis=1).any() for boxes in sides], dtype=bool)
