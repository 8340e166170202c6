"""Writes the text of the demo's page."""

import math
import shlex
from collections.abc import Mapping, Sequence

from bua.demo.stages import STAGES, Record
from bua.demo.tasks import BLIND, PERFECT, REGIONS, DemoPaths
from bua.detection.evaluation.average_precision import PrecisionRecall
from bua.visualization.gallery import GalleryImage
from bua.visualization.report import Report, format_seconds
from bua.visualization.scores import Score


def demo_report(
    record: Record,
    *,
    images: Sequence[GalleryImage],
    training_log: Sequence[Mapping[str, float]],
    curves: Mapping[str, Mapping[str, PrecisionRecall]],
    training_images: int,
    detector: Sequence[str],
    paths: DemoPaths,
) -> Report:
    """Returns the content of the page.

    Args:
        record: Metrics and durations.
        images: Images with the models' results.
        training_log: Lines of the detector's training log.
        curves: Precision-recall curves by class name, for ``objects`` and ``attributes``.
        training_images: Number of training images.
        detector: The detector's configuration file, its checkpoint, and the overrides of its configuration.
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
        commands=_commands(*detector, paths=paths),
    )


def scores(metrics: Mapping[str, float]) -> list[Score]:
    """Returns the score of each task, with those of the blind baseline and of the model with ground-truth regions.

    Args:
        metrics: Content of metrics.json.
    """
    accuracy, blind_accuracy, accuracy_bound = (metrics[f"vqa/{name}/accuracy"] for name in ("updown", BLIND, PERFECT))
    cider, blind_cider, cider_bound = (metrics[f"captioning/{name}/CIDEr-D"] for name in ("updown", BLIND, PERFECT))
    recall, chance, recall_bound = (metrics[f"grounding/ban/{name}"] for name in ("R@1", "chance", "bound"))
    # CIDEr-D is not a percentage, and can exceed 1. Its bar ends at the next whole number.
    cider_end = float(max(1, math.ceil(max(cider, blind_cider, cider_bound))))
    return [
        Score("Objects", "mAP@0.5", metrics["objects/mAP50"]),
        Score("Attributes", "mAP@0.5", metrics["attributes/mAP50"]),
        Score("Questions, Up-Down", "accuracy", accuracy, blind_accuracy, accuracy_bound),
        Score("Captions, Up-Down", "CIDEr-D", cider, blind_cider, cider_bound, unit="×\u00a0100", scale_end=cider_end),
        Score("Phrases, BAN", "Recall@1", recall, chance, recall_bound),
    ]


def _commands(config_file: str, weights: str, *overrides: str, paths: DemoPaths) -> list[tuple[str, str]]:
    described = f"--config-file {shlex.quote(config_file)}"
    more = f" -- {shlex.join(overrides)}" if overrides else ""
    boxes = f"--min-boxes {REGIONS} --max-boxes {REGIONS}"

    def ask(tool: str, what: str, option: str, model: str) -> str:
        return (
            f"python tools/{tool}.py --image my_image.jpg{what} {boxes} \\\n    {described} "
            f"--detector {shlex.quote(weights)} \\\n    --{option} {shlex.quote(model)}{more}"
        )

    return [
        (
            "Draw the objects that the detector finds (it knows only the classes of Shapes)",
            f"python tools/visualize.py --dataset shapes_test --images my_images/*.jpg \\\n"
            f"    {described} --weights {shlex.quote(weights)} --output output/drawn{more}",
        ),
        (
            "Answer a question",
            ask("answer", ' --question "What color is the star?"', "vqa", str(paths.model("vqa", "updown"))),
        ),
        ("Caption an image", ask("caption", "", "captioner", str(paths.model("captioning", "updown")))),
        (
            "Ground the phrases of a sentence",
            ask("ground", ' --sentence "a star above a red circle"', "grounding", str(paths.model("grounding", "ban"))),
        ),
        (
            "Extract region features of a folder of images, in the original TSV format or in another --format",
            f"python tools/extract.py --images my_images --output features.tsv \\\n"
            f"    {described} --weights {shlex.quote(weights)}{more}",
        ),
        (
            "Train a detector for photographs on Visual Genome (datasets/README.md says how to get it)",
            "python tools/train_net.py --config-file configs/vg_r101.yaml",
        ),
    ]
