"""BAN for grounding gives the same as ban-vqa's code, and as a loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from low_precision import float32_layers

from bua.grounding import BANGrounding
from bua.grounding.ban import MASKED
from bua.grounding.released import RELEASED_MODELS
from bua.tasks.released import constructor_arguments, read_released_checkpoint

WORDS, FEATURES = 12, 7
SIZES = {"feature_dim": FEATURES, "embedding_dim": 5, "hidden_dim": 6}


def small(**arguments) -> BANGrounding:
    torch.manual_seed(3)
    model = BANGrounding(WORDS, **SIZES, **arguments)
    for name, value in model.named_parameters():
        if name.endswith("weight_g"):
            value.detach().mul_(1.5)
    return model


def inputs(regions: list[int], phrases: list[int], lengths: list[int], *, room: int = 0, seed: int = 0) -> tuple:
    """A batch whose sentences are about so many regions, with so many phrases and words; ``room`` more rows, columns
    and words of padding than needed, which holds numbers where it may."""
    generator = torch.Generator().manual_seed(seed)
    batch, n, most, length = len(regions), max(regions) + room, max(phrases) + room, max(lengths) + room
    words = torch.randint(WORDS, (batch, length), generator=generator)
    words[torch.arange(length) >= torch.tensor(lengths)[:, None]] = WORDS
    positions = torch.randint(length, (batch, most), generator=generator)
    phrase_mask = torch.arange(most) < torch.tensor(phrases)[:, None]
    positions = torch.where(phrase_mask, positions % torch.tensor(lengths)[:, None], positions)
    mask = torch.arange(n) < torch.tensor(regions)[:, None]
    return torch.randn(batch, n, FEATURES, generator=generator), mask, words, positions, phrase_mask


@torch.no_grad()
def test_logits_are_those_of_ban_vqa(shared_data):
    folder = shared_data / "golden" / "vqa"
    layout, weights = read_released_checkpoint(folder / "ban_grounding.pth", RELEASED_MODELS)
    assert layout.name == "ban-flickr"
    model = BANGrounding(**constructor_arguments(weights)).eval()
    model.load_state_dict(weights)
    with np.load(folder / "ban_grounding.npz") as arrays:
        case = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    positions = case["entity_positions"]
    # ban-vqa's code marks padding by rows of zeros, and by the position 0 in all columns except the first.
    mask = case["features"].abs().sum(dim=2) > 0
    phrase_mask = (positions != 0) | (torch.arange(positions.shape[1]) == 0)
    assert not mask.all()
    assert not phrase_mask.all()
    logits = model(case["features"], mask, case["sentence"], positions, phrase_mask)
    torch.testing.assert_close(logits, case["logits"][:, 0].transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("words", [0, 100, 19_000])
def test_the_real_size(words):
    with torch.device("meta"):
        model = BANGrounding(words)
    assert sum(value.numel() for value in model.parameters()) == 18_865_924 + (words + 1) * 300


@torch.no_grad()
@pytest.mark.parametrize("norm_whole_matrix", [True, False])
def test_equals_a_loop_over_pairs(norm_whole_matrix):
    model = small(norm_whole_matrix=norm_whole_matrix).eval()
    regions, phrases, lengths = [4, 1, 3], [2, 3, 1], [5, 4, 7]
    features, mask, words, positions, phrase_mask = batch = inputs(regions, phrases, lengths, room=2)
    logits = model(*batch)
    form, bias = model.attention.forms.weight()[0], model.attention.forms.bias[0]
    for sentence, (n, count, length) in enumerate(zip(regions, phrases, lengths)):
        states, _ = model.gru(model.embedding(words[sentence : sentence + 1, :length]))
        for phrase in range(count):
            said = F.relu(model.attention.words.linear(states[0, positions[sentence, phrase]]))
            for region in range(n):
                seen = F.relu(model.attention.image.linear(features[sentence, region]))
                expected = (form * said * seen).sum() + bias
                torch.testing.assert_close(logits[sentence, phrase, region], expected, atol=1e-5, rtol=1e-5)
    assert (logits[~mask.unsqueeze(1).expand_as(logits)] == MASKED).all()
    assert (logits[~phrase_mask] == MASKED).all()


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=3),
    room=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_padding_does_nothing(sizes, room, seed):
    """Each sentence of a batch is grounded as it is alone; padding gets no gradient and adds nothing to the loss."""
    model = small().eval()
    regions, phrases, lengths = map(list, zip(*sizes))
    features, mask, words, positions, phrase_mask = inputs([max(1, n) for n in regions], phrases, lengths, room=room)
    mask = torch.arange(mask.shape[1]) < torch.tensor(regions)[:, None]
    features.requires_grad_()
    logits = model(features, mask, words, positions, phrase_mask)
    zeros = torch.zeros_like(logits)
    loss = F.binary_cross_entropy_with_logits(logits, zeros, reduction="sum")
    loss.backward()
    assert features.grad[~mask].abs().sum() == 0
    total = 0.0
    for i, (n, count, length) in enumerate(sizes):
        alone = (features[i : i + 1, :n], mask[i : i + 1, :n], words[i : i + 1, :length])
        found = model(*alone, positions[i : i + 1, :count], phrase_mask[i : i + 1, :count])[0]
        torch.testing.assert_close(found, logits[i, :count, :n], atol=1e-5, rtol=1e-5)
        total += F.softplus(found).sum().item()
    assert loss.item() == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_bfloat16_is_near():
    model, batch = small(), inputs([5, 2], [2, 3], [6, 4])
    expected = model.eval()(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*batch)
        training = model.train()(*batch)
    assert found.dtype == torch.float32
    layers = float32_layers(model, lambda: model(*batch))
    assert "gru" in layers
    assert "attention.image.linear" not in layers
    real = expected > MASKED
    assert (found - expected)[real].abs().max() < 0.05 * expected[real].abs().max()
    F.binary_cross_entropy_with_logits(training, torch.zeros_like(training)).backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())
