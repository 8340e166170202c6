"""The trainers of Detectron2 that take the steps, on a small model."""

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage

from bua.d2.inner_trainers import ClippingGradScaler, CPUAMPTrainer, build_inner_trainer


class Model(torch.nn.Linear):
    """Its loss has the gradient [30, 40]."""

    def __init__(self):
        super().__init__(2, 1, bias=False)
        torch.nn.init.zeros_(self.weight)

    def forward(self, batch):
        assert torch.is_autocast_enabled("cpu") == self.mixed
        return {"loss": super().forward(batch).sum()}


def clip(parameters):
    return torch.nn.utils.clip_grad_norm_(parameters, 5.0)


@pytest.mark.parametrize(("dtype", "kind"), [(None, SimpleTrainer), (torch.bfloat16, CPUAMPTrainer)])
def test_a_step_clips_the_gradients(dtype, kind):
    model = Model()
    model.mixed = dtype is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer, scaler = build_inner_trainer(model, [torch.tensor([[30.0, 40.0]])], optimizer, dtype=dtype, clip=clip)
    assert type(trainer) is kind
    assert scaler.state_dict() == {}
    with EventStorage():
        trainer.run_step()
    torch.testing.assert_close(model.weight, torch.tensor([[-3.0, -4.0]]), rtol=1e-2, atol=0)


def test_scaled_gradients_are_clipped_after_they_have_their_size_again():
    model = Model()
    model.mixed = False
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    scaler = ClippingGradScaler("cpu", clip, enabled=True)
    scaler.scale(model(torch.tensor([[30.0, 40.0]]))["loss"]).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(model.weight, torch.tensor([[-3.0, -4.0]]))


def test_a_gpu_has_detectron2s_own_trainer_of_mixed_precision(monkeypatch):
    model = Model()
    monkeypatch.setattr(Model, "parameters", lambda self: iter([torch.empty(0, device="meta")]))
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: torch.device("cuda")))
    trainer, scaler = build_inner_trainer(model, [], None, dtype=torch.bfloat16, clip=None)
    assert type(trainer) is AMPTrainer
    assert trainer.precision is torch.bfloat16
    assert trainer.grad_scaler is scaler
