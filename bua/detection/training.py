"""Trains and evaluates the detector on the torch engine, as a configuration describes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.data import ConcatDataset

from bua.checkpoint import load_weights
from bua.detection.annotations import DetectionDataset
from bua.detection.catalog import get_dataset
from bua.detection.description import KEY, check_class_names, describe_detector
from bua.detection.evaluation.evaluator import VisualGenomeEvaluator
from bua.detection.evaluation.output import checkpoint_label, evaluation_folder
from bua.detection.evaluation.published import metric_prefix, published_scores
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
from bua.engine.checkpoints import checkpoint_name
from bua.engine.loader import TrainingLoader, aspect_groups
from bua.engine.log import metrics_table
from bua.engine.resume import checkpoint_to_resume, only_training
from bua.errors import InputError
from bua.modeling.build import build_model
from bua.vocabulary import Vocabulary
from bua.weights.zoo import is_backbone

Evaluator = TypeVar("Evaluator", bound=VisualGenomeEvaluator)


@dataclass
class TrainingSet:
    """The images of ``DATASETS.TRAIN``.

    Attributes:
        dataset: All data sets, one after another.
        mapper: Makes a training sample from an item of ``dataset``.
        keep: Indices of the images to train on. None stands for all images.
        sizes: [N, 2] int64, (height, width) of each image in pixels.
        objects, attribute_names: Vocabularies of all data sets.
    """

    dataset: ConcatDataset
    mapper: TrainingMapper
    keep: np.ndarray | None
    sizes: np.ndarray
    objects: Vocabulary
    attribute_names: Vocabulary


def train_detector(cfg: CfgNode, resume: bool | str | Path = False) -> dict[str, float]:
    """Trains a detector on ``DATASETS.TRAIN`` and writes its checkpoints to ``OUTPUT_DIR``.

    Training starts from ``MODEL.WEIGHTS``. The detector is evaluated on ``DATASETS.TEST`` every ``TEST.EVAL_PERIOD``
    iterations and at the end. To train on several devices, run this function by ``bua.engine.launch``.

    Args:
        cfg: The configuration.
        resume: Whether to continue from the newest checkpoint in ``OUTPUT_DIR``, if there is one; or the path of the
            checkpoint to continue from.

    Returns:
        The metrics of the last evaluation. The dict is empty if there was none, and outside of the main process.
    """
    accelerator = connect(cfg.MODEL.DEVICE, cfg.FLOAT32_PRECISION)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    seed = seed_run(cfg.SEED, accelerator)
    data = training_set(cfg)
    loader = training_loader(cfg, seed, accelerator.process_index, accelerator.num_processes, data)
    evaluators = build_evaluators(cfg)
    description = describe_detector(cfg, data.objects.names, data.attribute_names.names)
    detector = build_model(cfg)
    with only_training(cfg.OUTPUT_DIR, accelerator.is_main_process):
        if checkpoint_to_resume(cfg.OUTPUT_DIR, resume) is None and cfg.MODEL.WEIGHTS:
            load_initial_weights(detector, cfg.MODEL.WEIGHTS, verbose=accelerator.is_main_process)
        optimizer = build_optimizer(cfg, detector)

        def evaluate() -> dict[str, float]:
            return _evaluate(cfg, detector, evaluators, label_of_iteration(cfg, trainer.iteration))

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
            evaluate=evaluate if cfg.DATASETS.TEST else None,
            shared_evaluation=True,
            eval_period=cfg.TEST.EVAL_PERIOD,
            clip=build_clip(cfg),
            precision=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32",
            config=cfg,
            extra={KEY: description.state()},
            fractions=True,
            published=published_scores(evaluator.dataset for evaluator in evaluators),
        )
        return trainer.run(resume)


def evaluate_checkpoint(cfg: CfgNode) -> dict[str, float]:
    """Evaluates a checkpoint on ``DATASETS.TEST`` and prints the metrics.

    The checkpoint is that of ``weights_to_evaluate``. If ``bua.engine.launch``
    started several processes, they share the images.

    Returns:
        The metrics of ``VisualGenomeEvaluator``, named ``<data set>/<metric>`` if there are several data sets. The dict
        is empty in all processes but the first.
    """
    accelerator = connect(cfg.MODEL.DEVICE, cfg.FLOAT32_PRECISION)
    weights = weights_to_evaluate(cfg)
    evaluators = build_evaluators(cfg)
    for evaluator in evaluators:
        check_evaluated_classes(weights, evaluator)
    detector = build_model(cfg)
    load_weights(detector, weights)
    metrics = _evaluate(cfg, detector, evaluators, checkpoint_label(weights, cfg.OUTPUT_DIR))
    if accelerator.is_main_process:
        print_metrics(metrics, evaluators)
    return metrics


def print_metrics(metrics: dict[str, float], evaluators: Sequence[VisualGenomeEvaluator]) -> None:
    """Prints metrics, which are fractions, as a table of percentages, with the published scores beside them."""
    published = published_scores(evaluator.dataset for evaluator in evaluators)
    print(metrics_table(metrics, fractions=True, published=published), flush=True)


def weights_to_evaluate(cfg: CfgNode) -> str:
    """Returns ``MODEL.WEIGHTS`` or, if that is empty or names a backbone that was trained on ImageNet, from which
    training starts, the newest checkpoint in ``OUTPUT_DIR``.

    Raises:
        InputError: There is neither of them, or ``DATASETS.TEST`` is empty.
    """
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST: empty; name a data set to evaluate on")
    weights: str = cfg.MODEL.WEIGHTS
    if weights and not is_backbone(weights):
        return weights
    newest = last_checkpoint(cfg.OUTPUT_DIR)
    if newest is None:
        found = f"names a backbone, {weights}" if weights else "empty"
        raise InputError(f"MODEL.WEIGHTS: {found}, and no checkpoint in {cfg.OUTPUT_DIR}; name the weights to evaluate")
    return str(newest)


def training_loader(
    cfg: CfgNode, seed: int, process_index: int = 0, num_processes: int = 1, data: TrainingSet | None = None
) -> TrainingLoader:
    """Returns a loader of batches of ``DetectorInput`` from all data sets in ``DATASETS.TRAIN``.

    Args:
        data: What ``training_set(cfg)`` returns, if the caller has it.
    """
    data = data or training_set(cfg)
    return TrainingLoader(
        data.dataset,
        data.mapper,
        cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        groups=aspect_groups(data.sizes) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        keep=data.keep,
        num_workers=_workers(cfg),
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
        process_index=process_index,
        num_processes=num_processes,
    )


def training_set(cfg: CfgNode) -> TrainingSet:
    """Reads all data sets in ``DATASETS.TRAIN``.

    Raises:
        InputError: There is no data set, or one does not exist, or their vocabularies differ from each other or have
            other sizes than ``cfg`` says.
    """
    datasets = [_dataset(cfg, name) for name in cfg.DATASETS.TRAIN]
    if not datasets:
        raise InputError("DATASETS.TRAIN: empty; name a data set, such as shapes_train")
    first = datasets[0]
    for other in datasets[1:]:
        if (other.objects, other.attribute_names) != (first.objects, first.attribute_names):
            raise InputError(
                f"DATASETS.TRAIN: {first.name} and {other.name} have different vocabularies; prepare both with the same"
            )
    keep = None
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        keep = np.concatenate([_has_boxes(dataset, cfg.MODEL.BUA.BOX_CONVENTION) for dataset in datasets]).nonzero()[0]
    return TrainingSet(
        # ConcatDataset is annotated to take torch's Datasets; it works with all that have a length and items.
        ConcatDataset(datasets),  # type: ignore[arg-type]
        build_mapper(cfg, first.objects, first.attribute_names),
        keep,
        np.concatenate([dataset.sizes for dataset in datasets]),
        first.objects,
        first.attribute_names,
    )


def build_evaluators(cfg: CfgNode) -> list[VisualGenomeEvaluator]:
    """Builds one evaluator for each data set in ``DATASETS.TEST``. ``write_evaluations`` says where they write."""
    return [build_evaluator(cfg, name, VisualGenomeEvaluator) for name in cfg.DATASETS.TEST]


def build_evaluator(cfg: CfgNode, name: str, evaluator_class: type[Evaluator]) -> Evaluator:
    """Builds the evaluator of a data set, which writes nothing before ``write_evaluations`` says where."""
    return evaluator_class(
        _dataset(cfg, name),
        convention=cfg.MODEL.BUA.BOX_CONVENTION,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        keep_detections=cfg.MODEL.BUA.EVALUATION.KEEP_DETECTIONS,
        zero_rows=cfg.MODEL.BUA.EVALUATION.ZERO_ROWS,
    )


def write_evaluations(cfg: CfgNode, evaluators: Sequence[VisualGenomeEvaluator], checkpoint: str) -> None:
    """Makes the evaluators of ``DATASETS.TEST`` write to ``OUTPUT_DIR/evaluation/<data set>/<checkpoint>``.

    Args:
        checkpoint: Name of the checkpoint that is evaluated, as ``checkpoint_label`` returns it.

    Raises:
        InputError: A folder cannot be created or written to.
    """
    for name, evaluator in zip(cfg.DATASETS.TEST, evaluators):
        evaluator.write_to(evaluation_folder(cfg.OUTPUT_DIR, name, checkpoint))


def label_of_iteration(cfg: CfgNode, iterations: int) -> str:
    """Returns the name of a run's checkpoint after a number of iterations, as ``checkpoint_label`` returns it."""
    name = checkpoint_name(iterations, final=iterations >= cfg.SOLVER.MAX_ITER)
    return checkpoint_label(f"{cfg.OUTPUT_DIR}/{name}", cfg.OUTPUT_DIR)


def check_evaluated_classes(weights: str, evaluator: VisualGenomeEvaluator) -> None:
    """Raises an InputError if a checkpoint was trained on other classes than those of the evaluated data set."""
    dataset = evaluator.dataset
    check_class_names(weights, dataset.objects.names, dataset.attribute_names.names, dataset.name)


def load_initial_weights(model: nn.Module, weights: str, verbose: bool = True) -> None:
    """Copies the parameters that fit from a checkpoint, and prints which ones do not fit."""
    report = load_weights(model, weights, allow_missing=True)
    for line in report.lines() if verbose else ():
        print(f"{weights}: {line}", flush=True)


def _evaluate(
    cfg: CfgNode, detector: nn.Module, evaluators: Sequence[VisualGenomeEvaluator], checkpoint: str
) -> dict[str, float]:
    write_evaluations(cfg, evaluators, checkpoint)
    metrics = {}
    for evaluator in evaluators:
        prefix = metric_prefix(evaluator.dataset.name, len(evaluators))
        result = evaluate_detector(detector, evaluator, num_workers=_workers(cfg))
        metrics.update({prefix + name: value for name, value in result.items()})
    return metrics


def _workers(cfg: CfgNode) -> int:
    return min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)


def _dataset(cfg: CfgNode, name: str) -> DetectionDataset:
    dataset = get_dataset(name, cfg.DATASETS.FILES)
    sizes = {"MODEL.ROI_HEADS.NUM_CLASSES": (len(dataset.objects), cfg.MODEL.ROI_HEADS.NUM_CLASSES)}
    if cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        found, wanted = len(dataset.attribute_names), cfg.MODEL.BUA.ATTRIBUTES.NUM_CLASSES
        sizes["MODEL.BUA.ATTRIBUTES.NUM_CLASSES"] = (found, wanted)
    for key, (found, wanted) in sizes.items():
        if found != wanted:
            raise InputError(f"{key} is {wanted}, but the vocabulary of {name} has {found} classes; set it to {found}")
    return dataset


def _has_boxes(dataset: DetectionDataset, convention: str) -> np.ndarray:
    """Returns [N] bool: whether each image has a box to train on."""
    least = 0 if convention == "caffe" else np.finfo(np.float32).tiny
    boxes_of_images = (dataset.boxes(index) for index in range(len(dataset)))
    return np.array([(boxes[:, 2:] - boxes[:, :2] >= least).all(axis=1).any() for boxes in boxes_of_images], dtype=bool)
