"""The counter against loops over boxes."""

import numpy as np
import pytest
import torch
from vqa_examples import slow_count

from bua.vqa.counter import Counter, _product


def random_boxes(*shape: int) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2).sort(dim=-2).values
    return corners.flatten(-2)


def random_counter(objects: int) -> Counter:
    counter = Counter(objects)
    torch.nn.init.uniform_(counter.weight[:, 1:].detach(), -1, 2)
    return counter


def test_equals_a_loop_over_edges():
    torch.manual_seed(0)
    for objects, boxes_in_image in ((4, 9), (5, 5), (6, 2), (3, 0)):
        counter = random_counter(objects)
        boxes, logits = random_boxes(2, boxes_in_image), torch.randn(2, boxes_in_image) * 2
        found = counter(boxes, logits)
        weight = counter.weight.detach().double().numpy()
        expected = [slow_count(weight, b.double().numpy(), a.double().numpy(), objects) for b, a in zip(boxes, logits)]
        np.testing.assert_allclose(found.detach(), expected, atol=2e-6)


def test_counts_things_not_boxes():
    """Five attended boxes of two things give two for all functions, as in figure 3 of the paper."""
    first, second = torch.tensor([0.0, 0.0, 0.4, 0.4]), torch.tensor([0.5, 0.5, 1.0, 1.0])
    boxes = torch.stack([first, second, first, first, second, torch.tensor([0.6, 0.0, 0.9, 0.3])])
    logits = torch.tensor([50.0, 50.0, 50.0, 50.0, 50.0, -50.0])
    found = random_counter(10)(boxes[None], logits[None])[0]
    assert found.argmax() == 2
    torch.testing.assert_close(found[2], found.sum(), atol=1e-5, rtol=0)


def test_the_count_is_computed_in_float32_in_autocast():
    torch.manual_seed(1)
    counter, boxes, logits = random_counter(10), random_boxes(3, 12), torch.randn(3, 12)
    expected = counter(boxes, logits)
    with torch.autocast("cpu", torch.bfloat16):
        found = counter(boxes, logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    # What comes in float16 is computed in float32, whose small numbers are not 0: a box without area has no nan.
    assert counter(torch.zeros(1, 10, 4).half(), torch.zeros(1, 10).half()).isfinite().all()


def test_gradients_are_finite_where_nothing_is_attended():
    counter, logits = random_counter(10), torch.full((1, 10), torch.finfo(torch.float32).min, requires_grad=True)
    counter(torch.zeros(1, 10, 4), logits).sum().backward()
    assert logits.grad.isfinite().all()
    assert counter.weight.grad.isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 5, 7, 10])
def test_the_product_is_that_of_prod_with_its_gradient(count):
    torch.manual_seed(count)
    factors = torch.rand(4, count, 3, 2, dtype=torch.float64)
    factors[0, 0], factors[1, :2] = 0, 0
    factors.requires_grad_()
    found, expected = _product(factors), factors.prod(dim=1)
    torch.testing.assert_close(found, expected)
    weights = torch.rand_like(found)
    gradients = [torch.autograd.grad((value * weights).sum(), factors)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)
