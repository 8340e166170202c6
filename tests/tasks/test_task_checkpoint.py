"""A toy task's checkpoint, as a fourth task would have one."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from bua.checkpoint import save_checkpoint
from bua.config_values import check_choices
from bua.errors import InputError
from bua.tasks.checkpoint import (
    TaskModel,
    build_fitting,
    read_task_checkpoint,
    reported_damage,
    restore_cfg,
    restore_weights,
)
from bua.tasks.config import check_minimums, load_task_cfg, task_cfg


@dataclass
class ToyModel(TaskModel):
    labels: list[str]

    def vocabularies(self):
        return {"labels": self.labels}


def load_toy(path: Path) -> ToyModel:
    saved = read_task_checkpoint(path, ["labels"], "name another")
    cfg = restore_cfg(task_cfg(), saved, path)
    return restore_weights(ToyModel(nn.Linear(2, 3), cfg, saved["feature_dim"], saved["labels"]), saved, path, "cpu")


def test_a_model_comes_back_from_its_checkpoint(tmp_path):
    cfg = task_cfg()
    cfg.SOLVER.EPOCHS = 7
    model = ToyModel(nn.Linear(2, 3), cfg, 2, ["a", "b"])
    # A checkpoint of a training also holds the random states of its processes.
    save_checkpoint(tmp_path / "a.pth", model=model.model.state_dict(), **model.describe(), random=[{"python": [1]}])
    loaded = load_toy(tmp_path / "a.pth")
    assert torch.equal(loaded.model.weight, model.model.weight)
    assert (loaded.cfg.SOLVER.EPOCHS, loaded.feature_dim, loaded.labels) == (7, 2, ["a", "b"])
    assert not loaded.model.training
    assert loaded.device.type == "cpu"
    loaded.check_features(2, "image a.jpg")
    message = "image a.jpg: the feature dimension is 5, but the model was trained on features of dimension 2; use"
    with pytest.raises(InputError, match=message):
        loaded.check_features(5, "image a.jpg")


def test_checkpoints_that_do_not_fit(tmp_path):
    model = ToyModel(nn.Linear(2, 4), task_cfg(), 2, ["a", "b"])
    content = {"model": model.model.state_dict(), **model.describe()}
    configurations = ("SOLVER: {EPOCS: 7}", "SOLVER: {EPOCHS: many}", "a: [", "[1]")
    for changed, message in (
        ({}, "its weights do not fit its configuration"),
        *(({"config": config}, "its configuration is of another version") for config in configurations),
    ):
        save_checkpoint(tmp_path / "a.pth", **content | changed)
        with pytest.raises(InputError, match=rf"a\.pth: {message}") as caught:
            load_toy(tmp_path / "a.pth")
        assert "\n" not in str(caught.value)
    save_checkpoint(tmp_path / "b.pth", model={}, config="")
    with pytest.raises(InputError, match=r"b\.pth: lacks labels, feature_dim; name another"):
        load_toy(tmp_path / "b.pth")


def test_damage_of_a_checkpoint_is_one_line(tmp_path):
    model = ToyModel(nn.Linear(2, 3), task_cfg(), 2, ["a", "b"])
    content = {"model": model.model.state_dict(), **model.describe()}
    nan = {"weight": torch.full((3, 2), torch.nan), "bias": torch.zeros(3)}
    for changed, message in (
        ({"model": nan}, "weight has values that are NaN or infinite"),
        ({"model": [1]}, "damaged, or written by another program: model is not what bua saves there"),
        ({"model": {"weight": 3}}, "model is not what bua saves there"),
        ({"config": 3}, "config is not what bua saves there"),
        ({"config": "SOLVER: {EPOCHS: 0}"}, "another version of bua .*EPOCHS is 0"),
        ({"feature_dim": -1}, "feature_dim is not what bua saves there"),
        ({"feature_dim": 2.0}, "feature_dim is not what bua saves there"),
        ({"labels": ["a", 3]}, "labels is not what bua saves there"),
        ({"features": 7}, "damaged, or of another program .TypeError"),
    ):
        save_checkpoint(tmp_path / "a.pth", **content | changed)
        with pytest.raises(InputError, match=rf"a\.pth: .*{message}") as caught, reported_damage(tmp_path / "a.pth"):
            load_toy(tmp_path / "a.pth")
        assert "\n" not in str(caught.value)


def test_a_size_that_is_wrong_takes_no_memory():
    saved = {"model": nn.Linear(2, 3).state_dict()}
    assert build_fitting(lambda: nn.Linear(2, 3), saved, "a.pth").weight.device.type == "cpu"
    with pytest.raises(InputError, match=r"a\.pth: its weights do not fit .*weight has the shape \(3, 2\), not"):
        build_fitting(lambda: nn.Linear(10**9, 10**5), saved, "a.pth")
    with pytest.raises(InputError, match=r"do not fit its configuration: 0\.weight is missing"):
        build_fitting(lambda: nn.Sequential(nn.Linear(2, 3)), saved, "a.pth")


def test_the_values_of_a_configuration_are_checked(tmp_path):
    def check(cfg, source):
        check_choices(cfg, source, {"SOLVER.OPTIMIZER": ("SGD", "Adamax")})
        check_minimums(cfg, source, {"SOLVER.EPOCHS": 1})

    path = tmp_path / "toy.yaml"
    path.write_text("SOLVER: {EPOCHS: 3}")
    assert load_task_cfg(task_cfg(), path, ["MODEL.DEVICE", "cpu"], check).SOLVER.EPOCHS == 3
    for overrides, message in (
        (["SOLVER.OPTIMIZER", "Adam"], "toy.yaml: SOLVER.OPTIMIZER is 'Adam'; use one of 'SGD', 'Adamax'"),
        (["SOLVER.EPOCHS", "0"], "toy.yaml: SOLVER.EPOCHS is 0; it must be 1 or more"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'"),
    ):
        with pytest.raises(InputError, match=message):
            load_task_cfg(task_cfg(), path, ["MODEL.DEVICE", "cpu", *overrides], check)
