import math

import pytest
import torch

from bua.modeling.losses import attribute_loss, box_regression_loss, smooth_l1_loss


def obvious_attribute_loss(logits, attributes, no_attribute):
    losses = []
    for row, labels in zip(logits.tolist(), attributes.tolist()):
        labels = [label for label in labels if label >= 0]
        if not labels and no_attribute is not None:
            labels = [no_attribute]
        if labels:
            total = math.log(sum(math.exp(v) for v in row))
            losses.append(sum(total - row[label] for label in labels) / len(labels))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("no_attribute", [None, 6])
def test_attribute_loss_agrees_with_the_loop(no_attribute):
    torch.manual_seed(0)
    logits = torch.randn(5, 7)
    attributes = torch.tensor([[0, 3, -1], [-1, -1, -1], [5, -1, -1], [1, 2, 4], [-1, -1, -1]])
    loss = attribute_loss(logits, attributes, no_attribute)
    assert loss.item() == pytest.approx(obvious_attribute_loss(logits, attributes, no_attribute), rel=1e-5)
    assert attributes[1].tolist() == [-1, -1, -1]  # the caller's labels are left as they were


def test_attribute_loss_without_labels_is_zero_and_still_reaches_the_weights():
    logits = torch.randn(2, 7, requires_grad=True)
    loss = attribute_loss(logits, torch.full((2, 3), -1), None)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0
    assert attribute_loss(logits[:0], torch.zeros(0, 3, dtype=torch.int64), 6).item() == 0


def test_smooth_l1_is_quadratic_then_linear():
    prediction = torch.tensor([0.05, 1.0])
    # The original's sigma of 3: 0.5 (3x)^2 below 1/9, |x| - 0.5/9 above.
    assert smooth_l1_loss(prediction, torch.zeros(2), 1 / 9).item() == pytest.approx(0.5 * 0.15**2 + 1 - 0.5 / 9)
    assert smooth_l1_loss(prediction, torch.zeros(2), 0).item() == pytest.approx(1.05)


def test_smooth_l1_weights():
    prediction, target = torch.randn(3, 4), torch.randn(3, 4)
    weighted = smooth_l1_loss(prediction, target, 0.5, torch.tensor([[1.0], [0], [1]]))
    torch.testing.assert_close(weighted, smooth_l1_loss(prediction[::2], target[::2], 0.5))


def test_box_regression_reads_the_deltas_of_the_regions_own_class():
    deltas = torch.arange(24.0).view(2, 12)
    loss = box_regression_loss(deltas, torch.tensor([2, 0]), torch.zeros(2, 4), 3, beta=0)
    assert loss.item() == 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15
    assert box_regression_loss(deltas[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 3, beta=0) == 0
