"""Shared layers against PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bua.tasks.layers import Projection, Standardize, WeightNormLinear, in_float32, masked_softmax


@pytest.mark.parametrize("whole", [True, False])
def test_weight_norm_is_pytorchs(whole):
    torch.manual_seed(0)
    ours = WeightNormLinear(5, 4, norm_whole_matrix=whole)
    torch.testing.assert_close(ours.weight(), ours.weight_v)
    nn.init.uniform_(ours.weight_g, 1, 2)
    theirs = parametrizations.weight_norm(nn.Linear(5, 4), dim=None if whole else 0)
    parameters = theirs.parametrizations.weight
    with torch.no_grad():
        parameters.original0.copy_(ours.weight_g)
        parameters.original1.copy_(ours.weight_v)
        theirs.bias.copy_(ours.bias)
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    for model in (ours, theirs):
        model(x).square().sum().backward()
    torch.testing.assert_close(ours.weight_g.grad, parameters.original0.grad)
    torch.testing.assert_close(ours.weight_v.grad, parameters.original1.grad)
    # A direction has no length of its own.
    with torch.no_grad():
        ours.weight_v.mul_(3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_projections():
    torch.manual_seed(0)
    x = torch.randn(3, 5)
    for activation in ("relu", None):
        layer = Projection(5, 4, activation=activation)
        linear = x @ layer.linear.weight().T + layer.linear.bias
        torch.testing.assert_close(layer(x), linear.clamp(min=0) if activation else linear)
    gated = Projection(5, 4, activation="gated_tanh")
    torch.testing.assert_close(gated(x), gated.linear(x).tanh() * gated.gate(x).sigmoid())
    gated = Projection(5, 4, activation="glu")
    both = torch.cat([gated.linear(x), gated.gate(x)], dim=1)
    torch.testing.assert_close(gated(x), nn.functional.glu(both, dim=1))
    assert isinstance(Projection(5, 4, weight_norm=False).linear, nn.Linear)
    with pytest.raises(ValueError, match="use relu, glu, gated_tanh or None"):
        Projection(5, 4, activation="swish")


def test_dropout_is_of_the_input_and_of_training():
    torch.manual_seed(0)
    layer = Projection(1000, 1, activation=None, dropout=0.5)
    with torch.no_grad():
        layer.linear.weight_v.fill_(1.0)
        layer.linear.weight_g.fill_(1000**0.5)
        layer.linear.bias.zero_()
    x = torch.ones(1, 1000)
    kept = layer(x).item() / 2
    assert round(kept) == pytest.approx(kept, abs=1e-3)
    assert 400 < kept < 600
    assert layer.eval()(x).item() == pytest.approx(1000, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_in_float32(dtype):
    layer, x = nn.Linear(64, 3), torch.randn(5, 64).to(dtype)
    expected = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(in_float32(layer, x), expected)
        assert layer(x).dtype == torch.bfloat16
    layer.double()
    assert in_float32(layer, x.double()).dtype == torch.float64


def test_masked_softmax():
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    found = masked_softmax(logits, mask)
    torch.testing.assert_close(found[0, [0, 2]], logits[0, [0, 2]].softmax(0))
    assert found[:, 1].tolist() == [0, 0]
    assert found[1].tolist() == [0, 0, 0]
    found[:, 0].sum().backward()
    assert logits.grad[1].tolist() == [0, 0, 0]
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] > 0


def test_standardized_features():
    torch.manual_seed(0)
    standardize, features = Standardize(3), 5 + 2 * torch.randn(50, 3)
    assert torch.equal(standardize(features), features)
    features[:, 1] = 7
    standardize.fit(features)
    found = standardize(features)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=0, correction=0), torch.tensor([1.0, 0, 1]))
    standardize.fit(features, torch.tensor([1.0, 1, 6]))
    torch.testing.assert_close(standardize(features).std(dim=0, correction=0), torch.tensor([1.0, 0, 6]))
    # The same for all regions: nothing is divided by zero.
    standardize.fit(torch.ones(4, 3))
    assert torch.equal(standardize(torch.ones(2, 3)), torch.zeros(2, 3))
