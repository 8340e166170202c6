"""The demo: every stage in its order."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from bua.config import load_cfg
from bua.demo.gallery import draw_gallery
from bua.demo.heads import REGIONS, TASKS, Place, configurations, train_and_score
from bua.demo.page import demo_report
from bua.demo.stages import Record, check_configuration, print_plan
from bua.detection.catalog import datasets_root, get_dataset
from bua.detection.evaluation.run import evaluate_detector
from bua.detection.training import build_evaluators, train_detector
from bua.engine import launch
from bua.engine.log import METRICS_FILE
from bua.engine.trainer import FINAL, last_checkpoint
from bua.errors import make_folder
from bua.extraction import extract
from bua.features import convert_features
from bua.io.json_records import iter_records
from bua.shapes.make import MARKER, make_shapes
from bua.shapes.oracle_features import write_oracle_features
from bua.visual_genome.prepare import SPLITS, prepare
from bua.visualization.report import write_report
from bua.visualization.visualize import load_detector

EXTRACTION_BATCH = 8
MOST_PROCESSES = 4
# Fewer are too few to normalise by.
IMAGES_PER_PROCESS = 4
CPU_FLAGS = Path("/proc/cpuinfo")


def run_demo(
    output: str | Path,
    config_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    head_configs: str | Path = "configs",
    head_overrides: Sequence[str] = (),
    num_train: int = 4000,
    num_val: int = 300,
    num_test: int = 500,
) -> dict[str, float]:
    """Makes Shapes, trains a detector on it, extracts features, trains on these question answering, captioning and
    phrase grounding, scores all of it on the test split, and writes a page about it.

    Shapes lies in ``datasets_root()``; one that is prepared there already is used as it is. In ``output`` there are
    then ``index.html``, ``metrics.json``, a folder ``features``, and one for what each training writes. A run that was
    stopped goes on where it was when it is called again.

    Args:
        config_file, overrides: as for ``bua.config.load_cfg``; OUTPUT_DIR, DATASETS.TRAIN and DATASETS.TEST are set
            here.
        head_configs: folder with ``vqa/shapes_updown.yaml``, ``captioning/shapes_updown.yaml`` and
            ``grounding/shapes.yaml``; their DATA and OUTPUT_DIR are set here.
        head_overrides: of all three.
        num_train, num_val, num_test: images, where Shapes has yet to be made.

    Returns:
        what metrics.json holds: scores on the test split, fractions: of the detector as its evaluator names them, and
        ``<task>/<model>/<metric>``; and ``seconds/<stage>`` for each of ``STAGES``, over all runs that it took.

    Raises:
        InputError: ``output`` was begun with another configuration; as the stages do.
    """
    output, shapes = Path(output), datasets_root() / "shapes"
    detector_dir = output / "detector"
    fast = has_bfloat16(load_cfg(config_file, overrides).MODEL.DEVICE)
    cfg = load_cfg(config_file, ["SOLVER.AMP.ENABLED", str(fast), *overrides])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
    cfg.OUTPUT_DIR = str(detector_dir)
    check_configuration(detector_dir / "config.yaml", cfg.dump())
    place = Place(shapes, output, Path(head_configs), tuple(head_overrides), cfg.MODEL.DEVICE)
    for task in TASKS:
        configurations(place, task)
    record = Record(output / "metrics.json")
    make_folder(output)
    print_plan()

    with record.stage("data", goes_on=True):
        _make_data(shapes, num_train, num_val, num_test)
        test = get_dataset("shapes_test")
    with record.stage("training", goes_on=last_checkpoint(detector_dir) is not None):
        launch(train_detector, (cfg, True), num_processes=_training_processes(cfg))
    cfg.MODEL.WEIGHTS = str(detector_dir / FINAL)
    with record.stage("evaluation"):
        detector = load_detector(cfg, test)
        cfg.DATASETS.TEST = ("shapes_test",)
        (evaluator,) = build_evaluators(cfg)
        record.metrics |= evaluate_detector(detector, evaluator, num_workers=cfg.DATALOADER.NUM_WORKERS)
    with record.stage("extraction", goes_on=place.features("visual_genome").exists()):
        _extract(place, cfg, config_file, overrides)
    with record.stage("heads", goes_on=any((output / task).exists() for task in TASKS)):
        train_and_score(place, record.metrics, record.save)
    with record.stage("page"):
        report = demo_report(
            record,
            images=draw_gallery(place, detector, test),
            training_log=[json.loads(line) for line in (detector_dir / METRICS_FILE).read_text().splitlines()],
            curves={kind: evaluator.precision_recall(kind) for kind in ("objects", "attributes")},
            training_images=len(get_dataset("shapes_train")),
            detector=[str(config_file), cfg.MODEL.WEIGHTS, *overrides],
            place=place,
        )
        write_report(output / "index.html", report)
    return record.content()


def _make_data(folder: Path, num_train: int, num_val: int, num_test: int) -> None:
    annotation_files = [folder / "annotations" / f"shapes_{split}.json" for split in SPLITS]
    if not all(path.is_file() for path in annotation_files):
        if not (folder / MARKER).is_file():
            make_shapes(folder, num_train, num_val, num_test)
        prepare(folder, "shapes")
    sizes = ", ".join(f"{len(get_dataset(f'shapes_{split}'))} {split}" for split in SPLITS)
    print(f"images in {folder}: {sizes}")


def _training_processes(cfg: CfgNode) -> int:
    """A small network is faster on one core in each of several processes than on several cores in one."""
    if cfg.MODEL.DEVICE != "cpu":
        return 1
    most = min(os.cpu_count() or 1, cfg.SOLVER.IMS_PER_BATCH // IMAGES_PER_PROCESS)
    return next((number for number in range(most, 1, -1) if cfg.SOLVER.IMS_PER_BATCH % number == 0), 1)


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies numbers in bfloat16 faster than in float32. A processor without the instructions
    takes many times longer."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = CPU_FLAGS.read_text(encoding="utf-8").split() if CPU_FLAGS.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _extract(place: Place, cfg: CfgNode, config_file: str | Path, overrides: Sequence[str]) -> None:
    """Features of all images once, by Visual Genome's ids; then by COCO's and Flickr30k's; and perfect ones."""
    image_data = place.shapes / "image_data.json"
    summary = extract(
        image_data,
        place.features("visual_genome"),
        image_root=place.shapes,
        config_file=config_file,
        weights=cfg.MODEL.WEIGHTS,
        overrides=list(overrides),
        format="flat-fp16",
        min_boxes=REGIONS,
        max_boxes=REGIONS,
        batch_size=EXTRACTION_BATCH,
        precision="bf16" if cfg.SOLVER.AMP.ENABLED else "fp32",
        # A small network is faster on one core than on several.
        num_gpus=min(os.cpu_count() or 1, MOST_PROCESSES) if cfg.MODEL.DEVICE == "cpu" else 1,
    )
    print(f"{summary.done} images in {place.features('visual_genome')}, {summary.skipped} were there")
    coco, flickr30k = _ids(image_data, "coco_id"), _ids(image_data, "flickr_id")
    for name, ids in (("coco", coco), ("flickr30k", flickr30k)):
        convert_features(place.features("visual_genome"), place.features(name), "flat-fp16", ids=ids)
    datasets = [get_dataset(f"shapes_{split}") for split in SPLITS]
    write_oracle_features(datasets, place.features("perfect"), image_id_of=coco.get, progress=False)


def _ids(image_data: Path, key: str) -> dict[int, int]:
    """Another data set's ids of Visual Genome's images, for those that it has."""
    records = iter_records(image_data, progress=False)
    return {record["image_id"]: record[key] for record in records if record[key] is not None}
