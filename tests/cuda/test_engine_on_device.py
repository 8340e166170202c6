"""The training loop on a GPU, with a model of one layer."""

import math

import numpy as np
import pytest
import torch
from on_device import at_most, check_more_waits, count_waits
from torch import nn

from bua.checkpoint import read_checkpoint
from bua.config import get_cfg
from bua.engine import NonFiniteLoss, Trainer, build_clip, build_optimizer, build_scheduler, connect
from bua.engine.checkpoints import to_cpu
from bua.engine.loader import TrainingLoader
from bua.structures import DetectorInput

OPTIMIZERS = ["SGD", "Adam", "AdamW", "Adamax"]


class Line(nn.Module):
    """A linear model whose loss is multiplied by ``factors[n]`` in iteration n."""

    def __init__(self, factors: dict[int, float]):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.zeros_(self.linear.bias)
        self.factors, self.passes = factors, 0

    def forward(self, batch):
        self.passes += 1
        x = torch.stack(batch).to(self.linear.weight.device, non_blocking=True)
        loss = self.linear(x).square().mean()
        return {"loss_a": loss * self.factors.get(self.passes, 1.0), "loss_b": loss / 2}


def draw(index: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=3).astype(np.float32))


def train(folder, iterations, optimizer="SGD", device="cuda", factors=(), resume=False, **options) -> Trainer:
    accelerator = connect(device)
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 0.05, 0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "full_model"
    model = Line(dict(factors)).to(device)
    built = build_optimizer(cfg, model)
    trainer = Trainer(
        model,
        TrainingLoader(range(8), draw, 4, seed=1),
        built,
        build_scheduler(cfg, built),
        accelerator=accelerator,
        output_dir=folder,
        max_iter=iterations,
        ids=lambda batch: [f"item {len(batch)}"],
        clip=build_clip(cfg),
        **options,
    )
    trainer.run(resume)
    return trainer


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [value.cpu() for value in trainer.model.state_dict().values()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_are_not_updated_with_a_loss_that_is_not_finite(tmp_path, monkeypatch, optimizer):
    expected = weights(train(tmp_path / "before", 2, optimizer))
    trainers, restore = [], Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, resume: (trainers.append(self), restore(self, resume)))
    message = r"^iteration 3: loss_a not finite in the batch of item 4; check the annotations"
    with pytest.raises(NonFiniteLoss, match=message):
        train(tmp_path / "broken", 9, optimizer, factors={3: math.inf, 5: math.nan}.items())
    assert all(map(torch.equal, weights(trainers[0]), expected))
    assert not list((tmp_path / "broken").glob("*.pth"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_that_of_the_cpu_and_goes_on_there(tmp_path, optimizer):
    expected = train(tmp_path / "cpu", 6, optimizer, "cpu")
    found = train(tmp_path / "cuda", 6, optimizer)
    for value, wanted in zip(weights(found), weights(expected)):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        continued = train(tmp_path / first, 9, optimizer, second, resume=True)
        whole = train(tmp_path / f"whole {first}", 9, optimizer, "cpu")
        for value, wanted in zip(weights(continued), weights(whole)):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "limit"), [("SGD", 0), ("AdamW", 0), ("Adamax", 1)])
def test_waits_of_a_step(tmp_path, optimizer, limit):
    short, long = (count_waits(lambda n=n: train(tmp_path / str(n), n, optimizer, log_period=100)) for n in (2, 8))
    check_more_waits(long, short, limit, f"engine, a step, {optimizer}", 6)


def test_a_checkpoint_is_copied_with_one_wait(tmp_path):
    weight = torch.arange(6.0, device="cuda").reshape(2, 3)
    state = {"model": {"a": weight, "tied": weight}, "steps": [torch.ones((), device="cuda"), 3], "cpu": torch.ones(2)}
    with at_most(1, "checkpoint, copies"):
        copied = to_cpu(state)
    assert copied["model"]["a"].device.type == "cpu"
    assert copied["model"]["a"] is copied["model"]["tied"]
    assert copied["model"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (copied["steps"][0].item(), copied["steps"][1]) == (1, 3)
    assert copied["cpu"] is state["cpu"]
    assert state["model"]["a"].device.type == "cuda"


def test_a_checkpoint_holds_no_tensor_of_the_gpu(tmp_path):
    train(tmp_path, 3, "AdamW")
    saved = read_checkpoint(tmp_path / "model_final.pth")
    moments = [value for state in saved["optimizer"]["state"].values() for value in state.values()]
    assert {value.device.type for value in [*saved["model"].values(), *moments]} == {"cpu"}


def test_batches_are_pinned():
    def to_input(index: int, rng: np.random.Generator) -> DetectorInput:
        return DetectorInput(torch.ones(3, 2, 2), 4, 4, (2.0, 2.0), index, boxes=torch.ones(1, 4))

    (first, _) = next(iter(TrainingLoader(range(4), to_input, 2, seed=1, pin_memory=True)))
    assert first.image.is_pinned()
    assert first.boxes.is_pinned()
    assert (first.width, first.scale, first.classes) == (4, (2.0, 2.0), None)
