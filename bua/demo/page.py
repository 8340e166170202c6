"""Writes the text of the demo's page."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from bua.demo.stages import PACKED_STAGES, STAGES, Record
from bua.demo.tasks import BLIND, PERFECT, DemoPaths
from bua.detection.evaluation.average_precision import PrecisionRecall
from bua.visualization.gallery import GalleryImage
from bua.visualization.report import Report, format_seconds
from bua.visualization.scores import Score

# Purpose and shell command of examples with the models that come with the package.
PACKED_COMMANDS = (
    ("Draw the objects that the detector finds", "bua visualize my_image.jpg"),
    ("Answer a question", 'bua answer my_image.jpg --question "What color is the star?"'),
    ("Caption an image", "bua caption my_image.jpg"),
    ("Ground the phrases of a sentence", 'bua ground my_image.jpg --sentence "a star above a red circle"'),
    (
        "Extract region features of a folder of images",
        "bua extract --detector shapes --images my_images --output features.tsv",
    ),
    ("Train all of these models from pixels", "bua demo --train"),
    (
        "Train a detector for photographs on Visual Genome (`bua download visual-genome` fetches it)",
        "bua train-net --config-file vg_r101.yaml",
    ),
)


def demo_report(
    record: Record,
    *,
    images: Sequence[GalleryImage],
    training_log: Sequence[Mapping[str, float]],
    curves: Mapping[str, Mapping[str, PrecisionRecall]],
    training_images: int,
    weights: str,
    paths: DemoPaths,
) -> Report:
    """Returns the content of the page.

    Args:
        record: Metrics and durations.
        images: Images with the models' results.
        training_log: Lines of the detector's training log.
        curves: Precision-recall curves by class name, for ``objects`` and ``attributes``.
        training_images: Number of training images.
        weights: The detector's checkpoint.
        paths: Files of the task models.
    """
    return Report(
        title="Detection, question answering, captioning and grounding, trained on this machine",
        introduction=(
            "A detector of objects and their attributes was trained from random weights in "
            f"{format_seconds(record.seconds['training'])}, on drawn images of objects in several colours, sizes and "
            "textures. On the features of its regions, three models were trained: for question answering, for "
            "captioning, and for phrase grounding. This page shows their scores and their results on test images, and "
            "how to use them."
        ),
        scores=scores(record.metrics),
        metrics=record.metrics,
        facts={
            "Training images": f"{training_images:,}",
            "Total time": format_seconds(sum(record.seconds.values())),
        },
        gallery=images,
        training_log=training_log,
        curves=curves,
        timings={stage.title: record.seconds[name] for name, stage in STAGES.items() if name in record.seconds},
        commands=_commands(weights, paths),
    )


def packed_report(record: Record, *, images: Sequence[GalleryImage]) -> Report:
    """Returns the content of the page of the short demo.

    Args:
        record: Metrics and durations.
        images: Images with the models' results.
    """
    return Report(
        title="Detection, question answering, captioning and grounding on newly drawn images",
        introduction=(
            "The detector and the models for question answering, captioning and phrase grounding come with the "
            "package. They were trained on drawn images of objects in several colours, sizes and textures. For this "
            "page, other images were drawn. It shows the scores and the results of the models on these images, and how "
            "to use the models."
        ),
        scores=scores(record.metrics),
        metrics=record.metrics,
        facts={"Total time": format_seconds(sum(record.seconds.values()))},
        gallery=images,
        timings={stage.title: record.seconds[name] for name, stage in PACKED_STAGES.items() if name in record.seconds},
        commands=PACKED_COMMANDS,
    )


def scores(metrics: Mapping[str, float]) -> list[Score]:
    """Returns the score of each task, with those of the blind baseline and of the model with ground-truth regions.

    Args:
        metrics: Content of metrics.json. The short demo has no models with ground-truth regions.
    """
    names = ("updown", BLIND, PERFECT)
    accuracy, blind_accuracy, accuracy_bound = (metrics.get(f"vqa/{name}/accuracy") for name in names)
    cider, blind_cider, cider_bound = (metrics.get(f"captioning/{name}/CIDEr-D") for name in names)
    assert accuracy is not None
    assert cider is not None
    recall, chance, recall_bound = (metrics[f"grounding/ban/{name}"] for name in ("R@1", "chance", "bound"))
    # CIDEr-D is not a percentage, and can exceed 1. Its bar ends at the next whole number.
    cider_end = float(max(1, *(math.ceil(value) for value in (cider, blind_cider, cider_bound) if value is not None)))
    return [
        Score("Objects", "mAP@0.5", metrics["objects/mAP50"]),
        Score("Attributes", "mAP@0.5", metrics["attributes/mAP50"]),
        Score("Questions, Up-Down", "accuracy", accuracy, blind_accuracy, accuracy_bound),
        Score("Captions, Up-Down", "CIDEr-D", cider, blind_cider, cider_bound, unit="×\u00a0100", scale_end=cider_end),
        Score("Phrases, BAN", "Recall@1", recall, chance, recall_bound),
    ]


def _commands(weights: str, paths: DemoPaths) -> list[tuple[str, str]]:
    detector = f"--detector {shlex.quote(weights)}"

    def ask(command: str, what: str, option: str, model: Path) -> str:
        return f"bua {command} my_image.jpg{what} \\\n    {detector} \\\n    --{option} {shlex.quote(str(model))}"

    return [
        (
            "Draw the objects that the detector finds (it knows only the classes of Shapes)",
            f"bua visualize my_images/*.jpg {detector} --output output/drawn",
        ),
        (
            "Answer a question",
            ask("answer", ' --question "What color is the star?"', "vqa", paths.model("vqa", "updown")),
        ),
        ("Caption an image", ask("caption", "", "captioner", paths.model("captioning", "updown"))),
        (
            "Ground the phrases of a sentence",
            ask("ground", ' --sentence "a star above a red circle"', "grounding", paths.model("grounding", "ban")),
        ),
        (
            "Extract region features of a folder of images, in the original TSV format or in another --format",
            f"bua extract --images my_images --output features.tsv {detector}",
        ),
        (
            "Train a detector for photographs on Visual Genome (`bua download visual-genome` fetches it)",
            "bua train-net --config-file vg_r101.yaml",
        ),
    ]
