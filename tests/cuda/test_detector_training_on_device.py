"""Training and evaluation of the detector on a GPU, on a few images of Shapes."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from on_device import PRETENDED, check_more_waits, count_waits
from short_training import short_training_values

from bua.checkpoint import load_checkpoint
from bua.config import load_cfg
from bua.detection.mapper import TrainingMapper
from bua.detection.training import evaluate_checkpoint, train_detector
from bua.shapes.make import make_shapes
from bua.visual_genome.prepare import prepare

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "shapes.yaml"
SLIM = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RPN.CONV_DIMS": "[8]",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
}
# All anchors and proposals are trained on, since a GPU draws others than the CPU does.
ALL_SAMPLES = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1000,
}
SHORT, LONG = 2, 4
CHECKPOINT_WAITS = 8
EVALUATION_WAITS = 8


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    make_shapes(root / "shapes", num_train=7, num_val=3, num_test=3, processes=1)
    prepare(root / "shapes", "shapes", progress=False)
    return root


@pytest.fixture
def configure(datasets, tmp_path, monkeypatch):
    """Returns the configuration of a short run into ``tmp_path / name``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))

    def configuration(name: str, iterations: int, **changes):
        values = {
            **short_training_values(iterations, checkpoint_period=1000),
            "MODEL.DEVICE": "cuda",
            "DATASETS.TEST": "()",
            **SLIM,
            "OUTPUT_DIR": tmp_path / name,
            **changes,
        }
        return load_cfg(CONFIG, [str(part) for pair in values.items() for part in pair])

    return configuration


def losses_of(folder: Path) -> dict[str, float]:
    """Returns the losses in the last line of a run's log."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {name: value for name, value in [*lines][-1].items() if "loss" in name}


def test_a_step_gives_the_losses_and_weights_of_the_cpu(configure, tmp_path):
    for device in ("cpu", "cuda"):
        train_detector(configure(device, 1, **ALL_SAMPLES, **{"MODEL.DEVICE": device}))
    expected = losses_of(tmp_path / "cpu")
    assert len(expected) == 6
    assert losses_of(tmp_path / "cuda") == pytest.approx(expected, rel=1e-4)
    weights = load_checkpoint(tmp_path / "cuda" / "model_final.pth")
    for name, value in load_checkpoint(tmp_path / "cpu" / "model_final.pth").items():
        assert torch.allclose(weights[name].float(), value.float(), rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_step_waits_once(configure, tmp_path, autocast):
    changes = {"SOLVER.AMP.ENABLED": autocast, "SOLVER.CLIP_GRADIENTS.ENABLED": autocast}
    runs = {n: count_waits(partial(train_detector, configure(f"{n}", n, **changes))) for n in (SHORT, LONG)}
    assert math.isfinite(losses_of(tmp_path / str(LONG))["total_loss"])
    part = f"detector training, a step, {'bfloat16' if autocast else 'float32'}"
    check_more_waits(runs[LONG], runs[SHORT], 1, part, LONG - SHORT)


def test_a_checkpoint_waits_a_few_times(configure):
    one, three = (
        count_waits(partial(train_detector, configure(f"{period}", 3, **{"SOLVER.CHECKPOINT_PERIOD": period})))
        for period in (1000, 1)
    )
    check_more_waits(three, one, CHECKPOINT_WAITS, "detector training, a checkpoint", 2)


def test_a_run_that_broke_down_goes_on_to_the_same_weights(configure, tmp_path, monkeypatch):
    changes = {"SOLVER.CHECKPOINT_PERIOD": 2, **ALL_SAMPLES}
    train_detector(configure("whole", 4, **changes))
    calls, original = [], TrainingMapper.__call__

    def break_down(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("power cut")
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMapper, "__call__", break_down)
        with pytest.raises(RuntimeError, match="power cut"):
            train_detector(configure("parts", 4, **changes))
    train_detector(configure("parts", 4, **changes), resume=True)
    found = load_checkpoint(tmp_path / "parts" / "model_final.pth")
    for name, value in load_checkpoint(tmp_path / "whole" / "model_final.pth").items():
        # On a GPU, sums of gradients depend on the order in which its threads add.
        assert torch.equal(found[name], value) if PRETENDED else torch.allclose(found[name], value, atol=1e-3), name


def test_evaluation(configure, tmp_path):
    train_detector(configure("run", 2))
    tested = {"DATASETS.TEST": "('shapes_test',)", "MODEL.WEIGHTS": tmp_path / "run" / "model_final.pth"}
    expected = evaluate_checkpoint(configure("cpu", 2, **tested, **{"MODEL.DEVICE": "cpu"}))
    found = {}
    one = count_waits(lambda: found.update(evaluate_checkpoint(configure("cuda", 2, **tested))))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-6 if PRETENDED else 0.02, nan_ok=True)
    tested["DATASETS.TEST"] = "('shapes_test', 'shapes_val')"
    two = count_waits(lambda: evaluate_checkpoint(configure("cuda", 2, **tested)))
    check_more_waits(two, one, EVALUATION_WAITS, "detector evaluation, an image", 3)
