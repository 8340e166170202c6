"""The whole way at once: data set, training, evaluation, features, and a page that shows them."""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bua.config import load_cfg
from bua.data.annotations import DetectionDataset
from bua.data.catalog import datasets_root, get_dataset
from bua.data.images import read_image
from bua.data.shapes import MARKER, make_shapes
from bua.data.visual_genome import prepare
from bua.engine.log import METRICS_FILE
from bua.engine.trainer import FINAL, last_checkpoint
from bua.errors import InputError, make_folder
from bua.evaluation.inference import evaluate_detector
from bua.extraction import extract
from bua.files import whole_file
from bua.modeling import Detector
from bua.modeling.training import build_evaluators, train_detector
from bua.visualization.labels import draw_labelled, labelled_annotations, labelled_detections
from bua.visualization.report import Picture, Report, format_seconds, write_report
from bua.visualization.visualize import evenly, load_detector

STAGES = {
    "data": "Making and preparing the pictures",
    "training": "Training the detector",
    "evaluation": "Evaluating it on the test split",
    "extraction": "Extracting the test pictures' features",
    "page": "Drawing the page",
}
SPLITS = ("train", "val", "test")
GALLERY_SIZE = 12
GALLERY_THRESHOLD = 0.5


def run_demo(
    output: str | Path,
    config_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    num_train: int = 4000,
    num_val: int = 300,
    num_test: int = 500,
) -> dict[str, float]:
    """Makes Shapes, trains a detector on it, evaluates it, extracts features, and writes a page about all that.

    Shapes lies in ``datasets_root()``; one that is prepared there already is used as it is. In ``output`` there are
    then ``index.html``, ``metrics.json``, ``features.tsv``, and in ``detector`` what training and evaluation write. A
    run that was stopped goes on where it was when it is called again.

    Args:
        config_file, overrides: as for ``bua.config.load_cfg``; OUTPUT_DIR, DATASETS.TRAIN and DATASETS.TEST are set
            here.
        num_train, num_val, num_test: pictures, where Shapes has yet to be made.

    Returns:
        what metrics.json holds: the evaluation's metrics on the test split, fractions, and ``seconds/<stage>`` for
        each of ``STAGES``, over all runs that it took.

    Raises:
        InputError: ``output`` was begun with another configuration; as the stages do.
    """
    output = Path(output)
    detector_dir, features = output / "detector", output / "features.tsv"
    cfg = load_cfg(config_file, overrides)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
    cfg.OUTPUT_DIR = str(detector_dir)
    _check_configuration(detector_dir / "config.yaml", cfg.dump())
    metrics_file = output / "metrics.json"
    make_folder(output)
    seconds = _read_seconds(metrics_file)

    with _stage("data", seconds, metrics_file, goes_on=True):
        _make_data(datasets_root() / "shapes", num_train, num_val, num_test)
        test = get_dataset("shapes_test")
    with _stage("training", seconds, metrics_file, goes_on=last_checkpoint(detector_dir) is not None):
        train_detector(cfg, True)
    cfg.MODEL.WEIGHTS = str(detector_dir / FINAL)
    with _stage("evaluation", seconds, metrics_file):
        detector = load_detector(cfg, test)
        cfg.DATASETS.TEST = ("shapes_test",)
        (evaluator,) = build_evaluators(cfg)
        metrics = evaluate_detector(detector, evaluator, num_workers=cfg.DATALOADER.NUM_WORKERS)
    with _stage("extraction", seconds, metrics_file, goes_on=features.exists()):
        summary = extract(
            datasets_root() / "shapes" / "annotations" / "shapes_test.json",
            features,
            image_root=datasets_root() / "shapes",
            config_file=config_file,
            weights=cfg.MODEL.WEIGHTS,
            overrides=list(overrides),
        )
        print(f"{summary.done} pictures in {features}, {summary.skipped} were there")
    with _stage("page", seconds, metrics_file):
        report = Report(
            title="A detector of objects and their attributes, trained on this machine",
            introduction=_introduction(seconds["training"]),
            metrics=metrics,
            facts={
                "Training pictures": f"{len(get_dataset('shapes_train')):,}",
                "Time in all": format_seconds(sum(seconds.values())),
            },
            gallery=_gallery(detector, test),
            training_log=[json.loads(line) for line in (detector_dir / METRICS_FILE).read_text().splitlines()],
            curves={kind: evaluator.precision_recall(kind) for kind in ("objects", "attributes")},
            timings={STAGES[name]: seconds[name] for name in STAGES if name in seconds},
            commands=_commands(config_file, overrides, cfg.MODEL.WEIGHTS),
        )
        write_report(output / "index.html", report)
    return _write_metrics(metrics_file, metrics, seconds)


@contextmanager
def _stage(name: str, seconds: dict[str, float], metrics_file: Path, goes_on: bool = False) -> Iterator[None]:
    """Announces a stage and keeps the seconds that it took, also where it is stopped; with those of earlier runs
    where it goes on from them."""
    print(f"\n[{list(STAGES).index(name) + 1}/{len(STAGES)}] {STAGES[name]}", flush=True)
    before = seconds.pop(name, 0.0)
    start = time.perf_counter()
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", flush=True)
        raise
    finally:
        seconds[name] = time.perf_counter() - start + (before if goes_on else 0.0)
        _write_metrics(metrics_file, {}, seconds)


def _make_data(folder: Path, num_train: int, num_val: int, num_test: int) -> None:
    annotation_files = [folder / "annotations" / f"shapes_{split}.json" for split in SPLITS]
    if not all(path.is_file() for path in annotation_files):
        if not (folder / MARKER).is_file():
            make_shapes(folder, num_train, num_val, num_test)
        prepare(folder, "shapes")
    sizes = ", ".join(f"{len(get_dataset(f'shapes_{split}'))} {split}" for split in SPLITS)
    print(f"pictures in {folder}: {sizes}")


def _check_configuration(path: Path, text: str) -> None:
    """Refuses to go on with a detector that was begun with another configuration."""
    if not path.is_file():
        return
    for before, now in zip(path.read_text(encoding="utf-8").splitlines(), text.splitlines()):
        if before != now:
            raise InputError(
                f"{path}: the detector was begun with {before.strip()!r}, now it is {now.strip()!r}; "
                f"give another --output, or remove {path.parent.parent}"
            )


def _read_seconds(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(content[f"seconds/{name}"]) for name in STAGES if f"seconds/{name}" in content}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not the metrics of a demo ({error}); remove it") from error


def _write_metrics(path: Path, metrics: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    content = {**metrics, **{f"seconds/{name}": round(seconds[name], 3) for name in STAGES if name in seconds}}
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return content


def _gallery(detector: Detector, dataset: DetectionDataset) -> list[Picture]:
    # Evenly over the split, so that the page shows the middling with the good.
    pictures = []
    for index in evenly(dataset, GALLERY_SIZE):
        image = read_image(dataset.file_name(index))
        found = labelled_detections(
            detector.predict([image])[0],
            dataset.objects,
            dataset.attribute_names,
            GALLERY_THRESHOLD,
            convention=detector.convention,
        )
        annotated = labelled_annotations(dataset, index)
        pictures.append(
            Picture(
                title=f"Picture {dataset.image_ids[index]}",
                predicted=draw_labelled(image, found),
                predicted_labels=found.labels,
                annotated=draw_labelled(image, annotated),
                annotated_labels=annotated.labels,
            )
        )
    return pictures


def _introduction(training_seconds: float) -> str:
    return (
        f"It started from random weights and learnt in {format_seconds(training_seconds)} from drawn pictures of "
        "coloured, sized and textured things. Below is what it finds in pictures that it was never shown, how often "
        "it is right, and how to use it."
    )


def _commands(config_file: str | Path, overrides: Sequence[str], weights: str) -> list[tuple[str, str]]:
    detector = f"--config-file {shlex.quote(str(config_file))} --weights {shlex.quote(weights)}"
    more = f" -- {shlex.join(overrides)}" if overrides else ""
    return [
        (
            "Draw what it finds (it knows the things of Shapes and no others)",
            f"python tools/visualize.py --dataset shapes_test --images my_pictures/*.jpg \\\n"
            f"    {detector} --output output/drawn{more}",
        ),
        (
            "Region features of a folder of pictures, as the original's TSV or as npz",
            f"python tools/extract.py --images my_pictures --output features.tsv \\\n    {detector}{more}",
        ),
        (
            "A detector for photographs: train on Visual Genome (datasets/README.md says how to get it)",
            "python tools/train_net.py --config-file configs/vg_r101.yaml",
        ),
    ]
