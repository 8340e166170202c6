import numpy as np
import pytest
import torch
from caption_examples import FEATURES, VARIANTS, WORDS, images, small
from low_precision import float32_layers
from torch import nn

from bua.captioning import SpecialWords, UpDownCaptioner, caption_loss
from bua.captioning.updown import Cell


def step_through(model: UpDownCaptioner, features, mask, tokens):
    """Computes logits [B, L, V] and attention [B, L, n] for captions [B, L] step by step."""
    state, logits, attention = model.start(features, mask), [], []
    for word in tokens.unbind(1):
        predicted, looked, state = model.step(word.unsqueeze(1), state)
        logits.append(predicted)
        attention.append(looked)
    return torch.cat(logits, dim=1), torch.cat(attention, dim=1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(cell: Cell, inputs: dict[str, np.ndarray], output: np.ndarray, memory: np.ndarray):
    """Computes a step of an LSTM with a single matrix [4H, inputs and output], as Caffe's LSTMNode, for one image."""
    matrix = [cell.inputs[name].weight for name in inputs] + [cell.recurrent.weight]
    gates = torch.cat(matrix, dim=1).detach().double().numpy() @ np.concatenate([*inputs.values(), output])
    gates = (gates + cell.bias.detach().double().numpy()).reshape(4, -1)
    memory = sigmoid(gates[1]) * memory + sigmoid(gates[0]) * np.tanh(gates[2])
    return sigmoid(gates[3]) * np.tanh(memory), memory


def numpy_step(model: UpDownCaptioner, regions: np.ndarray, word: int, h1, c1, h2, c2):
    """Computes the layers of the original one by one, for one image with regions [boxes, D]."""

    def weight(layer: nn.Module) -> np.ndarray:
        return layer.weight.detach().double().numpy()

    inputs = {"word": weight(model.words)[word], "mean": regions.mean(axis=0), "language": h2}
    h1, c1 = lstm(model.attention_cell, inputs, h1, c1)
    hidden = np.tanh(regions @ weight(model.region_key).T + weight(model.query) @ h1)
    relevance = np.exp(hidden @ weight(model.relevance)[0])
    attention = relevance / relevance.sum()
    h2, c2 = lstm(model.language_cell, {"attention": h1, "attended": attention @ regions}, h2, c2)
    return weight(model.predict) @ h2 + model.predict.bias.detach().double().numpy(), attention, (h1, c1, h2, c2)


def test_original_has_the_papers_parameters():
    with torch.device("meta"):
        model = UpDownCaptioner(10_010)
    assert sum(p.numel() for p in model.parameters()) == 57_983_098


def test_gru_variant_has_the_parameters_of_its_authors_code():
    with torch.device("meta"):
        model = UpDownCaptioner(
            30_525, embedding_dim=1024, hidden_dim=1024, attention_dim=1024, cell="gru", weight_norm=True
        )
    embedding = prediction = 30_525 * 1024
    cells = 3 * 1024 * ((1024 + 2048 + 1024) + 1024 + 2) + 3 * 1024 * ((1024 + 2048) + 1024 + 2)
    attention = 1024 * 2048 + 1024 * 1024 + 1024
    lengths = 30_525 + 1024 + 1024 + 1
    expected = embedding + prediction + 30_525 + cells + attention + lengths
    assert sum(p.numel() for p in model.parameters()) == expected


def test_steps_agree_with_numpy():
    model, (features, _) = small(), images(3, 4)
    h1 = c1 = h2 = c2 = np.zeros(model.hidden_dim)
    for boxes, regions in ((3, features[0, :3]), (4, features[1])):
        memory, state = (h1, c1, h2, c2), model.start(regions.unsqueeze(0), torch.ones(1, boxes, dtype=torch.bool))
        for word in (0, 3, 5, 1):
            logits, attention, state = model.step(torch.tensor([[word]]), state)
            expected, looked, memory = numpy_step(model, regions.double().numpy(), word, *memory)
            np.testing.assert_allclose(logits[0, 0].detach(), expected, atol=1e-5)
            np.testing.assert_allclose(attention[0, 0].detach(), looked, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_forcing_equals_stepping(variant):
    model, (features, mask) = small(**VARIANTS[variant]), images(3, 0, 5, room=2)
    tokens = torch.randint(WORDS, (3, 2, 6))
    together = model(features, mask, tokens)
    assert together.shape == (3, 2, 6, WORDS)
    for caption in range(2):
        stepped, attention = step_through(model, features, mask, tokens[:, caption])
        torch.testing.assert_close(together[:, caption], stepped)
        torch.testing.assert_close(model(features, mask, tokens[:, caption]), stepped)
        torch.testing.assert_close(attention.sum(dim=2), mask.any(dim=1).float().unsqueeze(1).expand(3, 6))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cells_are_torchs(kind):
    cell = Cell(kind, 4, word=3, mean=2)
    reference = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind](5, 4)
    with torch.no_grad():
        reference.weight_ih.copy_(torch.cat([cell.inputs["word"].weight, cell.inputs["mean"].weight], dim=1))
        reference.weight_hh.copy_(cell.recurrent.weight)
        reference.bias_ih.copy_(cell.bias)
        reference.bias_hh.copy_(cell.recurrent.bias if kind == "gru" else torch.zeros_like(cell.bias))
    word, mean = torch.randn(6, 3), torch.randn(6, 2)
    state = torch.randn(cell.parts, 6, 4)
    expected = reference(torch.cat([word, mean], dim=1), tuple(state) if kind == "lstm" else state[0])
    result = cell(cell.read(word=word, mean=mean), tuple(state))
    torch.testing.assert_close(result, expected if kind == "lstm" else (expected,))


def test_padding_and_order_of_regions_do_not_matter():
    model, (features, mask) = small(), images(3, 5, room=1)
    tokens = torch.randint(WORDS, (2, 4))
    expected = model(features, mask, tokens)
    torch.testing.assert_close(model(features.masked_fill(~mask.unsqueeze(2), 9), mask, tokens), expected)
    order = torch.randperm(mask.shape[1])
    torch.testing.assert_close(model(features[:, order], mask[:, order], tokens), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_with_an_image_without_boxes(variant):
    model, (features, mask) = small(**VARIANTS[variant]).train(), images(0, 2, room=1)
    tokens = torch.randint(WORDS, (2, 4))
    logits = model(features, mask, tokens)
    caption_loss(logits, tokens, torch.ones_like(tokens, dtype=torch.bool), unk=None).backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # A bias that is the same for all regions does not change a softmax over them.
        assert parameter.grad.any() or name == "relevance.bias", name


def test_scheduled_sampling_reads_its_own_words():
    model, (features, mask) = small(), images(3, 4)
    tokens = torch.randint(WORDS, (2, 8))
    others = torch.cat([tokens[:, :1], (tokens[:, 1:] + 1) % WORDS], dim=1)

    def logits(tokens, probability):
        torch.manual_seed(5)
        return model(features, mask, tokens, sampling_probability=probability)

    torch.testing.assert_close(logits(tokens, 1.0), logits(others, 1.0))
    torch.testing.assert_close(logits(tokens, 1e-9), model(features, mask, tokens))
    some = logits(tokens, 0.5)
    torch.testing.assert_close(some[:, 0], model(features, mask, tokens)[:, 0])
    assert not torch.allclose(some, model(features, mask, tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16(variant):
    model, (features, mask) = small(**VARIANTS[variant]), images(3, 5)
    tokens = torch.randint(WORDS, (2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(features, mask, tokens)
        _, attention, state = model.step(tokens[:, :1], model.start(features, mask))
    assert logits.dtype == attention.dtype == state.language[0].dtype == torch.float32
    torch.testing.assert_close(logits, model(features, mask, tokens), atol=0.3, rtol=0.1)
    layers = float32_layers(model, lambda: model(features, mask, tokens))
    assert {"relevance", "predict"} <= layers
    assert "region_key" not in layers


def test_dropout_is_applied_only_if_asked_for():
    features, mask = images(4, 4)
    tokens = torch.randint(WORDS, (2, 5))
    for arguments, changes in (({}, False), ({"dropout": 0.5}, True), ({"attention_dropout": 0.5}, True)):
        model = small(**arguments).train()
        assert torch.equal(model(features, mask, tokens), model(features, mask, tokens)) != changes


def test_initial_values_are_the_originals():
    torch.manual_seed(0)
    model = UpDownCaptioner(50, feature_dim=64, embedding_dim=40, hidden_dim=30, attention_dim=20)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.3), name
        elif name.endswith("cell.bias"):
            assert parameter.view(4, 30).sum(dim=1).tolist() == [0, 30, 0, 0]
        else:
            assert not parameter.any(), name


@pytest.mark.parametrize("argument", ["cell", "attention_activation"])
def test_unknown_choices(argument):
    with pytest.raises(ValueError, match=argument):
        UpDownCaptioner(WORDS, feature_dim=FEATURES, **{argument: "other"})


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_a_mean_over_words_that_count(weighted):
    logits = torch.randn(2, 4, WORDS)
    targets = torch.tensor([[3, 1, 4, 0], [2, 0, 1, 5]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    weights = torch.tensor([0.5, -2.0]) if weighted else torch.ones(2)
    total, count = 0.0, 0
    for row in range(2):
        for place in range(4):
            target = int(targets[row, place])
            if mask[row, place] and target != 1:
                total -= float(weights[row] * logits[row, place].log_softmax(dim=0)[target])
                count += 1
    loss = caption_loss(logits, targets, mask, weights=weights if weighted else None)
    assert count == 5
    assert loss.item() == pytest.approx(20 * total / 5, rel=1e-5)
    assert caption_loss(logits, torch.ones_like(targets), mask).item() == 0
    assert caption_loss(logits, torch.ones_like(targets), mask, unk=None).item() > 0


def test_special_words_by_default_are_the_originals():
    assert small().special == SpecialWords(begin=0, end=0, unk=1, pad=0)
