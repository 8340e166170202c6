import json
import sys
from pathlib import Path

import pytest
import torch

from bua.engine import connect
from bua.engine.loader import TrainingLoader
from bua.errors import InputError
from bua.tasks.config import constructor_keys, task_cfg
from bua.tasks.training import connect_processes, micro_batch_size, open_reader, train_task

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
from toy_training import ITEMS, Toy, item_ids, to_item


def train(output, **solver):
    """The learning rate of every iteration."""
    cfg = task_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(output), "cpu"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 4, 0.1
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    accelerator, rates, model = connect("cpu"), [], Toy(noisy=False)
    loader = TrainingLoader(range(ITEMS), to_item, micro_batch_size(cfg), seed=1)

    def losses(model, batch):
        return {"loss": model(batch)["loss_a"]}

    def evaluate():
        rates.append("evaluated")
        return {"accuracy": 0.5}

    train_task(
        cfg,
        model,
        loader,
        losses,
        accelerator=accelerator,
        ids=item_ids,
        unit="questions",
        evaluate=evaluate,
        best="accuracy",
    )
    return rates


def test_epochs(tmp_path):
    assert train(tmp_path, EPOCHS=2) == ["evaluated"] * 2
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_best.pth", "model_final.pth"]
    assert "questions_per_second" in (tmp_path / "metrics.json").read_text()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert saved["iteration"] == 6


@pytest.mark.parametrize(("epochs", "rates"), [(1, [0.05]), (2, [0.05, 0.2]), (3, [0.05, 0.2, 0.2])])
def test_a_factor_for_every_epoch(tmp_path, epochs, rates):
    train(tmp_path, EPOCHS=epochs, EPOCH_FACTORS=[0.5, 2.0])
    lines = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    assert [line["lr"] for line in lines if "lr" in line][-1] == pytest.approx(rates[-1])


def test_batch_sizes_and_epochs_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match=r"IMS_PER_BATCH is 4; it must be a multiple of SOLVER\.ACCUMULATE, 3"):
        train(tmp_path, ACCUMULATE=3)
    with pytest.raises(InputError, match="EPOCHS is 0"):
        train(tmp_path, EPOCHS=0)


def test_a_batch_that_cannot_be_divided_among_processes():
    cfg = task_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE = 12, 2
    assert micro_batch_size(cfg, 3) == 6
    with pytest.raises(InputError, match=r"IMS_PER_BATCH is 12; .* of SOLVER\.ACCUMULATE, 2 times 4 processes"):
        micro_batch_size(cfg, 4)


def test_a_run_starts_from_its_seed():
    cfg = task_cfg()
    cfg.MODEL.DEVICE, cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE = "cpu", 5, 12, 3
    processes = connect_processes(cfg)
    first = torch.rand(3)
    assert processes.loading == {
        "batch_size": 4,
        "seed": 5,
        "threads": cfg.DATALOADER.NUM_WORKERS,
        "device": torch.device("cpu"),
        "process_index": 0,
        "num_processes": 1,
    }
    assert processes.device.type == "cpu"
    connect_processes(cfg)
    assert torch.equal(torch.rand(3), first)
    cfg.SEED = -1
    drawn = connect_processes(cfg).loading["seed"]
    assert drawn >= 0
    assert connect_processes(cfg).loading["seed"] != drawn


def test_constructor_arguments_become_configuration_keys():
    class Model:
        def __init__(self, num_words, *, feature_dim=4, width=3, special=None):
            pass

    assert dict(constructor_keys(Model)) == {"WIDTH": 3, "SPECIAL": None}
    assert dict(constructor_keys(Model, without=("feature_dim", "special"))) == {"WIDTH": 3}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FOLDER", "", r"DATA\.FOLDER: empty; name a folder that bua prepare-toy wrote"),
        ("TRAIN", (), r"DATA\.TRAIN: empty; name splits"),
        ("FEATURES", (), r"DATA\.FEATURES: empty; name the files that bua extract wrote"),
    ],
)
def test_settings_that_a_training_lacks(key, value, message):
    cfg = task_cfg()
    cfg.DATA.FOLDER, cfg.DATA.FEATURES = "prepared", ("features.flat",)
    cfg.DATA[key] = value
    with pytest.raises(InputError, match=message):
        open_reader(cfg, "prepare-toy")
