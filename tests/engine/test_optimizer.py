import math

import pytest
import torch
from torch import nn

from bua.config import get_cfg
from bua.engine import build_clip, build_optimizer, build_scheduler
from bua.engine.optimizer import load_optimizer_state, lr_factor
from bua.errors import InputError


def make_cfg(**solver):
    cfg = get_cfg()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def learning_rates(cfg) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def small_model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2), nn.Embedding(3, 2)
    )
    model[3].weight.requires_grad_(False)
    model.shared = model[4]
    return model


def test_learning_rate_and_weight_decay_of_each_parameter():
    cfg = make_cfg(BASE_LR=0.1, BIAS_LR_FACTOR=2.0, WEIGHT_DECAY=5e-4, WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_BIAS=1e-5)
    model = small_model()
    optimizer = build_optimizer(cfg, model)
    found = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    names = {name: found.pop(parameter, None) for name, parameter in model.named_parameters()}
    assert not found
    assert names == {
        "0.weight": (0.1, 5e-4),
        "0.bias": (0.2, 1e-5),
        "1.weight": (0.1, 0.0),
        "1.bias": (0.2, 1e-5),
        "2.weight": (0.1, 0.0),
        "2.bias": (0.2, 1e-5),
        "3.weight": None,
        "3.bias": (0.2, 1e-5),
        "4.weight": (0.1, 5e-4),
    }


def test_biases_decay_like_weights_by_default():
    optimizer = build_optimizer(make_cfg(WEIGHT_DECAY=0.1), nn.Linear(2, 2))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


def test_steps_and_linear_warmup():
    cfg = make_cfg(BASE_LR=1.0, MAX_ITER=10, STEPS=(6, 8), GAMMA=0.5, WARMUP_ITERS=4, WARMUP_FACTOR=0.2)
    assert learning_rates(cfg) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.5, 0.5, 0.25, 0.25])


def test_the_originals_schedule():
    cfg = make_cfg(BASE_LR=0.001, MAX_ITER=380000, STEPS=(350000,), WARMUP_ITERS=0)
    assert [lr_factor(cfg, iteration) for iteration in (0, 349999, 350000, 379999)] == [1, 1, 0.1, 0.1]


def test_cosine_and_constant_warmup():
    cfg = make_cfg(
        BASE_LR=2.0,
        BASE_LR_END=0.5,
        MAX_ITER=8,
        WARMUP_ITERS=2,
        WARMUP_FACTOR=0.1,
        WARMUP_METHOD="constant",
        LR_SCHEDULER_NAME="WarmupCosineLR",
    )
    expected = [0.5 + 1.5 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert learning_rates(cfg) == pytest.approx([0.2, 0.2, *expected[2:]])


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
@pytest.mark.parametrize("method", ["linear", "constant"])
def test_same_as_detectron2(name, method):
    solver = pytest.importorskip("detectron2.solver", reason="Detectron2 is not installed")
    cfg = make_cfg(
        BASE_LR=0.02,
        BASE_LR_END=0.001,
        MAX_ITER=60,
        STEPS=(10, 40),
        WARMUP_ITERS=15,
        WARMUP_FACTOR=0.01,
        WARMUP_METHOD=method,
        LR_SCHEDULER_NAME=name,
        BIAS_LR_FACTOR=2.0,
        WEIGHT_DECAY_BIAS=1e-3,
    )
    ours = learning_rates(cfg)
    model = small_model()
    groups = {(g["lr"], g["weight_decay"]): set(g["params"]) for g in build_optimizer(cfg, model).param_groups}
    cfg.SOLVER.RESCALE_INTERVAL = False
    optimizer = solver.build_optimizer(cfg, model)
    theirs = {(g["lr"], g["weight_decay"]): set(g["params"]) for g in optimizer.param_groups}
    assert groups == theirs

    scheduler = solver.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(min(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    assert ours == pytest.approx(rates)


def clipped(**clip) -> list[torch.Tensor]:
    cfg = make_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, **clip})
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    build_clip(cfg)(parameters)
    return [parameter.grad.tolist() for parameter in parameters]


def test_the_types_of_gradient_clipping():
    assert clipped(CLIP_TYPE="value", CLIP_VALUE=1.0) == [[1, 1], [0, 0.5]]
    norm = clipped(CLIP_TYPE="norm", CLIP_VALUE=1.0)
    assert norm[0] == pytest.approx([0.6, 0.8], rel=1e-4)
    assert norm[1] == [0, 0.5]
    full = clipped(CLIP_TYPE="full_model", CLIP_VALUE=1.0)
    assert math.hypot(*full[0], *full[1]) == pytest.approx(1, rel=1e-4)
    assert full[0][0] / full[0][1] == pytest.approx(0.75)
    assert build_clip(make_cfg()) is None


@pytest.mark.parametrize(
    ("key", "build"),
    [
        ("LR_SCHEDULER_NAME", lambda cfg: build_scheduler(cfg, None)),
        ("WARMUP_METHOD", lambda cfg: build_scheduler(cfg, None)),
    ],
)
def test_unknown_schedules_are_named(key, build):
    with pytest.raises(InputError, match=rf"SOLVER\.{key} is 'other'"):
        build(make_cfg(**{key: "other"}))


def test_unknown_clip_type():
    with pytest.raises(InputError, match=r"CLIP_TYPE is 'other'"):
        clipped(CLIP_TYPE="other")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "Adadelta"])
def test_other_optimizers_have_the_same_groups(name):
    model = small_model()
    sgd, other = (build_optimizer(make_cfg(OPTIMIZER=kind), model) for kind in ("SGD", name))
    assert type(other) is getattr(torch.optim, name)
    for ours, theirs in zip(other.param_groups, sgd.param_groups):
        assert ours["params"] == theirs["params"]
        assert (ours["lr"], ours["weight_decay"]) == (theirs["lr"], theirs["weight_decay"])


def test_an_unknown_optimizer_is_named():
    with pytest.raises(InputError, match=r"SOLVER\.OPTIMIZER is 'Adagrad'"):
        build_optimizer(make_cfg(OPTIMIZER="Adagrad"), small_model())


def test_linear_and_exponential_schedules():
    line = learning_rates(make_cfg(LR_SCHEDULER_NAME="WarmupLinearLR", BASE_LR=0.01, MAX_ITER=10, WARMUP_ITERS=0))
    assert line == pytest.approx([0.01 * (1 - i / 10) for i in range(10)])
    fall = learning_rates(
        make_cfg(LR_SCHEDULER_NAME="WarmupExponentialLR", BASE_LR=1e-3, GAMMA=0.9, MAX_ITER=10, WARMUP_ITERS=0)
    )
    assert fall == pytest.approx([1e-3 * 0.9**i for i in range(10)])


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"OPTIMIZER": "SGD", "NESTEROV": True, "MOMENTUM": 0.0}, "SOLVER.NESTEROV is True, but SOLVER.MOMENTUM is 0"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR": 0.0}, "SOLVER.BASE_LR is 0, which WarmupCosineLR cannot"),
    ],
)
def test_settings_that_contradict_each_other(solver, message):
    cfg = make_cfg(**solver)
    with pytest.raises(InputError, match=message):
        build_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))


def test_the_state_of_another_optimizer_is_refused():
    model = nn.Linear(1, 1)
    names = ("SGD", "Adam", "AdamW", "Adamax", "Adadelta")
    optimizers = {name: build_optimizer(make_cfg(OPTIMIZER=name), model) for name in names}
    for name, optimizer in optimizers.items():
        for other, saved in optimizers.items():
            if name == other:
                load_optimizer_state(optimizer, saved.state_dict())
                continue
            with pytest.raises(ValueError, match=f"of another optimizer than {name}"):
                load_optimizer_state(optimizer, saved.state_dict())
