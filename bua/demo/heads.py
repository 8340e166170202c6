"""The models that live on region features, trained and scored on Shapes; beside those that look one that does not, and
one that is given regions without error."""

import io
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
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
from bua.engine.trainer import BEST, FINAL
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
# What the models beside the one that looks are called.
BLIND, PERFECT = "blind", "perfect"
# Of the epochs of the one that looks.
BLIND_EPOCHS = 0.3
CONSOLE_SECONDS = 10
# Of each image: several for each of its few things.
REGIONS = 24


@dataclass(frozen=True)
class Place:
    """What the heads learn from, and where to.

    Attributes:
        shapes: the data set's folder.
        output: the demo's.
        configs: a folder with a configuration for each task, beneath ``vqa``, ``captioning`` and ``grounding``.
        overrides: of all these configurations.
        device: such as "cpu".
    """

    shapes: Path
    output: Path
    configs: Path
    overrides: Sequence[str]
    device: str

    def features(self, name: str) -> Path:
        """Those by the ids of "visual_genome", "coco" or "flickr30k", or "perfect" ones by COCO's."""
        return self.output / "features" / name

    def data(self, task: str) -> Path:
        """What the task's program for preparing has written."""
        return self.output / task / "data"

    def model(self, task: str, name: str) -> Path:
        """The checkpoint that scores best on val."""
        return self.output / task / name / BEST


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        config_file: beneath the folder of configurations.
        names: of the models: the one that looks, and those beside it.
        features: that the first reads.
        metric: what models are compared by.
        prepared: a file that is there when the data are.
        prepare: of the data set's folder and the output's.
        train: of a configuration, and whether to resume.
        score: of the place, a checkpoint and features, on the test split: fractions by name.
        perfect_epochs: of the one that is given perfect regions, over those of the one that looks.
    """

    config_file: str
    names: tuple[str, ...]
    features: str
    metric: str
    prepared: str
    load_cfg: Callable[[Path, list[str]], CfgNode]
    prepare: Callable[[Path, Path], object]
    train: Callable[[CfgNode, bool], dict[str, float]]
    score: Callable[[Place, Path, Path], dict[str, float]]
    perfect_epochs: float = 1.0


def configurations(place: Place, task: str) -> dict[str, CfgNode]:
    """The configuration of each of a task's models.

    Raises:
        InputError: a file that is missing or wrong, or another configuration than the one that a model was begun with.
    """
    found = {}
    for name in TASKS[task].names:
        cfg = TASKS[task].load_cfg(place.configs / task / TASKS[task].config_file, list(place.overrides))
        cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = place.device, str(place.model(task, name).parent)
        cfg.DATA.FOLDER, cfg.DATA.FEATURES = str(place.data(task)), (str(_features(place, task, name)),)
        # As the detector, these give the same each time.
        cfg.SEED = max(cfg.SEED, 0)
        if name == BLIND:
            # There is less to learn.
            cfg.DATA.LOOK, cfg.SOLVER.EPOCHS = False, math.ceil(cfg.SOLVER.EPOCHS * BLIND_EPOCHS)
        if name == PERFECT:
            cfg.SOLVER.EPOCHS = math.ceil(cfg.SOLVER.EPOCHS * TASKS[task].perfect_epochs)
        # The iterations follow from the epochs.
        check_configuration(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump(), except_for=("MAX_ITER",))
        found[name] = cfg
    return found


def train_and_score(place: Place, metrics: dict[str, float], save: Callable[[], None]) -> None:
    """Trains the models of all tasks, each from where an earlier run left it, and puts their scores on the test split
    into ``metrics`` as ``<task>/<model>/<metric>``, fractions. What is there already is not done again.

    On a CPU as many are trained side by side as there are cores: small models are slow on several.

    Args:
        save: called whenever there are new metrics.
    """
    waiting = []
    for task in TASKS:
        if not (place.data(task) / TASKS[task].prepared).is_file():
            TASKS[task].prepare(place.shapes, place.data(task))
        for name, cfg in configurations(place, task).items():
            key = f"{task}/{name}/{TASKS[task].metric}"
            if key in metrics and (Path(cfg.OUTPUT_DIR) / FINAL).is_file():
                print(f"{task}, {name}: {TASKS[task].metric} {100 * metrics[key]:.1f}, from an earlier run", flush=True)
            else:
                waiting.append((task, name, cfg))
    # Those that take longest first, so that no core is left with one of them at the end.
    waiting.sort(key=lambda head: (head[1] == BLIND, head[1] == PERFECT))
    cores = os.cpu_count() or 1
    workers = min(len(waiting), cores if place.device == "cpu" else 1)
    for (task, name, _), scores in _all_done(place, waiting, workers, max(1, cores // max(1, workers))):
        metrics.update({f"{task}/{name}/{metric}": score for metric, score in scores.items()})
        save()
        metric = TASKS[task].metric
        print(f"{task}, {name}: {metric} {100 * scores[metric]:.1f} on the test images", flush=True)


def _all_done(place: Place, heads: list[tuple[str, str, CfgNode]], workers: int, threads: int) -> Iterator[tuple]:
    """Each head with its scores, as they are done."""
    if workers <= 1:
        for head in heads:
            yield head, _train_and_score(place, *head)
        return
    # Not forked: threads of this process may hold locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(_train_and_score, place, *head): head for head in heads}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _train_and_score(place: Place, task: str, name: str, cfg: CfgNode) -> dict[str, float]:
    path = make_folder(cfg.OUTPUT_DIR) / "log.txt"
    with open(path, "a", encoding="utf-8") as log, redirect_stdout(_Thinned(log, sys.stdout, f"{task}, {name}: ")):
        TASKS[task].train(cfg, True)
        return TASKS[task].score(place, place.model(task, name), _features(place, task, name))


class _Thinned(io.TextIOBase):
    """Text goes to a file; of its lines one in ``CONSOLE_SECONDS`` goes to the console, where others speak too."""

    def __init__(self, file: io.TextIOBase, console: io.TextIOBase, prefix: str):
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


def _features(place: Place, task: str, name: str) -> Path:
    # The blind one sees none, so that those that are read fastest do.
    return place.features("perfect" if name in (BLIND, PERFECT) else TASKS[task].features)


def _prepare_questions(shapes: Path, folder: Path) -> None:
    # Shapes has few answers, each of them often.
    prepare_vqa(shapes / "vqa", folder, min_count=1)


def _score_answers(place: Place, checkpoint: Path, features: Path) -> dict[str, float]:
    dataset, model = VqaDataset.load(place.data("vqa"), "test"), load_vqa(checkpoint, place.device)
    labels = predict_answers([model], dataset, RegionReader.open([features]), progress=False)
    answers = [
        {"question_id": number, "answer": model.answers.answers[label]}
        for number, label in zip(dataset.question_ids.tolist(), labels.tolist())
    ]
    return {"accuracy": vqa_accuracy(answers, place.shapes / ANNOTATIONS)["overall"] / 100}


def _prepare_captions(shapes: Path, folder: Path) -> None:
    prepare_captions(load_karpathy(shapes / "captions" / "dataset_coco.json"), folder, min_count=1)


def _score_captions(place: Place, checkpoint: Path, features: Path) -> dict[str, float]:
    dataset, model = CaptionDataset.load(place.data("captioning"), "test"), load_captioner(checkpoint, place.device)
    found = predict_captions([model], dataset.image_ids, RegionReader.open([features]), progress=False)
    return {"CIDEr-D": float(CiderD(dataset.references()).score(list(found.values()), list(found)).mean())}


def _prepare_phrases(shapes: Path, folder: Path) -> None:
    prepare_flickr30k(shapes / "flickr30k_entities", folder)


def _score_phrases(place: Place, checkpoint: Path, features: Path) -> dict[str, float]:
    dataset, model = GroundingDataset.load(place.data("grounding"), "test"), load_grounding(checkpoint, place.device)
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
        # Attention sums to one however many things there are: counting single ones takes longer to learn than counting
        # things with several regions each.
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
