#!/usr/bin/env python3
"""Trains and scores the models of the tables of Shapes, and writes docs/shapes_scores.json.

    bua demo --train --output output/demo-train
    benchmarks/shapes_scores.py --demo output/demo-train
    benchmarks/shapes_tables.py --write

The models of `bua demo --train` are used as they are, unless the configuration has changed since; the others, which it
does not train, are trained in its folder `scores`, on its prepared data and features, as many at the same time as there
are cores. All are scored on the test split. After Ctrl-C, the same command continues: a model that has been trained is
not trained again. `KEY VALUE` pairs change the configurations of all models of the tasks: `SOLVER.EPOCHS 1` checks
quickly that everything runs (the demo's own models are then trained again, too).

`make shapes-scores` runs all three commands. A test compares the tables in the documents with the file.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from bua.captioning.dataset import CaptionDataset
from bua.captioning.inference import load_captioner
from bua.captioning.inference import predict as predict_captions
from bua.captioning.scores import caption_scores
from bua.commands.arguments import add_overrides
from bua.config import leaves
from bua.config_files import FOLDER
from bua.demo.tasks import ANNOTATIONS, BLIND, PERFECT, TASKS, DemoPaths, configuration
from bua.demo.workers import run_parallel
from bua.detection.annotations import DetectionDataset
from bua.detection.catalog import datasets_root
from bua.engine.checkpoints import BEST, FINAL
from bua.errors import InputError, command, make_folder
from bua.grounding.dataset import GroundingDataset
from bua.grounding.inference import load_grounding
from bua.grounding.inference import predict as predict_grounding
from bua.tasks.region_batches import RegionReader
from bua.tasks.tool import write_scores
from bua.vqa import dataset as vqa
from bua.vqa.accuracy import vqa_accuracy
from bua.vqa.dataset import VqaDataset
from bua.vqa.inference import load_vqa
from bua.vqa.inference import predict as predict_answers
from bua.vqa.official import load_questions

ROOT = Path(__file__).resolve().parents[1]
SCORES = ROOT / "docs" / "shapes_scores.json"
SPLITS = ("train", "val", "test")
# Kinds of questions by the words that they begin with. "Is the ...?" asks for an attribute or for a relation.
KINDS = {
    "How many": "how many",
    "What color": "colour",
    "What is the": "shape",
    "What pattern": "pattern",
    "Is there": "presence",
    "Is the": "attribute",
}
RELATIONS = (" left of ", " right of ", " above ", " below ")
CAPTION_METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
# Keys that say where things are, or that training computes.
PLACES = ("OUTPUT_DIR", "DATA.FOLDER", "DATA.FEATURES", "MODEL.WEIGHTS", "SOLVER.MAX_ITER")


@dataclass(frozen=True)
class Model:
    """A row or a column of the tables.

    Attributes:
        task: "vqa", "captioning" or "grounding".
        name: Name of the model in the file.
        title: What the tables call it.
        cfg: Configuration to train it with; OUTPUT_DIR is the folder of the trained model.
        start: Checkpoint of another of these models that its training starts from.
    """

    task: str
    name: str
    title: str
    cfg: CfgNode
    start: Path | None = None

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def trained(self) -> bool:
        return (self.folder / FINAL).is_file()


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    paths = DemoPaths(args.shapes or datasets_root() / "shapes", args.demo, FOLDER, tuple(args.overrides), "cpu")
    demo = paths.output / "metrics.json"
    if not demo.is_file():
        raise InputError(f"{demo}: missing; first run `bua demo --train --output {paths.output}`")
    for name, task in TASKS.items():
        # The demo prepares all of them before its first training, which may have been stopped before that.
        if not (paths.data(name) / task.prepared).is_file():
            task.prepare(paths.shapes, paths.data(name))
    scores: dict[str, Any] = {"made": made(paths), "detector": detector_scores(paths, json.loads(demo.read_text()))}
    models = all_models(paths)
    found = dict(train_and_score(models, paths, args.workers))
    for model in models:
        scores.setdefault(model.task, {})[model.name] = found[model.task, model.name]
    write_scores(args.output, scores)
    print(f"{args.output}: scores of {len(models)} models and the detector")


def all_models(paths: DemoPaths) -> list[Model]:
    """Returns all models in the order of the tables' rows and columns."""
    answering = {name: configuration(paths, "vqa", name) for name in TASKS["vqa"].names}
    answering["ban"] = other_configuration(paths, "vqa", "ban", "shapes_ban.yaml")
    titles = {"updown": "Up-Down", "ban": "BAN"}
    models = []
    for name, title in titles.items():
        other = answering[name].clone()
        other.DATA.BOXES = not other.DATA.BOXES
        both = [(answering[name], name), (other, f"{name}_{'boxes' if other.DATA.BOXES else 'no_boxes'}")]
        for cfg, key in sorted(both, key=lambda pair: pair[0].DATA.BOXES):
            words = f"{title}, with boxes" if cfg.DATA.BOXES else title
            models.append(placed(paths, Model("vqa", key, words, cfg)))
    models += [
        placed(paths, Model("vqa", name, f"Up-Down, {words}", answering[name]))
        for name, words in ((BLIND, "blind"), (PERFECT, "ground-truth regions"))
    ]
    for file in sorted((paths.configs / "vqa" / "ablation").glob("shapes_*.yaml")):
        name = f"ablation_{file.stem.removeprefix('shapes_')}"
        cfg = other_configuration(paths, "vqa", name, f"ablation/{file.name}")
        models.append(placed(paths, Model("vqa", name, f"`vqa/ablation/{file.name}`", cfg)))

    captioner, perfect, blind = (
        placed(paths, Model("captioning", name, words, configuration(paths, "captioning", name)))
        for name, words in (
            ("updown", "cross-entropy"),
            (PERFECT, "cross-entropy, ground-truth regions"),
            (BLIND, "blind, cross-entropy"),
        )
    )
    start = captioner.folder / BEST
    scst = other_configuration(paths, "captioning", "scst", "shapes_scst.yaml")
    scst.MODEL.WEIGHTS = str(start)
    gru = other_configuration(paths, "captioning", "gru", "shapes_gru.yaml")
    models += [
        captioner,
        perfect,
        placed(paths, Model("captioning", "scst", "cross-entropy, then CIDEr optimisation", scst, start)),
        placed(paths, Model("captioning", "gru", f"GRUs, {gru.DATA.MAX_BOXES} regions, cross-entropy", gru)),
        blind,
    ]
    models.append(placed(paths, Model("grounding", "ban", "BAN", configuration(paths, "grounding", "ban"))))
    return models


def other_configuration(paths: DemoPaths, task: str, name: str, file: str) -> CfgNode:
    """Returns the configuration of a model that the demo does not train."""
    cfg = TASKS[task].load_cfg(paths.configs / task / file, list(paths.overrides))
    cfg.MODEL.DEVICE, cfg.SEED = paths.device, max(cfg.SEED, 0)
    augmented = any(split.startswith("vg_") for split in cfg.DATA.TRAIN)
    cfg.DATA.FOLDER = str(augmented_questions(paths) if augmented else paths.data(task))
    cfg.DATA.FEATURES = (str(paths.features(TASKS[task].features)),)
    return cfg


def augmented_questions(paths: DemoPaths) -> Path:
    """Returns a folder of prepared questions with those of Visual Genome, which the demo does not prepare."""
    folder = paths.output / "scores" / "vqa" / "data"
    if not (folder / vqa.ABOUT).is_file():
        vqa.prepare_vqa(paths.shapes / "vqa", folder, min_count=1, visual_genome=paths.shapes)
    return folder


def placed(paths: DemoPaths, model: Model) -> Model:
    """Returns the model with its folder: the demo's, if the demo has trained it with this configuration, and otherwise
    one in the folder "scores".

    Raises:
        InputError: A training in the folder "scores" was started with another configuration.
    """
    folder = paths.output / model.task / model.name
    if model.name in TASKS[model.task].names and (folder / FINAL).is_file():
        changed = changes(model, folder / "config.yaml")
        if not changed:
            model.cfg.OUTPUT_DIR = str(folder)
            return model
        print(f"{folder}: is trained again, since the configuration has changed: {', '.join(changed)}", flush=True)
    folder = paths.output / "scores" / model.task / model.name
    if (folder / "config.yaml").is_file() and (changed := changes(model, folder / "config.yaml")):
        raise InputError(f"{folder}: trained with another configuration ({', '.join(changed)}); remove the folder")
    model.cfg.OUTPUT_DIR = str(folder)
    return model


def changes(model: Model, config_file: Path) -> list[str]:
    """Returns what differs in a configuration that training saved: "DATA.BOXES was False"."""
    # A key that is newer than the file has its default there.
    before, now = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in leaves(cfg)}
        for cfg in (TASKS[model.task].load_cfg(config_file, []), model.cfg)
    )
    return [f"{key} was {before[key]}" for key in now if before[key] != now[key] and key not in PLACES]


def train_and_score(
    models: list[Model], paths: DemoPaths, workers: int
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yields the scores of each model by its task and name, in the order in which they are completed."""
    # Training takes longer than scoring, and question answering longest: these start first.
    waiting = sorted(models, key=lambda model: (model.trained, model.task != "vqa"))
    while waiting:
        ready = [model for model in waiting if model.start is None or model.start.is_file()]
        waiting = [model for model in waiting if model not in ready]
        if not ready:
            raise InputError(f"{waiting[0].start}: missing, though its training has ended; remove its folder")
        jobs = [(model, paths) for model in ready]
        if workers == 1:
            results: Any = ((job, train_and_score_one(*job)) for job in jobs)
        else:
            results = run_parallel(train_and_score_one, jobs, workers=min(workers, len(jobs)), threads=1)
        with closing(results):
            for (model, _), found in results:
                print(f"{model.task}, {model.title}: {summary(found)}", flush=True)
                yield (model.task, model.name), found


def train_and_score_one(model: Model, paths: DemoPaths) -> dict[str, Any]:
    """Trains a model, if need be, and returns its title, its scores in percent and the seconds of its training."""
    if not model.trained:
        with open(make_folder(model.folder) / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
            TASKS[model.task].train(model.cfg, True)
    score = {"vqa": answer_scores, "captioning": scores_of_captions, "grounding": phrase_scores}[model.task]
    scores = score(paths, model.folder / BEST, model.cfg.DATA.FEATURES)
    return {
        "title": model.title,
        **{name: round(value, 4) for name, value in scores.items()},
        "epochs": model.cfg.SOLVER.EPOCHS,
        "seconds": round(training_seconds(model.folder), 1),
    }


def answer_scores(paths: DemoPaths, checkpoint: Path, features: tuple[str, ...]) -> dict[str, float]:
    """Returns the official accuracy in percent over all questions, by type of answer, and by kind of question."""
    dataset, model = VqaDataset.load(paths.data("vqa"), "test"), load_vqa(checkpoint, paths.device)
    labels = predict_answers([model], dataset, RegionReader.open(features), progress=False)
    answers = [
        {"question_id": number, "answer": model.answers.answers[label]}
        for number, label in zip(dataset.question_ids.tolist(), labels.tolist())
    ]
    accuracy = vqa_accuracy(answers, paths.shapes / ANNOTATIONS)
    by_kind: dict[str, list[float]] = {}
    kinds = kinds_of_questions(paths, "test")
    for number, value in accuracy["per_question"].items():
        by_kind.setdefault(kinds[number], []).append(value)
    means = {kind: float(np.mean(values)) for kind, values in by_kind.items()}
    return {"all": accuracy["overall"], **accuracy["per_answer_type"], **means}


def scores_of_captions(paths: DemoPaths, checkpoint: Path, features: tuple[str, ...]) -> dict[str, float]:
    """Returns coco-caption's scores in percent, without METEOR if there is no Java."""
    dataset, model = CaptionDataset.load(paths.data("captioning"), "test"), load_captioner(checkpoint, paths.device)
    found = predict_captions([model], dataset.image_ids, RegionReader.open(features), progress=False)
    results = [{"image_id": number, "caption": model.vocabulary.decode(words)} for number, words in found.items()]
    references = paths.data("captioning") / "captions_test.json"
    scores = caption_scores(results, references, metrics=CAPTION_METRICS)
    return {metric: scores[metric] for metric in CAPTION_METRICS if metric in scores}


def phrase_scores(paths: DemoPaths, checkpoint: Path, features: tuple[str, ...]) -> dict[str, float]:
    """Returns the recall in percent under the protocol "any box", its upper bound, and that of a random choice."""
    dataset, model = GroundingDataset.load(paths.data("grounding"), "test"), load_grounding(checkpoint, paths.device)
    scores = predict_grounding(model, dataset, RegionReader.open(features), progress=False).scores("any")
    return {"R@1": scores["all"]["R@1"], "bound": scores["all"]["bound"], "chance": scores["chance"]["R@1"]}


def detector_scores(paths: DemoPaths, metrics: dict[str, float]) -> dict[str, float]:
    """Returns the detector's scores in percent, which the demo has computed on the test split."""
    scores = {
        name: round(100 * value, 4) for name, value in metrics.items() if name.startswith(("objects/", "attributes/"))
    }
    return {**scores, "seconds": round(training_seconds(paths.output / "detector"), 1)}


def kinds_of_questions(paths: DemoPaths, split: str) -> dict[int, str]:
    """Returns the kind of each question of a split by its id."""
    wanted = set(VqaDataset.load(paths.data("vqa"), split).question_ids.tolist())
    kinds: dict[int, str] = {}
    for file in sorted((paths.shapes / "vqa").glob("v2_OpenEnded_*_questions.json")):
        questions = load_questions(file)
        kinds |= {number: kind_of(text) for number, text in zip(questions.question_ids.tolist(), questions.texts)}
    return {number: kinds[number] for number in wanted}


def kind_of(question: str) -> str:
    """Returns the kind of a question of Shapes, one of the values of ``KINDS`` or "relation"."""
    kind = next(kind for start, kind in KINDS.items() if question.startswith(start + " "))
    return "relation" if kind == "attribute" and any(words in question for words in RELATIONS) else kind


def training_seconds(folder: Path) -> float:
    """Returns the seconds that a training took, evaluations included, from the times in TensorBoard's files. A training
    that was stopped has several files."""
    seconds = 0.0
    for file in folder.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in LegacyEventFileLoader(str(file)).Load()]
        seconds += times[-1] - times[0] if times else 0.0
    return seconds


def made(paths: DemoPaths) -> dict[str, Any]:
    """Returns what the scores were made with and from."""
    annotations = {split: paths.shapes / "annotations" / f"shapes_{split}.json" for split in SPLITS}
    questions = {}
    for split in SPLITS:
        kinds = list(kinds_of_questions(paths, split).values())
        questions[split] = {kind: kinds.count(kind) for kind in (*KINDS.values(), "relation")}
    return {
        "commit": git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "images": {split: len(DetectionDataset(path, paths.shapes)) for split, path in annotations.items()},
        "questions": questions,
        "demo_seconds": {
            name.removeprefix("seconds/"): value
            for name, value in json.loads((paths.output / "metrics.json").read_text()).items()
            if name.startswith("seconds/")
        },
    }


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """Returns the name of the processor. If it multiplies in bfloat16, the demo trains the detector in bfloat16."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", "unknown")
    return f"{name} with avx512_bf16" if "avx512_bf16" in fields.get("flags", "").split() else name


def summary(scores: dict[str, Any]) -> str:
    name = next(key for key in ("all", "CIDEr-D", "R@1") if key in scores)
    return f"{name} {scores[name]:.1f}, {scores['seconds'] / 60:.1f} minutes of training"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path("output/demo-train")
    parser.add_argument("--demo", type=Path, default=folder, help="output of `bua demo --train` (%(default)s)")
    parser.add_argument("--shapes", type=Path, help="folder of Shapes; default: as for the demo, datasets/shapes")
    parser.add_argument("--output", type=Path, default=SCORES, help="file to write (%(default)s)")
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="trainings at the same time (%(default)s)")
    add_overrides(parser, " of the tasks' models")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
