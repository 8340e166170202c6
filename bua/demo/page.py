"""What the demo's page says."""

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
    """The page's content.

    Args:
        training_log: the detector's.
        curves: ``objects`` and ``attributes`` -> class name -> precision-recall curve.
        training_images: how many.
        detector: its configuration file, its checkpoint, and the overrides of its configuration.
    """
    return Report(
        title="Regions, answers, captions and phrases, all learnt on this machine",
        introduction=(
            f"A detector of objects and their attributes learnt in {format_seconds(record.seconds['training'])} from "
            "drawn images of coloured, sized and textured things, from random weights. On the features of its "
            "regions three models then learnt to answer questions, to caption, and to find what phrases mean. Below is "
            "what they make of images that they were never shown, how often they are right, and how to use them."
        ),
        scores=scores(record.metrics),
        metrics=record.metrics,
        facts={
            "Training images": f"{training_images:,}",
            "Time in all": format_seconds(sum(record.seconds.values())),
        },
        gallery=images,
        training_log=training_log,
        curves=curves,
        timings={stage.title: record.seconds[name] for name, stage in STAGES.items() if name in record.seconds},
        commands=_commands(*detector, paths=paths),
    )


def scores(metrics: Mapping[str, float]) -> list[Score]:
    """The page's table: each task's score, who does not look, and who looks without error.

    Args:
        metrics: as metrics.json has them.
    """
    rows = [
        Score("Objects", "mAP@0.5", metrics["objects/mAP50"]),
        Score("Attributes", "mAP@0.5", metrics["attributes/mAP50"]),
    ]
    for task, title, metric in (
        ("vqa", "Questions, Up-Down", "accuracy"),
        ("captioning", "Captions, Up-Down", "CIDEr-D"),
    ):
        rows.append(Score(title, metric, *(metrics[f"{task}/{name}/{metric}"] for name in ("updown", BLIND, PERFECT))))
    rows.append(
        Score("Phrases, BAN", "Recall@1", *(metrics[f"grounding/ban/{name}"] for name in ("R@1", "chance", "bound")))
    )
    return rows


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
            "Draw what the detector finds (it knows the things of Shapes and no others)",
            f"python tools/visualize.py --dataset shapes_test --images my_images/*.jpg \\\n"
            f"    {described} --weights {shlex.quote(weights)} --output output/drawn{more}",
        ),
        (
            "Ask a question",
            ask("answer", ' --question "What color is the star?"', "vqa", str(paths.model("vqa", "updown"))),
        ),
        ("Caption", ask("caption", "", "captioner", str(paths.model("captioning", "updown")))),
        (
            "Find what phrases mean",
            ask("ground", ' --sentence "a star above a red circle"', "grounding", str(paths.model("grounding", "ban"))),
        ),
        (
            "Region features of a folder of images, as the original's TSV or in another --format",
            f"python tools/extract.py --images my_images --output features.tsv \\\n"
            f"    {described} --weights {shlex.quote(weights)}{more}",
        ),
        (
            "A detector for photographs: train on Visual Genome (datasets/README.md says how to get it)",
            "python tools/train_net.py --config-file configs/vg_r101.yaml",
        ),
    ]
