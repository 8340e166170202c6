"""A toy task's checkpoint, as a fourth task would have one."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from bua.checkpoint import save_checkpoint
from bua.errors import InputError
from bua.tasks.checkpoint import TaskModel, read_task_checkpoint, restore_cfg, restore_weights
from bua.tasks.config import check_choices, check_minimums, load_task_cfg, task_cfg


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
    save_checkpoint(tmp_path / "a.pth", model=model.model.state_dict(), **model.describe())
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
