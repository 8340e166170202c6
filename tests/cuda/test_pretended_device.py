"""The pretended device raises where CUDA raises, counts waits, and computes what the CPU computes."""

import copy
import io
import os
import threading

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

if os.environ["BUA_TEST_DEVICE"] != "pretended":
    pytest.skip("a GPU is tested by the other files", allow_module_level=True)

from pretended_waits import PAGEABLE, table, total, waits


def counted(function) -> dict[str, int]:
    """Returns the number of waits by kind in ``function()``."""
    with waits.counted() as found:
        function()
    kinds: dict[str, int] = {}
    for (kind, site), number in found.items():
        assert site.startswith("tests/cuda/test_pretended_device.py:"), table(found)
        kinds[kind] = kinds.get(kind, 0) + number
    return kinds


@pytest.fixture
def three() -> torch.Tensor:
    return torch.tensor([1.0, 2.0, 3.0]).cuda()


def test_a_tensor_says_that_it_is_on_the_device(three):
    assert three.is_cuda
    assert three.device == torch.device("cuda:0")
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1
    assert three.cpu().tolist() == [1, 2, 3]
    assert torch.zeros(2, device="cuda").is_cuda
    assert (three + torch.tensor(2.0)).tolist() == [3, 4, 5]


REFUSED = {
    "add": (lambda x: x + torch.ones(3), "same device"),
    "cat": (lambda x: torch.cat([x, torch.ones(3)]), "same device"),
    "stack": (lambda x: torch.stack([torch.tensor(1.0), x[0]]), "same device"),
    "index": (lambda x: torch.ones(3)[x.long()], "indices should be"),
    "matmul": (lambda x: nn.Linear(3, 2)(x), "same device"),
    "numpy": (lambda x: x.numpy(), "can't convert cuda"),
    "asarray": (np.asarray, "can't convert cuda"),
    "pin": (lambda x: x.pin_memory(), "cannot pin"),
    "set_device": (lambda x: torch.cuda.set_device(1), "invalid device ordinal"),
}


@pytest.mark.refused
@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses(three, name):
    function, message = REFUSED[name]
    waits.errors.clear()
    with pytest.raises(RuntimeError, match=message):
        function(three)
    assert len(waits.errors) == 1
    assert "tests/cuda/test_pretended_device.py:" in waits.errors[0]


def test_wrong_arguments_are_refused_as_by_torch():
    with pytest.raises(ValueError, match=r"Expected a torch\.device with a specified index"):
        torch.cuda.set_device(torch.device("cuda"))


@pytest.mark.refused
def test_a_forked_process_cannot_use_it(three):
    pid = os.fork()
    if pid == 0:
        try:
            three.add(1)
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def fill_by_mask(x):
    x[x > 1] = 4


def set_by_mask(x):
    x[x > 1] = x[:2].clone()


WAITS = {
    "nothing": (lambda x: x.add(1).sum(), {}),
    "item": (lambda x: x[0].item(), {"item": 1}),
    "bool": (lambda x: bool((x > 0).any()), {"item": 1}),
    "float": (lambda x: float(x[0]), {"item": 1}),
    "tolist": (lambda x: x.tolist(), {"tolist": 1}),
    "cpu": (lambda x: x.cpu(), {"copy to the host": 1}),
    "numpy": (lambda x: x.numpy(force=True), {"copy to the host": 1}),
    "pageable target": (lambda x: torch.empty(3).copy_(x, non_blocking=True), {"copy to the host": 1}),
    "to the host": (lambda x: x.to("cpu", non_blocking=True), {}),
    "pinned target": (lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True), {}),
    "cuda": (lambda x: torch.ones(3).cuda(), {"copy to the device": 1}),
    "tensor": (lambda x: torch.tensor([1, 2], device="cuda"), {"copy to the device": 1}),
    "new_tensor": (lambda x: x.new_tensor([1, 2]), {"copy to the device": 1}),
    "pinned, blocking": (lambda x: torch.ones(3).pin_memory().cuda(), {"copy to the device": 1}),
    "pinned": (lambda x: torch.ones(4).pin_memory()[1:].to("cuda", non_blocking=True), {}),
    "pageable": (lambda x: torch.ones(3).to("cuda", non_blocking=True), {PAGEABLE: 1}),
    "copy on the device": (lambda x: torch.empty_like(x).copy_(x), {}),
    "mask": (lambda x: x[x > 1], {"mask index": 1}),
    "fill by mask": (fill_by_mask, {}),
    "set by mask": (set_by_mask, {"mask index": 1}),
    "index": (lambda x: x[torch.zeros_like(x).long()], {}),
    "index of the host": (lambda x: x[torch.tensor([0, 1])], {"index from the host": 1}),
    "nonzero": (lambda x: x.nonzero(), {"nonzero": 1}),
    "where": (lambda x: torch.where(x > 1), {"nonzero": 1}),
    "unique": (lambda x: x.unique(), {"unique": 1}),
    "nms": (lambda x: torchvision.ops.nms(x.new_ones(4, 4), x.new_ones(4), 0.5), {"nms": 1}),
    "sort": (lambda x: x.sort(), {}),
    "topk": (lambda x: x.topk(2), {}),
    "synchronize": (lambda x: torch.cuda.synchronize(), {"synchronize": 1}),
    "stream": (lambda x: torch.cuda.current_stream().synchronize(), {"synchronize": 1}),
    "save": (lambda x: torch.save({"x": x}, io.BytesIO()), {"copy to the host": 1}),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits(three, name):
    function, expected = WAITS[name]
    assert counted(lambda: function(three)) == expected


def test_pageable_copies_are_listed_and_not_counted():
    with waits.counted() as found:
        torch.ones(3).to("cuda", non_blocking=True)
        torch.ones(3).to("cuda")
    assert total(found) == 1
    assert PAGEABLE in table(found)


def test_waits_in_other_threads_and_in_backward(three):
    class Waiting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    def work():
        assert torch.zeros(2, device="cuda").sum().item() == 0

    thread = threading.Thread(target=work)
    assert counted(lambda: (thread.start(), thread.join())) == {"item": 1}
    three.requires_grad_()
    assert counted(lambda: Waiting.apply(three).sum().backward()) == {"item": 1}
    assert three.grad.tolist() == [3, 3, 3]


def test_a_copy_arrives_when_it_was_waited_for(three):
    target = torch.zeros(3, pin_memory=True)
    target.copy_(three, non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    whole = (three * 2).long().to("cpu", non_blocking=True)
    assert target.isnan().all()
    assert counted(event.synchronize) == {"event": 1}
    assert target.tolist() == [1, 2, 3]
    assert whole.tolist() != [2, 4, 6]
    three.sum().item()
    assert whole.tolist() == [2, 4, 6]


@pytest.mark.refused
def test_pinned_memory_must_not_change_during_a_copy():
    pinned = torch.ones(3).pin_memory()
    pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    pinned.zero_()
    pinned.to("cuda", non_blocking=True)
    pinned.fill_(2)
    with pytest.raises(RuntimeError, match="pinned memory was changed"):
        torch.cuda.synchronize()


@pytest.mark.refused
def test_streams_must_wait_for_each_other(three):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        made = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        assert torch.cuda.current_stream() is side
    with pytest.raises(RuntimeError, match="has not waited for it"):
        made + three
    torch.cuda.current_stream().wait_stream(side)
    later = made + three
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="has not waited for it"):
        later.add_(1)
    event = torch.cuda.Event()
    event.record()
    side.wait_event(event)
    with torch.cuda.stream(side):
        later.add_(1).record_stream(side)
    torch.cuda.synchronize()
    assert later.tolist() == [3, 4, 5]


def build_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    return nn.Sequential(*layers)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "fused": lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True),
    "adamax": lambda parameters: torch.optim.Adamax(parameters, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_the_cpu(name):
    trained, states = {}, {}
    for device in ("cpu", "cuda"):
        model = build_network()
        before = [*model.parameters()]
        model = copy.deepcopy(model.to(device))
        assert len(before) == len([*model.parameters()])
        optimizer = OPTIMIZERS[name](model.parameters())
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1]).to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with waits.counted() as found:
                optimizer.step()
            assert total(found) == 0
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        states[device] = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(states[device]["model"])
        optimizer.load_state_dict(states[device]["optimizer"])
        trained[device] = {key: value.cpu() for key, value in model.state_dict().items()}
    for key, value in trained["cpu"].items():
        assert torch.allclose(trained["cuda"][key], value, atol=1e-5), key
        assert torch.equal(states["cuda"]["model"][key], trained["cuda"][key])


def test_parameters_stay_parameters():
    model = build_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.to("cuda")
    assert all(isinstance(weight, nn.Parameter) and weight.is_cuda for weight in model.parameters())
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


def test_autocast():
    model, images = build_network().cuda(), torch.rand(2, 3, 8, 8).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        scores = model(images)
        assert scores.dtype == torch.bfloat16
        assert scores.softmax(1).dtype == torch.float32
    scores.float().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32


def test_a_recurrent_network_is_that_of_the_cpu():
    torch.manual_seed(0)
    plain, words = nn.GRU(3, 4, batch_first=True), torch.rand(2, 5, 3)
    moved = copy.deepcopy(plain).cuda()
    expected, found = plain(words)[0], moved(words.cuda())[0]
    assert torch.allclose(found.cpu(), expected, atol=1e-6)
    expected.sum().backward()
    found.sum().backward()
    for one, other in zip(moved.parameters(), plain.parameters()):
        assert torch.allclose(one.grad.cpu(), other.grad, atol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        assert moved(words.cuda())[0].dtype == torch.bfloat16


def test_inference_mode_views_and_shapes_changed_in_place(three):
    with torch.inference_mode():
        part = three[1:].mul(2).view(2, 1)
        assert part.unsqueeze_(0).shape == (1, 2, 1)
        assert torch.nn.functional.linear(part.transpose(1, 2), three.new_ones(1, 2)).tolist() == [[[10]]]
    row = torch.zeros(2, 3, device="cuda")
    row[1] = three
    row[0].copy_(three.flip(0))
    assert row.tolist() == [[3, 2, 1], [1, 2, 3]]


def test_regions_are_pooled_with_gradients():
    features = torch.rand(1, 4, 8, 8).cuda().requires_grad_()
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).cuda()
    for pool in (torchvision.ops.roi_align, torchvision.ops.roi_pool):
        features.grad = None
        pool(features, [boxes], 3).sum().backward()
        assert features.grad.is_cuda
        assert features.grad.sum().item() > 0
