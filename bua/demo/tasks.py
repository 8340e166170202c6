"""Trains and scores the task models of the demo on the features of Shapes.

For question answering and captioning there are three models: the model itself, a blind baseline, which is trained
without image features, and one that is trained on ground-truth regions, whose features say without error what each
object is.
"""

import io
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fvcore.common.config import CfgNode

from bua.captioning import config as captioning_config
from bua.captioning import dataset as captions
from bua.captioning.cider import CiderD
from bua.captioning.dataset import CaptionDataset, prepare_captions
from bua.captioning.inference import load_captioner
from bua.captioning.inference import predict as predict_captions
from bua.captioning.official import load_karpathy
from bua.captioning.training import train_caption
from bua.demo.stages import check_configuration
from bua.demo.workers import run_parallel
from bua.engine.checkpoints import BEST, FINAL
from bua.errors import make_folder
from bua.grounding import config as grounding_config
from bua.grounding import dataset as flickr30k
from bua.grounding.dataset import GroundingDataset, prepare_flickr30k
from bua.grounding.inference import load_grounding
from bua.grounding.inference import predict as predict_grounding
from bua.grounding.training import train_grounding
from bua.tasks.region_batches import RegionReader
from bua.vqa import config as vqa_config
from bua.vqa import dataset as vqa
from bua.vqa.accuracy import vqa_accuracy
from bua.vqa.dataset import VqaDataset, prepare_vqa
from bua.vqa.inference import load_vqa
from bua.vqa.inference import predict as predict_answers
from bua.vqa.training import train_vqa

ANNOTATIONS = Path("vqa", "v2_mscoco_test2015_annotations.json")
# The names, in metrics.json and in the output folder, of the blind baseline and of the model with ground-truth regions.
BLIND, PERFECT = "blind", "perfect"
# The blind baseline has less to learn: it is trained for this fraction of the model's epochs.
BLIND_EPOCHS = 0.3
# Seconds between two lines that one training writes to the console.
CONSOLE_SECONDS = 10
# Number of regions per image. An image of Shapes has few objects, so that each has several regions.
REGIONS = 24


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo's files are, and how its task models are configured.

    Attributes:
        shapes: Folder of the data set.
        output: Folder that the demo writes to.
        configs: Folder of the task configurations, in its subfolders ``vqa``, ``captioning`` and ``grounding``.
        overrides: Configuration keys and values that are set in all task configurations.
        device: Device of the task models, such as "cpu".
    """

    shapes: Path
    output: Path
    configs: Path
    overrides: Sequence[str]
    device: str

    def features(self, name: str) -> Path:
        """Returns the file of features of this name.

        "visual_genome", "coco" and "flickr30k" have the detector's features, by the image ids of the data set that they
        are named after. "perfect" has the features of ground-truth regions, by COCO's ids.
        """
        return self.output / "features" / name

    def data(self, task: str) -> Path:
        """Returns the folder of the task's prepared data."""
        return self.output / task / "data"

    def model(self, task: str, name: str) -> Path:
        """Returns the checkpoint of a model that scored best on the validation split."""
        return self.output / task / name / BEST


@dataclass(frozen=True)
class Task:
    """What differs between the tasks.

    Attributes:
        config_file: Name of the configuration file in the task's folder of configurations.
        names: Names of the models to train: first the model itself, then those that it is compared with.
        features: Name of the features that the first model reads; see ``DemoPaths.features``.
        metric: Name of the metric by which models are compared.
        prepared: Name of a file that exists once the data are prepared.
        load_cfg: Reads the configuration from a file and a list of overrides.
        prepare: Prepares the data. Arguments: the folder of the data set and the folder to write to.
        train: Trains a model. Arguments: its configuration, and whether to resume.
        score: Returns scores on the test split, as fractions by name. Arguments: the demo's paths, a checkpoint and a
            file of features.
        perfect_epochs: Epochs of the model with ground-truth regions, as a multiple of the model's.
    """

    config_file: str
    names: tuple[str, ...]
    features: str
    metric: str
    prepared: str
    load_cfg: Callable[[Path, list[str]], CfgNode]
    prepare: Callable[[Path, Path], object]
    train: Callable[[CfgNode, bool], dict[str, float]]
    score: Callable[[DemoPaths, Path, Path], dict[str, float]]
    perfect_epochs: float = 1.0


# The demo's paths, the task's name, the model's name and the configuration.
_Training = tuple[DemoPaths, str, str, CfgNode]


def configurations(paths: DemoPaths, task: str) -> dict[str, CfgNode]:
    """Returns the configuration of each model of a task, by the model's name.

    Raises:
        InputError: A configuration file is missing or wrong, or differs from the one that a training was started with.
    """
    found = {name: configuration(paths, task, name) for name in TASKS[task].names}
    for cfg in found.values():
        # MAX_ITER is computed from the epochs when training starts.
        check_configuration(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump(), except_for=("MAX_ITER",))
    return found


def configuration(paths: DemoPaths, task: str, name: str) -> CfgNode:
    """Returns the configuration of a model, whether or not a training was started with another one.

    Raises:
        InputError: The configuration file is missing or wrong.
    """
    cfg = TASKS[task].load_cfg(paths.configs / task / TASKS[task].config_file, list(paths.overrides))
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = paths.device, str(paths.model(task, name).parent)
    cfg.DATA.FOLDER, cfg.DATA.FEATURES = str(paths.data(task)), (str(features_of(paths, task, name)),)
    # As for the detector, training always uses a fixed random seed, so that the demo can be reproduced.
    cfg.SEED = max(cfg.SEED, 0)
    if name == BLIND:
        cfg.DATA.LOOK, cfg.SOLVER.EPOCHS = False, math.ceil(cfg.SOLVER.EPOCHS * BLIND_EPOCHS)
    if name == PERFECT:
        cfg.SOLVER.EPOCHS = math.ceil(cfg.SOLVER.EPOCHS * TASKS[task].perfect_epochs)
    return cfg


def train_and_score(paths: DemoPaths, metrics: dict[str, float], save: Callable[[], None]) -> None:
    """Trains the models of all tasks and adds their scores on the test split to ``metrics``.

    A training that an earlier run began is resumed, and models that ``metrics`` has scores of are skipped. On a CPU, as
    many models are trained at the same time as there are cores: one small model does not use several cores well.

    Args:
        metrics: Receives each score, a fraction, as ``<task>/<model>/<metric>``.
        save: Called whenever there are new metrics.
    """
    waiting: list[_Training] = []
    for task in TASKS:
        if not (paths.data(task) / TASKS[task].prepared).is_file():
            TASKS[task].prepare(paths.shapes, paths.data(task))
        for name, cfg in configurations(paths, task).items():
            key = f"{task}/{name}/{TASKS[task].metric}"
            if key in metrics and (Path(cfg.OUTPUT_DIR) / FINAL).is_file():
                print(f"{task}, {name}: {TASKS[task].metric} {100 * metrics[key]:.1f}, from an earlier run", flush=True)
            else:
                waiting.append((paths, task, name, cfg))
    # The trainings that take longest start first, so that none of them runs alone at the end.
    waiting.sort(key=lambda training: (training[2] == BLIND, training[2] == PERFECT))
    cores = os.cpu_count() or 1
    workers = min(len(waiting), cores if paths.device == "cpu" else 1)
    results: Generator[tuple[_Training, dict[str, float]], None, None]
    if workers > 1:
        results = run_parallel(_train_and_score, waiting, workers=workers, threads=max(1, cores // workers))
    else:
        results = ((training, _train_and_score(*training)) for training in waiting)
    with closing(results):
        for (_, task, name, _), scores in results:
            metrics.update({f"{task}/{name}/{metric}": score for metric, score in scores.items()})
            save()
            metric = TASKS[task].metric
            print(f"{task}, {name}: {metric} {100 * scores[metric]:.1f} on the test images", flush=True)


def _train_and_score(paths: DemoPaths, task: str, name: str, cfg: CfgNode) -> dict[str, float]:
    path = make_folder(cfg.OUTPUT_DIR) / "log.txt"
    with open(path, "a", encoding="utf-8") as log, redirect_stdout(_ThinnedLog(log, sys.stdout, f"{task}, {name}: ")):
        TASKS[task].train(cfg, True)
        return TASKS[task].score(paths, paths.model(task, name), features_of(paths, task, name))


class _ThinnedLog(io.TextIOBase):
    """Writes all text to a file, and at most one line every ``CONSOLE_SECONDS`` to the console.

    Several trainings may write to the same console, so that each line there begins with ``prefix``.
    """

    def __init__(self, file: TextIO, console: TextIO, prefix: str):
        self.file, self.console, self.prefix = file, console, prefix
        self.shown = time.monotonic()

    def write(self, text: str) -> int:
        self.file.write(text)
        if text.strip() and time.monotonic() - self.shown > CONSOLE_SECONDS:
            self.shown = time.monotonic()
            self.console.write(f"{self.prefix}{text.strip()}\n")
            self.console.flush()
        return len(text)

    def flush(self) -> None:
        self.file.flush()


def features_of(paths: DemoPaths, task: str, name: str) -> Path:
    """Returns the file of features that a model of a task reads."""
    # The blind baseline does not use features; it is given those that are read fastest.
    return paths.features("perfect" if name in (BLIND, PERFECT) else TASKS[task].features)


def _prepare_questions(shapes: Path, folder: Path) -> None:
    # Shapes has so few different answers that none is left out for being rare.
    prepare_vqa(shapes / "vqa", folder, min_count=1)


def _score_answers(paths: DemoPaths, checkpoint: Path, features: Path) -> dict[str, float]:
    dataset, model = VqaDataset.load(paths.data("vqa"), "test"), load_vqa(checkpoint, paths.device)
    labels = predict_answers([model], dataset, RegionReader.open([features]), progress=False)
    answers = [
        {"question_id": number, "answer": model.answers.answers[label]}
        for number, label in zip(dataset.question_ids.tolist(), labels.tolist())
    ]
    return {"accuracy": vqa_accuracy(answers, paths.shapes / ANNOTATIONS)["overall"] / 100}


def _prepare_captions(shapes: Path, folder: Path) -> None:
    prepare_captions(load_karpathy(shapes / "captions" / "dataset_coco.json"), folder, min_count=1)


def _score_captions(paths: DemoPaths, checkpoint: Path, features: Path) -> dict[str, float]:
    dataset, model = CaptionDataset.load(paths.data("captioning"), "test"), load_captioner(checkpoint, paths.device)
    found = predict_captions([model], dataset.image_ids, RegionReader.open([features]), progress=False)
    # Words are compared, not their ids: the model may have the vocabulary of another data set.
    references = {
        image_id: [[dataset.vocabulary.words[word] for word in caption] for caption in captions]
        for image_id, captions in dataset.references().items()
    }
    captions = [[model.vocabulary.words[word] for word in caption] for caption in found.values()]
    return {"CIDEr-D": float(CiderD(references).score(captions, list(found)).mean())}


def _prepare_phrases(shapes: Path, folder: Path) -> None:
    prepare_flickr30k(shapes / "flickr30k_entities", folder)


def _score_phrases(paths: DemoPaths, checkpoint: Path, features: Path) -> dict[str, float]:
    dataset, model = GroundingDataset.load(paths.data("grounding"), "test"), load_grounding(checkpoint, paths.device)
    found = predict_grounding(model, dataset, RegionReader.open([features]), progress=False).scores("any")
    percent = {"R@1": found["all"]["R@1"], "chance": found["chance"]["R@1"], "bound": found["all"]["bound"]}
    return {name: value / 100 for name, value in percent.items()}


TASKS = {
    "vqa": Task(
        "shapes_updown.yaml",
        ("updown", BLIND, PERFECT),
        "coco",
        "accuracy",
        vqa.ABOUT,
        vqa_config.load_cfg,
        _prepare_questions,
        train_vqa,
        _score_answers,
        # Attention sums to one, whatever the number of objects. With one region per object, counting takes more epochs
        # to learn than with several regions per object.
        perfect_epochs=1.5,
    ),
    "captioning": Task(
        "shapes_updown.yaml",
        ("updown", BLIND, PERFECT),
        "coco",
        "CIDEr-D",
        captions.ABOUT,
        captioning_config.load_cfg,
        _prepare_captions,
        train_caption,
        _score_captions,
    ),
    "grounding": Task(
        "shapes.yaml",
        ("ban",),
        "flickr30k",
        "R@1",
        flickr30k.ABOUT,
        grounding_config.load_cfg,
        _prepare_phrases,
        train_grounding,
        _score_phrases,
    ),
}
