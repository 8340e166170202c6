"""What holds for both models: padding does nothing, low precision is near, and both learn."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from low_precision import float32_layers
from vqa_examples import ANSWERS, inputs, run, small

from bua.vqa import BAN, UpDown

VARIANTS = [
    (UpDown, {}),
    (UpDown, {"activation": "gated_tanh", "norm_whole_matrix": False}),
    (UpDown, {"glimpses": 2, "standardize": True}),
    (BAN, {}),
    (BAN, {"attend_padded_words": False, "norm_whole_matrix": False, "second_embedding": False}),
]
both = pytest.mark.parametrize(("kind", "arguments"), VARIANTS)


@both
@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 13), min_size=1, max_size=3), room=st.integers(0, 12), seed=st.integers(0, 999))
def test_padded_rows_have_no_effect(kind, arguments, sizes, room, seed):
    """An image of a batch has the same answer as alone, and its padding gets neither attention nor gradient."""
    model, batch = small(kind, **arguments).eval(), inputs(sizes, room=room, seed=seed)
    batch.features.requires_grad_()
    logits, attention = run(model, batch)
    logits.square().sum().backward()
    assert batch.features.grad[~batch.mask].abs().sum() == 0
    assert batch.features.grad.isfinite().all()
    by_box = attention.sum(dim=3).mean(dim=1) if kind is BAN else attention.mean(dim=1)
    assert by_box[~batch.mask].abs().sum() == 0
    torch.testing.assert_close(by_box.sum(dim=1), torch.tensor([float(size > 0) for size in sizes]))
    for i, size in enumerate(sizes):
        alone = inputs([size])
        alone.features, alone.boxes = batch.features[i : i + 1, :size].detach(), batch.boxes[i : i + 1, :size]
        alone.question = batch.question[i : i + 1]
        torch.testing.assert_close(run(model, alone)[0][0], logits[i], atol=1e-5, rtol=1e-5)


@both
def test_training_with_an_image_without_boxes(kind, arguments):
    model, batch = small(kind, **arguments), inputs([0, 3], room=1)
    logits, _ = run(model, batch)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(value.grad.isfinite().all() for value in model.parameters())


@both
def test_bfloat16_gives_nearly_the_same(kind, arguments):
    model, batch = small(kind, **arguments), inputs([5, 0, 12])
    expected = run(model.eval(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model, batch)
        training = run(model.train(), batch)[0]
    for ours, theirs in zip(found, expected):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 0.03 * theirs.abs().max()
    F.binary_cross_entropy_with_logits(training, torch.zeros_like(training)).backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


@both
def test_recurrent_layers_and_logits_are_computed_in_float32(kind, arguments):
    model, batch = small(kind, **arguments), inputs([5, 0, 12])
    layers = float32_layers(model, lambda: run(model, batch))
    assert {"gru", "classifier.answers.linear"} <= layers
    assert ("attention.score" in layers) == (kind is UpDown)
    assert not layers & {"attention.image.linear", "classifier.hidden.linear"}


@both
def test_a_few_questions_can_be_learned(kind, arguments):
    model, batch = small(kind, **arguments, hidden_dim=32), inputs([4, 7, 2, 11, 5, 3])
    answers = F.one_hot(torch.arange(6) % ANSWERS, ANSWERS).float()
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = ANSWERS * F.binary_cross_entropy_with_logits(run(model, batch)[0], answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
    assert run(model.eval(), batch)[0].argmax(dim=1).tolist() == answers.argmax(dim=1).tolist()
