"""Runs the stages of the demo, in order."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from bua.config import load_cfg
from bua.demo.data import copy_by_other_ids, make_data
from bua.demo.gallery import draw_gallery
from bua.demo.page import demo_report
from bua.demo.stages import STAGES, Record, check_configuration, print_plan
from bua.demo.tasks import REGIONS, TASKS, DemoPaths, configurations, train_and_score
from bua.detection.catalog import datasets_root, get_dataset
from bua.detection.evaluation.run import evaluate_detector
from bua.detection.training import build_evaluators, train_detector, write_evaluations
from bua.engine import launch
from bua.engine.checkpoints import FINAL, last_checkpoint
from bua.engine.log import METRICS_FILE
from bua.errors import make_folder
from bua.extraction import extract
from bua.visual_genome.splits import SPLITS
from bua.visualization.report import write_report
from bua.visualization.visualize import load_detector

EXTRACTION_BATCH = 8
MOST_PROCESSES = 4
# With fewer images per process, the losses are normalised over too few boxes.
IMAGES_PER_PROCESS = 4
CPU_FLAGS = Path("/proc/cpuinfo")


def run_demo(
    output: str | Path,
    config_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    task_configs: str | Path = "configs",
    task_overrides: Sequence[str] = (),
    num_train: int = 4000,
    num_val: int = 300,
    num_test: int = 500,
) -> dict[str, float]:
    """Runs the demo and returns its scores.

    The demo makes the data set Shapes, trains a detector on it, extracts features, trains models for question
    answering, captioning and phrase grounding on these, scores all models on the test split, and writes a page of the
    results.

    Shapes is made in ``datasets_root()``, unless it exists there already. ``output`` receives ``index.html``,
    ``metrics.json``, a folder ``features``, and one folder for each training. When a run was stopped, the next call
    resumes it.

    Args:
        output: Folder to write to; it is created if it does not exist.
        config_file, overrides: The detector's configuration, as for ``bua.config.load_cfg``. OUTPUT_DIR,
            DATASETS.TRAIN and DATASETS.TEST are set by the demo.
        task_configs: Folder with ``vqa/shapes_updown.yaml``, ``captioning/shapes_updown.yaml`` and
            ``grounding/shapes.yaml``. Their DATA and OUTPUT_DIR are set by the demo.
        task_overrides: Configuration keys and values that are set in all three of these.
        num_train, num_val, num_test: Number of images of each split, if Shapes is yet to be made.

    Returns:
        The content of metrics.json: scores on the test split, as fractions, and the seconds of each stage. The
        detector's scores have the names that its evaluator gives them, those of the task models are named
        ``<task>/<model>/<metric>``, and the seconds ``seconds/<stage>``, summed over all runs, for each of ``STAGES``.

    Raises:
        InputError: ``output`` was started with another configuration, or a stage raises it.
    """
    output, shapes = Path(output), datasets_root() / "shapes"
    detector_dir = output / "detector"
    fast = has_bfloat16(load_cfg(config_file, list(overrides)).MODEL.DEVICE)
    cfg = load_cfg(config_file, ["SOLVER.AMP.ENABLED", str(fast), *overrides])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
    cfg.OUTPUT_DIR = str(detector_dir)
    check_configuration(detector_dir / "config.yaml", cfg.dump())
    paths = DemoPaths(shapes, output, Path(task_configs), tuple(task_overrides), cfg.MODEL.DEVICE)
    for task in TASKS:
        configurations(paths, task)
    record = Record(output / "metrics.json", STAGES)
    make_folder(output)
    print_plan(STAGES)

    with record.stage("data", resumed=True):
        make_data(shapes, num_train, num_val, num_test)
        test = get_dataset("shapes_test")
    with record.stage("training", resumed=last_checkpoint(detector_dir) is not None):
        launch(train_detector, (cfg, True), num_processes=_training_processes(cfg))
    cfg.MODEL.WEIGHTS = str(detector_dir / FINAL)
    with record.stage("evaluation"):
        detector = load_detector(cfg, test)
        cfg.DATASETS.TEST = ("shapes_test",)
        (evaluator,) = build_evaluators(cfg)
        write_evaluations(cfg, [evaluator], Path(FINAL).stem)
        record.metrics |= evaluate_detector(detector, evaluator, num_workers=cfg.DATALOADER.NUM_WORKERS)
    with record.stage("extraction", resumed=paths.features("visual_genome").exists()):
        _extract(paths, cfg, config_file, overrides)
    with record.stage("heads", resumed=any((output / task).exists() for task in TASKS)):
        train_and_score(paths, record.metrics, record.save)
    with record.stage("page"):
        report = demo_report(
            record,
            images=draw_gallery(paths, detector, test),
            training_log=[json.loads(line) for line in (detector_dir / METRICS_FILE).read_text().splitlines()],
            curves={kind: evaluator.precision_recall(kind) for kind in ("objects", "attributes")},
            training_images=len(get_dataset("shapes_train")),
            weights=cfg.MODEL.WEIGHTS,
            paths=paths,
        )
        write_report(output / "index.html", report)
    return record.content()


def _training_processes(cfg: CfgNode) -> int:
    """Returns the number of processes to train the detector with.

    On a CPU, a small network trains faster with one core in each of several processes than with several cores in one.
    """
    if cfg.MODEL.DEVICE != "cpu":
        return 1
    most = min(os.cpu_count() or 1, cfg.SOLVER.IMS_PER_BATCH // IMAGES_PER_PROCESS)
    return next((number for number in range(most, 1, -1) if cfg.SOLVER.IMS_PER_BATCH % number == 0), 1)


def has_bfloat16(device: str) -> bool:
    """Returns whether the device computes faster in bfloat16 than in float32.

    A CPU without instructions for bfloat16 takes many times longer with it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = CPU_FLAGS.read_text(encoding="utf-8").split() if CPU_FLAGS.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _extract(paths: DemoPaths, cfg: CfgNode, config_file: str | Path, overrides: Sequence[str]) -> None:
    """Extracts the features of all images.

    They are extracted once, by Visual Genome's image ids, and then copied by other data sets' ids.
    """
    summary = extract(
        paths.shapes / "image_data.json",
        paths.features("visual_genome"),
        image_root=paths.shapes,
        config_file=config_file,
        weights=cfg.MODEL.WEIGHTS,
        overrides=list(overrides),
        format="flat-fp16",
        min_boxes=REGIONS,
        max_boxes=REGIONS,
        batch_size=EXTRACTION_BATCH,
        precision="bf16" if cfg.SOLVER.AMP.ENABLED else "fp32",
        # A small network runs faster in several processes with one core each than in one process with all cores.
        num_gpus=min(os.cpu_count() or 1, MOST_PROCESSES) if cfg.MODEL.DEVICE == "cpu" else 1,
    )
    print(f"{paths.features('visual_genome')}: {summary.done} images extracted, {summary.skipped} were there already")
    copy_by_other_ids(paths, [get_dataset(f"shapes_{split}") for split in SPLITS])
