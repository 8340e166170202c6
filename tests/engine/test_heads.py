import json

import pytest
import torch
from toy_training import ITEMS, Toy, item_ids, to_item

from bua.data.loader import TrainingLoader
from bua.engine import connect
from bua.engine.heads import head_cfg, micro_batch_size, train_head
from bua.errors import InputError


def train(output, **solver):
    """The learning rate of every iteration."""
    cfg = head_cfg()
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

    train_head(
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


def test_parts_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"IMS_PER_BATCH is 4; it must be a multiple of SOLVER\.ACCUMULATE, 3"):
        train(tmp_path, ACCUMULATE=3)
    with pytest.raises(InputError, match="EPOCHS is 0"):
        train(tmp_path, EPOCHS=0)
