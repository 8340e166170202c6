"""BAN against the seed and against loops."""

import numpy as np
import pytest
import torch
from vqa_examples import LENGTH, WORDS, double_weights, golden, inputs, run, slow_ban, slow_count, small

from bua.tasks.bilinear import BilinearAttention
from bua.tasks.released import constructor_arguments, read_released_checkpoint
from bua.vqa import BAN
from bua.vqa.released import RELEASED_MODELS


@torch.no_grad()
def test_the_seeds_logits_and_attention(shared_data):
    folder = shared_data / "golden" / "vqa"
    weights = read_released_checkpoint(folder / "ban_vqa.pth", RELEASED_MODELS)[1]
    model = BAN(**constructor_arguments(weights)).eval()
    model.load_state_dict(weights)
    seed = golden(folder / "ban_vqa.npz")
    mask = seed.features.abs().sum(dim=2) > 0
    assert not mask.all()
    logits, attention = model(seed.features, seed.spatials, mask, seed.question)
    torch.testing.assert_close(logits, seed.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, seed.attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, 90_618_566),
        ({"glimpses": 4}, 66_933_426),
        ({"second_embedding": False}, 83_495_966),
    ],
)
def test_the_real_sizes(arguments, size):
    with torch.device("meta"):
        model = BAN(19_901, 3129, **arguments)
    assert sum(value.numel() for value in model.parameters()) == size


@torch.no_grad()
@pytest.mark.parametrize(("second_embedding", "counted_objects"), [(True, 4), (False, 0)])
def test_equals_a_loop_over_pairs(second_embedding, counted_objects):
    model = small(BAN, second_embedding=second_embedding, counted_objects=counted_objects).eval()
    sizes = [6, 1, 4]
    batch = inputs(sizes)
    logits, attention = run(model, batch)
    assert attention.shape == (3, 3, 6, LENGTH)
    weights = double_weights(model)

    def count(boxes, attended):
        return slow_count(weights["counter.weight"], boxes, attended, counted_objects)

    for i, size in enumerate(sizes):
        features, boxes = (x[i, :size].double().numpy() for x in (batch.features, batch.boxes))
        question = batch.question[i].tolist()
        expected = slow_ban(weights, features, boxes[:, :4], question, count if counted_objects else None)
        np.testing.assert_allclose(logits[i], expected[0], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(attention[i, :, :size], expected[1], atol=1e-6)


@torch.no_grad()
def test_more_glimpses_than_the_seed_can():
    """The seed crashes at more than 32; the arithmetic is the same."""
    attention = BilinearAttention(5, 4, glimpses=40).eval()
    features, states = torch.randn(2, 3, 5), torch.randn(2, 6, 4)
    products = torch.einsum("bnk,blk->bnlk", attention.image(features), attention.words(states))
    expected = attention.forms(products).permute(0, 3, 1, 2)
    torch.testing.assert_close(attention(features, states), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padded_words():
    batch = inputs([5, 3], words=3)
    longer = inputs([5, 3], words=3)
    longer.question = torch.cat([batch.question, torch.full((2, 4), WORDS)], dim=1)
    seed, clean = small(BAN).eval(), small(BAN, attend_padded_words=False).eval()
    assert (run(seed, batch)[0] - run(seed, longer)[0]).abs().max() > 0.01
    logits, attention = run(clean, batch)
    torch.testing.assert_close(run(clean, longer)[0], logits, atol=1e-5, rtol=1e-5)
    assert attention[..., 3:].abs().max() == 0
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 3))
    batch.question = batch.question[:, :3]
    torch.testing.assert_close(run(seed, batch)[0], logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_question_without_a_word():
    batch = inputs([5, 3], words=0)
    for attend in (True, False):
        logits, attention = run(small(BAN, attend_padded_words=attend).eval(), batch)
        assert logits.isfinite().all()
        assert attention.isfinite().all()
