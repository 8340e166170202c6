"""Up-Down gives the same as hengyuan-hu's code, and as loops."""

import numpy as np
import torch
from vqa_examples import double_weights, golden, inputs, run, slow_updown, small

from bua.tasks.layers import Projection
from bua.vqa import UpDown


@torch.no_grad()
def test_logits_and_attention_are_those_of_hengyuan_hus_code(shared_data):
    model, expected = golden(UpDown, shared_data / "golden" / "vqa", "updown_vqa")
    mask = torch.ones(expected.features.shape[:2], dtype=torch.bool)
    logits, attention = model(expected.features, expected.spatials, mask, expected.question)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention[:, 0], expected.attention, atol=1e-5, rtol=0)


def test_the_real_size():
    with torch.device("meta"):
        model = UpDown(19_901, 3129)
    assert sum(value.numel() for value in model.parameters()) == 24_851_177


@torch.no_grad()
def test_equals_a_loop_over_boxes():
    model, batch, sizes = small(UpDown).eval(), inputs([4, 1, 6]), [4, 1, 6]
    logits, attention = run(model, batch)
    assert attention.shape == (3, 1, 6)
    for i, size in enumerate(sizes):
        features = batch.features[i, :size].double().numpy()
        expected = slow_updown(double_weights(model), features, batch.question[i].tolist())
        np.testing.assert_allclose(logits[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(attention[i, 0, :size], expected[1], atol=1e-6)


def test_all_projections_have_gates_with_gated_tanh():
    model = small(UpDown, activation="gated_tanh")
    gates = [name for name, layer in model.named_modules() if isinstance(layer, Projection) and hasattr(layer, "gate")]
    assert gates == ["attention.image", "attention.question", "image", "question", "classifier.hidden"]
    logits, _ = run(model, inputs([3, 2]))
    logits.sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_boxes_do_not_matter():
    model, batch = small(UpDown).eval(), inputs([3])
    logits, _ = run(model, batch)
    batch.boxes = torch.rand_like(batch.boxes)
    assert torch.equal(run(model, batch)[0], logits)


@torch.no_grad()
def test_glimpses_look_at_different_regions():
    model, batch = small(UpDown, glimpses=2).eval(), inputs([4, 1, 6])
    _, attention = run(model, batch)
    assert attention.shape == (3, 2, 6)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(3, 2))
    assert not torch.allclose(attention[:, 0], attention[:, 1])
