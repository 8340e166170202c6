"""Training, resuming and evaluation of the three tasks on a GPU, on small worlds that an oracle sees."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from on_device import PRETENDED, check_more_waits, count_waits
from script_loading import ROOT, load_script

import bua.captioning.training
import bua.grounding.training
import bua.vqa.training
from bua.captioning.config import load_cfg as load_caption_cfg
from bua.captioning.training import train_caption
from bua.grounding.config import load_cfg as load_grounding_cfg
from bua.grounding.dataset import prepare_flickr30k
from bua.grounding.training import train_grounding
from bua.vqa.config import load_cfg as load_vqa_cfg
from bua.vqa.dataset import prepare_vqa
from bua.vqa.training import train_vqa

CONFIGS = ROOT / "configs"


class Task(NamedTuple):
    """How a task's model is trained.

    Attributes:
        world: The world whose folder it is trained on.
        loss: The function in ``module`` that computes the loss of a batch.
        waits: The largest number of waits in a step, one of them for the losses. Self-critical training, here with
            captions of at most 6 steps, also asks twice whether all captions have ended, and reads the captions.
        overrides: The size of the model, without dropout, because a GPU draws other random numbers.
    """

    world: str
    load_cfg: Callable
    config: Path
    train: Callable
    module: object
    loss: str
    waits: int
    overrides: tuple


CAPTIONER = ("MODEL.UPDOWN.HIDDEN_DIM", 16, "MODEL.UPDOWN.EMBEDDING_DIM", 8, "MODEL.UPDOWN.ATTENTION_DIM", 8)
CAPTIONER += ("DATA.MAX_LENGTH", 6, "SOLVER.IMS_PER_BATCH", 9)
TASKS = {
    "Up-Down": Task(
        *("vqa", load_vqa_cfg, CONFIGS / "vqa" / "shapes_updown.yaml", train_vqa, bua.vqa.training, "vqa_loss", 1),
        ("MODEL.UPDOWN.HIDDEN_DIM", 16, "MODEL.UPDOWN.ATTENTION_DROPOUT", 0.0, "MODEL.UPDOWN.CLASSIFIER_DROPOUT", 0.0),
    ),
    "BAN": Task(
        *("vqa", load_vqa_cfg, CONFIGS / "vqa" / "shapes_ban.yaml", train_vqa, bua.vqa.training, "vqa_loss", 1),
        (
            *("MODEL.BAN.HIDDEN_DIM", 16, "MODEL.BAN.DROPOUT", 0.0, "MODEL.BAN.ATTENTION_DROPOUT", 0.0),
            *("MODEL.BAN.CLASSIFIER_DROPOUT", 0.0),
        ),
    ),
    "captioner": Task(
        *("captions", load_caption_cfg, CONFIGS / "captioning" / "shapes_updown.yaml", train_caption),
        *(bua.captioning.training, "caption_loss", 1, (*CAPTIONER, "MODEL.UPDOWN.DROPOUT", 0.0)),
    ),
    "self-critical captioner": Task(
        *("captions", load_caption_cfg, CONFIGS / "captioning" / "shapes_scst.yaml", train_caption),
        *(bua.captioning.training, "self_critical_loss", 4),
        (*CAPTIONER, "SOLVER.SELF_CRITICAL.SAMPLES", 2, "MODEL.WEIGHTS", "captioner.pth"),
    ),
    "grounding": Task(
        *("entities", load_grounding_cfg, CONFIGS / "grounding" / "shapes.yaml", train_grounding),
        *(bua.grounding.training, "grounding_loss", 1),
        ("MODEL.BAN.EMBEDDING_DIM", 8, "MODEL.BAN.HIDDEN_DIM", 16, "MODEL.BAN.ATTENTION_DROPOUT", 0.0),
    ),
}
# All items in one batch, so that an epoch is a step.
ONE_STEP = ("SOLVER.IMS_PER_BATCH", 250, "SOLVER.EPOCHS", 1)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, Path]:
    """The folders with ``prepared`` and the features of each world."""
    counts, root = {"train": 18, "val": 4, "test": 4}, tmp_path_factory.mktemp("worlds")
    load_script("tests/vqa/toy_questions.py").write_world(root / "vqa", counts)
    prepare_vqa(root / "vqa" / "vqa", root / "vqa" / "prepared", min_count=2)
    (root / "captions").mkdir()
    load_script("tests/captioning/caption_world.py").write_world(root / "captions", counts)
    examples = load_script("tests/grounding/grounding_examples.py")
    images = examples.write_entities(root / "entities" / "files", counts)
    examples.write_oracle_features(root / "entities" / "oracle.flat", images)
    prepare_flickr30k(root / "entities" / "files", root / "entities" / "prepared")
    (root / "vqa" / "features.flat").rename(root / "vqa" / "oracle.flat")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def captioner(worlds) -> Path:
    """A captioner that self-critical training begins with."""
    output = worlds["captions"] / "first"
    train_caption(configure("captioner", worlds, output, "cpu", *ONE_STEP))
    return output / "model_final.pth"


def configure(name: str, worlds: dict[str, Path], output: Path, device: str, *more):
    task = TASKS[name]
    world = worlds[task.world]
    overrides = ["DATA.FOLDER", world / "prepared", "DATA.FEATURES", f"('{world / 'oracle.flat'}',)"]
    overrides += ["OUTPUT_DIR", output, "MODEL.DEVICE", device, "SOLVER.IMS_PER_BATCH", 25, "TEST.EVAL_PERIOD", 1]
    overrides += ["DATALOADER.NUM_WORKERS", 1, "SEED", 3, "DATA.VAL", "", "SOLVER.CHECKPOINT_PERIOD", 1000]
    overrides += [*task.overrides, *more]
    overrides = [worlds["captions"] / "first" / "model_final.pth" if x == "captioner.pth" else x for x in overrides]
    return task.load_cfg(task.config, [str(override) for override in overrides])


def last_line(output: Path) -> dict:
    """Returns the last line of the log that has losses."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [line for line in lines if "total_loss" in line][-1]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


@pytest.mark.parametrize("name", [name for name in TASKS if "critical" not in name])
def test_losses_weights_and_scores_are_those_of_the_cpu(worlds, tmp_path, name):
    scores = {}
    for device in ("cpu", "cuda"):
        cfg = configure(name, worlds, tmp_path / device, device, *ONE_STEP, "DATA.VAL", "val")
        scores[device] = TASKS[name].train(cfg)
    assert last_line(tmp_path / "cuda")["total_loss"] == pytest.approx(
        last_line(tmp_path / "cpu")["total_loss"], rel=1e-4
    )
    found = weights(tmp_path / "cuda")
    for key, value in weights(tmp_path / "cpu").items():
        # Adam divides by the gradient's size, also where that is only rounding.
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-5 if PRETENDED else 1e-2), key
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=1e-6 if PRETENDED else 5)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("variant", ["float32", "bfloat16 on device"])
def test_a_step_waits_once(worlds, captioner, tmp_path, name, variant):
    more = ("SOLVER.AMP.ENABLED", True, "DATA.ON_DEVICE", True) if "bfloat16" in variant else ()
    runs = {}
    for epochs in (1, 2):
        cfg = configure(name, worlds, tmp_path / f"{epochs}", "cuda", "SOLVER.EPOCHS", epochs, *more)
        runs[epochs] = count_waits(partial(TASKS[name].train, cfg))
    lines = {epochs: last_line(tmp_path / f"{epochs}")["iteration"] for epochs in runs}
    assert lines[2] < 20  # otherwise there is another line of the log, which waits
    part = f"{name} training, a step, {variant}"
    check_more_waits(runs[2], runs[1], TASKS[name].waits, part, lines[2] - lines[1])


@pytest.mark.parametrize("name", TASKS)
def test_a_run_that_broke_down_goes_on_to_the_same_weights(worlds, captioner, tmp_path, monkeypatch, name):
    task = TASKS[name]
    more = ("SOLVER.EPOCHS", 2, "SOLVER.CHECKPOINT_PERIOD", 1)
    task.train(configure(name, worlds, tmp_path / "whole", "cuda", *more))
    original, calls = getattr(task.module, task.loss), []

    def break_down(*arguments, **keywords):
        calls.append(1)
        if len(calls) > steps // 2 + 1:
            raise RuntimeError("power cut")
        return original(*arguments, **keywords)

    steps = last_line(tmp_path / "whole")["iteration"]
    cfg = configure(name, worlds, tmp_path / "parts", "cuda", *more)
    with monkeypatch.context() as patch:
        patch.setattr(task.module, task.loss, break_down)
        with pytest.raises(RuntimeError, match="power cut"):
            task.train(cfg)
    task.train(cfg, resume=True)
    found = weights(tmp_path / "parts")
    for key, value in weights(tmp_path / "whole").items():
        # On a GPU, sums of gradients depend on the order in which its threads add.
        assert torch.equal(found[key], value) if PRETENDED else torch.allclose(found[key], value, atol=1e-2), key
