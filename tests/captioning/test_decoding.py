import itertools

import pytest
import torch
from caption_examples import VARIANTS, WORDS, images, small
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.captioning import Constraints, beam_search, greedy, sample
from bua.captioning.decoding import STEPS_PER_CHECK, DecodedCaptions

LENGTH = 6
# In double precision nothing depends on how sums are rounded.
FEATURES, MASK = images(3, 0, 4, room=1)
FEATURES = FEATURES.double()
MODELS = {(name, seed): small(seed, **kind).double() for (name, kind) in VARIANTS.items() for seed in range(4)}

some_words = st.lists(st.integers(0, WORDS - 1), max_size=4)
constraints = st.builds(
    Constraints,
    no_word_twice_in_a_row=st.booleans(),
    repeatable=st.none() | some_words,
    no_trigram_twice=st.booleans(),
    bad_endings=some_words,
    suppress=some_words,
)
penalties = st.sampled_from([(None, 1.0), ("avg", 1.0), ("wu", 0.7), ("wu", 2.0)])
models = st.lists(st.integers(0, 3), min_size=1, max_size=2)


def allowed(words: list[int], word: int, rules: Constraints, special) -> bool:
    if word in {special.begin, special.pad, *rules.suppress} - {special.end}:
        return False
    if rules.no_word_twice_in_a_row and words[-1:] == [word]:
        return False
    if rules.repeatable is not None and word in words and word not in rules.repeatable:
        return False
    trigrams = list(zip(words, words[1:], words[2:]))
    if rules.no_trigram_twice and (*words[-2:], word) in trigrams:
        return False
    return not (word == special.end and words and words[-1] in rules.bad_endings)


def slow_beam_search(models, image: int, beam: int, rules: Constraints, penalty) -> list[tuple[list[int], float]]:
    """Returns captions with their end, and the scores that they are ranked by."""
    special = models[0].special

    def next_log_probs(words: list[int]) -> list[float]:
        tokens = torch.tensor([[special.begin, *words]])
        mean = sum(model(FEATURES[[image]], MASK[[image]], tokens)[0, -1].softmax(0) for model in models)
        return (mean / len(models)).log().tolist()

    def score(caption) -> float:
        words, total = caption
        name, alpha = penalty
        return total / {None: 1, "avg": len(words), "wu": ((5 + len(words)) / 6) ** alpha}[name]

    captions = [([], 0.0)]
    for _ in range(LENGTH):
        longer = []
        for words, total in captions:
            if words[-1:] == [special.end]:
                longer.append((words, total))
                continue
            for word, log_prob in enumerate(next_log_probs(words)):
                if allowed(words, word, rules, special):
                    longer.append(([*words, word], total + log_prob))
        captions = sorted(longer, key=score, reverse=True)[:beam]
    return [(words, score((words, total))) for words, total in captions]


def said(captions: DecodedCaptions, image: int, caption: int) -> list[int]:
    return captions.tokens[image, caption][captions.mask[image, caption]].tolist()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(VARIANTS)), models, st.integers(1, 9), st.just(Constraints()) | constraints, penalties)
def test_beam_search_equals_a_slow_implementation(variant, seeds, beam, rules, penalty):
    chosen = [MODELS[variant, seed] for seed in seeds]
    name, alpha = penalty
    captions = beam_search(
        chosen, FEATURES, MASK, beam=beam, max_length=LENGTH, constraints=rules, length_penalty=name, alpha=alpha
    )
    assert captions.tokens.shape[:2] == (3, beam)
    for image in range(3):
        with torch.no_grad():
            expected = slow_beam_search(chosen, image, beam, rules, penalty)
        for k, (words, score) in enumerate(expected):
            assert said(captions, image, k) == words
            assert captions.scores[image, k].item() == pytest.approx(score)
        for k in range(len(expected), beam):
            assert said(captions, image, k) == [chosen[0].special.end]
            assert captions.scores[image, k].item() == captions.log_probs[image, k, 0].item() == -torch.inf


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(VARIANTS)), models, constraints)
def test_beam_of_one_is_greedy(variant, seeds, rules):
    chosen = [MODELS[variant, seed] for seed in seeds]
    first = greedy(chosen, FEATURES, MASK, max_length=LENGTH, constraints=rules)
    second = beam_search(chosen, FEATURES, MASK, beam=1, max_length=LENGTH, constraints=rules)
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, check_dtype=False)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(VARIANTS)), st.integers(0, 3), constraints)
def test_samples_keep_the_constraints(variant, seed, rules):
    model = MODELS[variant, seed]
    captions = sample(model, FEATURES, MASK, samples=20, max_length=LENGTH, constraints=rules)
    for image, k in itertools.product(range(3), range(20)):
        words = said(captions, image, k)
        if captions.scores[image, k] > -torch.inf:
            assert all(allowed(words[:place], word, rules, model.special) for place, word in enumerate(words))
            assert words[-1] == model.special.end or len(words) == LENGTH


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("decode", [greedy, sample, beam_search])
def test_log_probs_and_attention_are_those_of_the_model(variant, decode):
    model = MODELS[variant, 1]
    special = model.special
    captions = decode(model, FEATURES, MASK, max_length=LENGTH)
    lengths = captions.mask.sum(dim=2)
    for image, k in itertools.product(range(3), range(captions.tokens.shape[1])):
        words, length = said(captions, image, k), int(lengths[image, k])
        assert captions.mask[image, k, :length].all()
        assert (captions.tokens[image, k, length:] == special.pad).all()
        state = model.start(FEATURES[[image]], MASK[[image]])
        for place, (previous, word) in enumerate(zip([special.begin, *words], words)):
            logits, attention, state = model.step(torch.tensor([[previous]]), state)
            assert captions.log_probs[image, k, place].item() == pytest.approx(
                logits[0, 0].log_softmax(0)[word].item(), rel=1e-5
            )
            torch.testing.assert_close(captions.attention[image, k, place], attention[0, 0].detach().float())
        assert not captions.attention[image, k, length:].any()
    torch.testing.assert_close(captions.scores, captions.log_probs.sum(dim=2), check_dtype=False)


def test_images_of_a_batch_are_independent():
    together = beam_search(MODELS["original", 2], FEATURES, MASK, beam=4)
    for image in range(3):
        alone = beam_search(MODELS["original", 2], FEATURES[[image]], MASK[[image]], beam=4)
        assert [said(alone, 0, k) for k in range(4)] == [said(together, image, k) for k in range(4)]


def test_words_are_drawn_by_their_probability():
    model = MODELS["original", 0]
    logits, _, _ = model.step(torch.zeros(3, 1, dtype=torch.int64), model.start(FEATURES, MASK))
    generator = torch.Generator().manual_seed(0)
    for temperature in (1.0, 0.5):
        captions = sample(
            model, FEATURES, MASK, samples=20_000, max_length=1, temperature=temperature, generator=generator
        )
        drawn = torch.nn.functional.one_hot(captions.tokens[:, :, 0], WORDS).double().mean(dim=1)
        expected = (logits[:, 0] / temperature).softmax(dim=-1)
        torch.testing.assert_close(drawn, expected.detach(), atol=0.015, rtol=0)


def test_samples_follow_the_generator():
    first, second = (
        sample(MODELS["gru", 0], FEATURES, MASK, samples=3, generator=torch.Generator().manual_seed(1)).tokens
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_words_with_and_without_the_end():
    model = MODELS["gru", 3]
    end = model.special.end
    captions = sample(model, FEATURES, MASK, samples=8, max_length=LENGTH)
    for image, (bare, ended) in enumerate(zip(captions.words(end), captions.words(end, with_end=True))):
        assert ended == [said(captions, image, k) for k in range(8)]
        assert bare == [[word for word in words if word != end] for words in ended]


def test_decoding_leaves_no_gradient():
    assert not beam_search(MODELS["original", 0], FEATURES, MASK).scores.requires_grad
    assert not greedy(MODELS["original", 0], FEATURES, MASK).scores.requires_grad


def test_unknown_length_penalty():
    with pytest.raises(ValueError, match="length_penalty"):
        beam_search(MODELS["original", 0], FEATURES, MASK, length_penalty="other")


@pytest.mark.parametrize("steps", [2, 4, 50])
@pytest.mark.parametrize("seed", [0, 1, None])
@pytest.mark.parametrize("rules", [Constraints(), Constraints(repeatable=[], suppress=[2])])
@pytest.mark.parametrize("max_length", [7, 12])
@pytest.mark.parametrize("decode", [beam_search, greedy, sample])
def test_asking_less_often_for_the_end_changes_nothing(monkeypatch, steps, seed, rules, max_length, decode):
    """With ``seed`` None, all words and so all captions of a length are equally probable."""
    model = small(seed or 0).double()
    if seed is None:
        torch.nn.init.zeros_(model.predict.weight)
    # Captions end early.
    model.predict.bias.data[model.special.end] += 3

    def captions() -> DecodedCaptions:
        torch.manual_seed(0)
        return decode(model, FEATURES, MASK, max_length=max_length, constraints=rules)

    expected = captions()
    monkeypatch.setitem(STEPS_PER_CHECK, "cpu", steps)
    for found, value in zip(captions(), expected, strict=True):
        assert torch.equal(found, value)
