import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops.misc
from test_detector import slim_detector

from bua.modeling.backbone import ConvNorm, FrozenBatchNorm2d


def randomise(norm):
    """Gives a normalisation statistics that are not those of the start."""
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.normal_(norm.bias)
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.uniform_(norm.running_var, 0.1, 3)


def unfolded(conv, x):
    """Returns the convolution followed by torchvision's normalisation."""
    norm = torchvision.ops.misc.FrozenBatchNorm2d(conv.out_channels)
    norm.load_state_dict(conv.norm.state_dict())
    return norm(F.conv2d(x, conv.weight, None, conv.stride, conv.padding))


@pytest.fixture
def conv():
    torch.manual_seed(0)
    conv = ConvNorm(3, 8, 3, "FrozenBN", padding=1)
    randomise(conv.norm)
    return conv


@pytest.mark.parametrize("learns", [True, False])
def test_a_frozen_norm_in_the_convolution_gives_the_same(conv, learns):
    conv.weight.requires_grad_(learns)
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    sources = [x, conv.weight][: 1 + learns]
    out, expected = conv(x), unfolded(conv, x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(out)
    for value, wanted in zip(
        torch.autograd.grad(out, sources, gradient), torch.autograd.grad(expected, sources, gradient)
    ):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learns", [True, False])
def test_changed_weights_and_statistics_are_noticed(conv, learns):
    conv.weight.requires_grad_(learns)
    x = torch.randn(1, 3, 5, 5)
    other = ConvNorm(3, 8, 3, "FrozenBN", padding=1)
    randomise(other.norm)

    def change_statistics():
        conv.norm.running_var.mul_(3)

    changes = [
        change_statistics,
        lambda: conv.load_state_dict(other.state_dict()),
        lambda: conv.double().float(),
        lambda: conv.load_state_dict({k: v + 1 for k, v in other.state_dict().items()}, assign=True),
    ]
    with torch.no_grad():
        for change in changes:
            conv(x)
            change()
            torch.testing.assert_close(conv(x), unfolded(conv, x), rtol=1e-5, atol=1e-5)


def test_copies_compute_from_their_own_weights(conv):
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 3, 5, 5)
    conv(x)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        copied.weight.mul_(2)
        torch.testing.assert_close(copied(x), unfolded(copied, x), rtol=1e-5, atol=1e-5)
    assert list(conv.state_dict()) == [
        "weight",
        *(f"norm.{x}" for x in ("weight", "bias", "running_mean", "running_var")),
    ]


def test_training_works_after_inference_mode(conv):
    x = torch.randn(1, 3, 5, 5)
    norm = conv.norm
    with torch.inference_mode():
        conv(x)
        norm(torch.randn(1, 8, 5, 5))
    conv(x).sum().backward()
    hidden = torch.randn(1, 8, 5, 5, requires_grad=True)
    norm(hidden).sum().backward()
    assert hidden.grad is not None


def test_a_frozen_norm_keeps_the_dtype():
    norm = FrozenBatchNorm2d(8)
    randomise(norm)
    x = torch.randn(2, 8, 3, 3)
    expected = torchvision.ops.misc.FrozenBatchNorm2d.forward(norm, x)
    torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x.bfloat16()).float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("version", [1, 2])
def test_the_feature_map_is_bfloat16_in_mixed_precision(version):
    detector = slim_detector("MODEL.BUA.RESNET_VERSION", str(version), norm="FrozenBN")
    images = torch.randn(1, 3, 64, 64)
    expected = detector.backbone(images)
    for _ in range(2):  # the second one with the converted weights of the first
        with torch.autocast("cpu", torch.bfloat16):
            feature_map = detector.backbone(images)
        assert feature_map.dtype == torch.bfloat16
        assert F.cosine_similarity(feature_map.float().flatten(), expected.flatten(), dim=0) > 0.999
    assert detector.backbone(images).dtype == torch.float32
    torch.testing.assert_close(detector.backbone(images), expected)
