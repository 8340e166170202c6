"""The short demo: applies the models that come with the package to newly drawn images, scores them, and writes a page;
and makes the files of these models from the output of a training."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bua.captioning.inference import load_captioner
from bua.checkpoint import read_checkpoint, save_checkpoint
from bua.config import load_cfg
from bua.demo.data import copy_by_other_ids, make_data
from bua.demo.gallery import draw_gallery
from bua.demo.page import packed_report
from bua.demo.stages import PACKED_STAGES, SECONDS, Record, print_plan
from bua.demo.tasks import REGIONS, TASKS, DemoPaths, features_of
from bua.detection.annotations import DetectionDataset
from bua.detection.catalog import get_dataset
from bua.detection.description import KEY, describe_detector
from bua.detection.evaluation.evaluator import VisualGenomeEvaluator
from bua.detection.evaluation.run import evaluate_detector
from bua.engine.checkpoints import FINAL
from bua.errors import InputError, make_folder
from bua.extraction import extract
from bua.extraction.extractor_config import fingerprint
from bua.extraction.image_detector import open_detector
from bua.grounding.inference import load_grounding
from bua.io.files import exclusive, whole_file
from bua.visual_genome.splits import SPLITS
from bua.visualization.report import write_report
from bua.vqa.inference import load_vqa
from bua.weights.zoo import PACKAGED, PACKAGED_FOLDER, fetch

# The models of the training demo that come with the package, by task and model, and their names.
MODELS = {
    ("vqa", "updown"): "shapes-vqa",
    ("vqa", "blind"): "shapes-vqa-blind",
    ("captioning", "updown"): "shapes-captioning",
    ("captioning", "blind"): "shapes-captioning-blind",
    ("grounding", "ban"): "shapes-grounding",
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "vqa": load_vqa,
    "captioning": load_captioner,
    "grounding": load_grounding,
}
# The scores of the packed models in a demo of so many test images, beside their files.
SCORES = PACKAGED_FOLDER / "scores.json"
SCORED_IMAGES = 40
# The images are drawn from another random seed than those that the models were trained on, which is 0.
SEED = 1
NUM_TRAIN, NUM_VAL = 60, 20
# What an optimiser and a resumed run need, and inference does not.
TRAINING_STATE = ("optimizer", "scheduler", "scaler", "data", "log", "random", "iteration", "metrics")


@dataclass(frozen=True)
class PackedPaths(DemoPaths):
    """The paths of a demo whose models come with the package."""

    def model(self, task: str, name: str) -> Path:
        return fetch(MODELS[task, name])


def run_packed_demo(output: str | Path, *, num_test: int = 100, device: str = "cpu") -> dict[str, float]:
    """Runs the short demo and returns its scores.

    It draws images of Shapes that no model was trained on, extracts the features of their regions with the detector
    that comes with the package, applies the task models that come with it, scores everything beside the blind
    baselines, and writes ``index.html`` and ``metrics.json`` to ``output``. When a run was stopped, the next call
    continues it.

    Args:
        output: Folder to write to; it is created if it does not exist.
        num_test: Number of images that are scored.
        device: A torch device.

    Returns:
        As ``bua.demo.run_demo``, without the scores of models with ground-truth regions.

    Raises:
        InputError: ``output`` holds another demo, or a stage raises it.
    """
    output = make_folder(output)
    paths = PackedPaths(output / "shapes", output, Path(), (), device)
    record = Record(output / "metrics.json", PACKED_STAGES)
    print_plan(PACKED_STAGES)
    with record.stage("data", resumed=True):
        make_data(paths.shapes, NUM_TRAIN, NUM_VAL, num_test, seed=SEED)
        test = _dataset(paths, "test")
        for task in TASKS:
            if not (paths.data(task) / TASKS[task].prepared).is_file():
                TASKS[task].prepare(paths.shapes, paths.data(task))
    with record.stage("extraction", resumed=paths.features("visual_genome").exists()):
        _extract(paths)
    with record.stage("evaluation"):
        detector = open_detector("shapes", device=device)
        evaluator = VisualGenomeEvaluator(test, convention=detector.detector.convention)
        record.metrics |= evaluate_detector(detector.detector, evaluator, num_workers=0)
    with record.stage("tasks"):
        for task, name in MODELS:
            scores = TASKS[task].score(paths, paths.model(task, name), features_of(paths, task, name))
            record.metrics.update({f"{task}/{name}/{metric}": score for metric, score in scores.items()})
            print(f"{task}, {name}: {TASKS[task].metric} {100 * scores[TASKS[task].metric]:.1f}", flush=True)
    with record.stage("page"):
        write_report(output / "index.html", packed_report(record, images=draw_gallery(paths, detector.detector, test)))
    return record.content()


def pack_weights(output: str | Path) -> list[Path]:
    """Makes the files of the models that come with the package, see ``pack_models``. Then runs the short demo and
    writes its scores to ``SCORES``.

    Returns:
        The files that were written.

    Raises:
        InputError: ``output`` holds no complete demo.
    """
    folder = make_folder(PACKAGED_FOLDER)
    with exclusive(folder):
        files = pack_models(output, folder)
    with tempfile.TemporaryDirectory() as demo:
        scores = run_packed_demo(demo, num_test=SCORED_IMAGES)
    with whole_file(SCORES) as file:
        kept = {name: score for name, score in scores.items() if not name.startswith(SECONDS)}
        file.write((json.dumps(kept, indent=2) + "\n").encode())
    return [*files, SCORES]


def pack_models(output: str | Path, folder: Path) -> list[Path]:
    """Writes the models of a demo into a folder: weights in float16, and what inference needs besides them.

    Args:
        output: Output of ``bua.demo.run_demo``.
        folder: Folder that exists.

    Returns:
        The files that were written.

    Raises:
        InputError: ``output`` holds no complete demo. Then nothing is written.
    """
    output = Path(output)
    config_file = output / "detector" / "config.yaml"
    cfg = load_cfg(config_file)
    dataset = get_dataset(cfg.DATASETS.TRAIN[0])
    description = describe_detector(cfg, dataset.objects.names, dataset.attribute_names.names)
    trained = DemoPaths(Path(), output, Path(), (), "cpu")
    # All are read before any is written, since the task models of one training do not fit the detector of another.
    detector = _packed(
        output / "detector" / FINAL, lambda path: open_detector(path, config_file=config_file, device="cpu")
    )
    models = {packed: _packed(trained.model(*model), LOADERS[model[0]]) for model, packed in MODELS.items()}
    packed_detector = folder / PACKAGED["shapes"]
    save_checkpoint(packed_detector, **{**detector, KEY: description.state()})
    features = {"min_boxes": REGIONS, "max_boxes": REGIONS, "weights": fingerprint(str(packed_detector))}
    for packed, saved in models.items():
        save_checkpoint(folder / PACKAGED[packed], **{**saved, "features": features})
    return [folder / file for file in PACKAGED.values()]


def _packed(path: Path, load: Callable[[Path], object]) -> dict[str, Any]:
    """Returns what a packed checkpoint holds.

    Args:
        path: The checkpoint of the training.
        load: Loads such a model, and so finds out whether the checkpoint is complete.
    """
    if not path.is_file():
        raise InputError(f"{path}: does not exist; run `bua demo --train` to its end first")
    load(path)
    saved = read_checkpoint(path)
    if "model" not in saved:
        raise InputError(f"{path}: has only weights; give the output of `bua demo --train`")
    kept = {key: value for key, value in saved.items() if key not in TRAINING_STATE}
    kept["model"] = {
        name: _in_half(value) if value.is_floating_point() else value for name, value in saved["model"].items()
    }
    return kept


def _in_half(value: Tensor) -> Tensor:
    """Returns a tensor in float16, or as it is if that cannot hold its values, such as the variance of a layer's
    inputs."""
    half = value.to(torch.float16)
    return half if half.isfinite().all() else value


def _dataset(paths: DemoPaths, split: str) -> DetectionDataset:
    file = paths.shapes / "annotations" / f"shapes_{split}.json"
    return DetectionDataset(file, paths.shapes, f"shapes_{split}")


def _extract(paths: DemoPaths) -> None:
    extract(
        paths.shapes / "image_data.json",
        paths.features("visual_genome"),
        image_root=paths.shapes,
        config_file=None,
        weights="shapes",
        format="flat-fp16",
        min_boxes=REGIONS,
        max_boxes=REGIONS,
        device=paths.device,
    )
    copy_by_other_ids(paths, [_dataset(paths, split) for split in SPLITS])
