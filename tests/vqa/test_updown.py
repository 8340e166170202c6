"""Up-Down gives the same as hengyuan-hu's code, and as loops."""

import numpy as np
import pytest
import torch
from vqa_examples import double_weights, golden, inputs, run, slow_updown, small

from bua.errors import InputError
from bua.tasks.layers import Projection
from bua.vqa import UpDown
from bua.vqa.classifier import TwoStreamClassifier


@torch.no_grad()
def test_logits_and_attention_are_those_of_hengyuan_hus_code(shared_data):
    model, expected = golden(UpDown, shared_data / "golden" / "vqa", "updown_vqa")
    mask = torch.ones(expected.features.shape[:2], dtype=torch.bool)
    logits, attention = model(expected.features, expected.spatials, mask, expected.question)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention[:, 0], expected.attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("attention", "size"), [("product", 24_851_177), ("concatenation", 24_850_152)])
def test_the_real_size(attention, size):
    with torch.device("meta"):
        model = UpDown(19_901, 3129, attention=attention)
    assert sum(value.numel() for value in model.parameters()) == size


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention": "concatenation"},
        {"activation": "glu"},
        {"attention": "concatenation", "activation": "gated_tanh", "two_streams": True, "weight_norm": False},
        {"two_streams": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_a_loop_over_boxes(arguments):
    model, batch, sizes = small(UpDown, **arguments).eval(), inputs([4, 1, 6]), [4, 1, 6]
    logits, attention = run(model, batch)
    assert attention.shape == (3, 1, 6)
    activation = arguments.get("activation", "relu")
    for i, size in enumerate(sizes):
        features = batch.features[i, :size].double().numpy()
        expected = slow_updown(double_weights(model), features, batch.question[i].tolist(), activation)
        np.testing.assert_allclose(logits[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(attention[i, 0, :size], expected[1], atol=1e-6)


@pytest.mark.parametrize("activation", ["glu", "gated_tanh"])
@pytest.mark.parametrize(
    ("arguments", "gates"),
    [
        ({}, ["attention.image", "attention.question", "image", "question", "classifier.hidden"]),
        (
            {"attention": "concatenation", "two_streams": True},
            ["attention.joint", "image", "question", "classifier.text", "classifier.image"],
        ),
    ],
)
def test_all_projections_have_gates(activation, arguments, gates):
    model = small(UpDown, activation=activation, **arguments)
    found = [name for name, layer in model.named_modules() if isinstance(layer, Projection) and hasattr(layer, "gate")]
    assert found == gates
    logits, _ = run(model, inputs([3, 2]))
    logits.sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("attention", ["product", "concatenation"])
def test_an_image_without_regions_gets_no_attention(attention):
    model = small(UpDown, attention=attention)
    logits, found = run(model, inputs([3, 0]))
    assert found[1].abs().sum() == 0
    logits.sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_weight_normalisation_can_be_left_out():
    names = [name for name, _ in small(UpDown, weight_norm=False).named_parameters()]
    assert not [name for name in names if name.endswith("weight_g")]
    assert "attention.score.weight" in names


def test_an_unknown_attention():
    with pytest.raises(ValueError, match="use product or concatenation"):
        UpDown(3, 4, attention="sum")


@pytest.mark.parametrize("arguments", [{}, {"weight_norm": False}, {"norm_whole_matrix": False}], ids=str)
@torch.no_grad()
def test_the_text_stream_starts_with_the_vectors_of_the_answers(arguments):
    classifier = TwoStreamClassifier(5, 3, text_dim=4, image_dim=6, **arguments)
    before = classifier.text_answers(torch.eye(4)) - classifier.text_answers.linear.bias
    vectors = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [2, 0, 0, 0]])
    classifier.initialize_text(vectors)
    after = classifier.text_answers(torch.eye(4)) - classifier.text_answers.linear.bias
    torch.testing.assert_close(after[:, [0, 2]], vectors.T[:, [0, 2]])
    # An answer without a vector keeps its weights.
    torch.testing.assert_close(after[:, 1], before[:, 1])


def test_vectors_that_do_not_fit_the_answers():
    classifier = TwoStreamClassifier(5, 3, text_dim=4, image_dim=6)
    with pytest.raises(InputError, match=r"folder: the word vectors have 2 dimensions, but EMBEDDING_DIM is 4; set it"):
        classifier.initialize_text(torch.ones(3, 2), source="folder")
    with pytest.raises(ValueError, match="2 answer vectors for a vocabulary of 3 answers"):
        classifier.initialize_text(torch.ones(2, 4))


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
