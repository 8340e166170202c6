"""BAN gives the same as ban-vqa's code, and as loops."""

import numpy as np
import pytest
import torch
from vqa_examples import LENGTH, WORDS, double_weights, golden, inputs, run, slow_ban, slow_count, small

from bua.config_files import find_config
from bua.tasks.bilinear import BilinearAttention
from bua.vqa import BAN
from bua.vqa.config import load_cfg


@torch.no_grad()
def test_logits_and_attention_are_those_of_ban_vqa(shared_data):
    model, expected = golden(BAN, shared_data / "golden" / "vqa", "ban_vqa")
    mask = expected.features.abs().sum(dim=2) > 0
    assert not mask.all()
    logits, attention = model(expected.features, expected.spatials, mask, expected.question)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, expected.attention, atol=1e-5, rtol=0)


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
def test_more_glimpses_than_ban_vqa_allows():
    """ban-vqa's code crashes with more than 32 glimpses; the arithmetic is the same."""
    attention = BilinearAttention(5, 4, glimpses=40).eval()
    features, states = torch.randn(2, 3, 5), torch.randn(2, 6, 4)
    products = torch.einsum("bnk,blk->bnlk", attention.image(features), attention.words(states))
    expected = attention.forms(products).permute(0, 3, 1, 2)
    torch.testing.assert_close(attention(features, states), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padded_words_get_attention_only_if_asked_for():
    batch = inputs([5, 3], words=3)
    longer = inputs([5, 3], words=3)
    longer.question = torch.cat([batch.question, torch.full((2, 4), WORDS)], dim=1)
    attending, masking = small(BAN).eval(), small(BAN, attend_padded_words=False).eval()
    assert (run(attending, batch)[0] - run(attending, longer)[0]).abs().max() > 0.01
    logits, attention = run(masking, batch)
    torch.testing.assert_close(run(masking, longer)[0], logits, atol=1e-5, rtol=1e-5)
    assert attention[..., 3:].abs().max() == 0
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 3))
    batch.question = batch.question[:, :3]
    torch.testing.assert_close(run(attending, batch)[0], logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_question_without_a_word():
    batch = inputs([5, 3], words=0)
    for attend in (True, False):
        logits, attention = run(small(BAN, attend_padded_words=attend).eval(), batch)
        assert logits.isfinite().all()
        assert attention.isfinite().all()


def test_the_configuration_of_the_best_single_model():
    """The learning rates are those that ban-vqa's train.py has with and without its option --use_both."""
    rates = {}
    for name in ("ban", "ban_best"):
        cfg = load_cfg(find_config(f"vqa/{name}.yaml"))
        rates[name] = [cfg.SOLVER.BASE_LR * factor for factor in cfg.SOLVER.EPOCH_FACTORS]
        assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.OPTIMIZER) == (13, 256, "Adamax")
        assert (cfg.MODEL.BAN.GLIMPSES, cfg.MODEL.BAN.SECOND_EMBEDDING, cfg.DATA.WORD_VECTORS) == (8, True, "authors")
    assert rates["ban"] == pytest.approx([5e-4, 1e-3, 1.5e-3, *[2e-3] * 7, 5e-4, 5e-4, 1.25e-4])
    assert rates["ban_best"] == pytest.approx([3.5e-4, 7e-4, 1.05e-3, *[1.4e-3] * 7, 3.5e-4, 3.5e-4, 8.75e-5])
    assert (cfg.DATA.TRAIN, cfg.DATA.VAL) == (("train", "val", "vg_train", "vg_val"), "")
