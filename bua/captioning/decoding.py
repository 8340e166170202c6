"""Generates captions with a captioner: by the most probable word at each step, by sampling, or by beam search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.parametrize import cached

from bua.captioning.updown import SpecialWords, State, UpDownCaptioner
from bua.upload import upload

# Number of steps of a caption in Anderson's code, the end included.
MAX_LENGTH = 20
# Every how many steps the CPU asks a device whether all captions have ended. It has to wait for a GPU's answer.
STEPS_PER_CHECK = {"cpu": 1, "cuda": 5}
# The words that a caption may repeat in Anderson's code (scripts/create_caption_lstm.py).
# fmt: off
REPEATABLE = (
    "a", "the", "of", ",", "on", "in", "with", "and", "is", "an", '"', "to", "some", "at", "are", "it", "that", "'",
    "by",
)
# The words that captions must not end with in ruotianluo's code.
BAD_ENDINGS = (
    "a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near", "to", "is", "are", "am",
)
# fmt: on


@dataclass(frozen=True)
class Constraints:
    """Constraints on captions. ``begin`` and ``pad`` are never generated, unless they are the same as ``end``.

    Anderson's decoder has ``no_word_twice_in_a_row`` and ``repeatable``; the others are those of ruotianluo's code.

    Attributes:
        no_word_twice_in_a_row: Whether a word must not follow itself.
        repeatable: Ids of the words that may occur more than once in a caption, such as those of ``REPEATABLE``; None
            allows this for all words.
        no_trigram_twice: Whether the same three words in a row must not occur twice.
        bad_endings: Ids of words that the end must not follow, such as those of ``BAD_ENDINGS``. A caption that is cut
            off at ``max_length`` may still end with them.
        suppress: Ids of words that are never generated, such as ``unk``.
    """

    no_word_twice_in_a_row: bool = False
    repeatable: Sequence[int] | None = None
    no_trigram_twice: bool = False
    bad_endings: Sequence[int] = ()
    suppress: Sequence[int] = ()


class DecodedCaptions(NamedTuple):
    """K captions of each of B images, in at most T steps.

    Attributes:
        tokens: [B, K, T] int64: words, ``end``, then ``pad``; without ``end`` where a caption is cut off at
            ``max_length``.
        log_probs: [B, K, T] float32, natural logarithm of the model's probability of each token, before constraints;
            0 after the end.
        scores: [B, K] float32, the sum of ``log_probs`` divided by the length penalty, by which beam search ranks
            captions, best first. Where the constraints leave fewer than K captions, the others have no words and the
            score minus infinity.
        attention: [B, K, T, n] float32, the attention to the regions at each step; 0 after the end.
        mask: [B, K, T] bool, true for words and ``end``.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor
    attention: Tensor
    mask: Tensor

    def words(self, end: int, with_end: bool = False) -> list[list[list[int]]]:
        """Returns for each image and each of its captions the ids of the words.

        Args:
            end: Id of the end.
            with_end: Whether the end of a caption, if it has one, is among its words.
        """
        is_word = self.mask if with_end else self.mask & (self.tokens != end)
        # One tensor, so that a GPU is waited for once.
        found = torch.cat([is_word.sum(dim=2, keepdim=True), self.tokens], dim=2).tolist()
        return [[tokens[:length] for length, *tokens in image] for image in found]


def greedy(
    models: UpDownCaptioner | Sequence[UpDownCaptioner],
    features: Tensor,
    mask: Tensor,
    *,
    max_length: int = MAX_LENGTH,
    constraints: Constraints = Constraints(),
) -> DecodedCaptions:
    """Generates one caption per image (K = 1) with the most probable word at each step. Arguments are those of
    ``beam_search``."""
    return _follow(models, features, mask, 1, max_length, constraints, lambda log_probs: log_probs.argmax(dim=-1))


def sample(
    models: UpDownCaptioner | Sequence[UpDownCaptioner],
    features: Tensor,
    mask: Tensor,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    max_length: int = MAX_LENGTH,
    constraints: Constraints = Constraints(),
    generator: torch.Generator | None = None,
) -> DecodedCaptions:
    """Generates K = ``samples`` captions per image, independently of each other, with words drawn by their probability.

    Arguments not named here are those of ``beam_search``.

    Args:
        samples: K. The captions of an image are in no particular order.
        temperature: Log-probabilities are divided by it before words are drawn. The returned ones are not.
        generator: A generator on the device of ``features``; torch's global generator by default.
    """

    def draw(log_probs: Tensor) -> Tensor:
        # The probability that an exponential variable is the smallest of several is proportional to its rate.
        waits = torch.empty_like(log_probs).exponential_(generator=generator)
        return ((log_probs / temperature).softmax(dim=-1) / waits).argmax(dim=-1)

    return _follow(models, features, mask, samples, max_length, constraints, draw)


@torch.no_grad()
def beam_search(
    models: UpDownCaptioner | Sequence[UpDownCaptioner],
    features: Tensor,
    mask: Tensor,
    *,
    beam: int = 5,
    max_length: int = MAX_LENGTH,
    constraints: Constraints = Constraints(),
    length_penalty: str | None = None,
    alpha: float = 1.0,
) -> DecodedCaptions:
    """Generates K = ``beam`` captions per image by beam search, which continues the K best captions at each step. All
    images are decoded at once.

    A caption that has ended is not continued, and stays among the K best until K others are better, as in Anderson's
    decoder.

    Args:
        models: A captioner, or several with the same vocabulary, whose probabilities and attention are averaged
            (arithmetic mean). They should be in evaluation mode, unless dropout is wanted.
        features: [B, n, D] float32.
        mask: [B, n] bool, false for padding.
        beam: K.
        max_length: Largest number of steps, the end included.
        constraints: Words that violate them get probability 0; the other probabilities are not rescaled.
        length_penalty: Divisor of the sums of log-probabilities that captions are compared by: none (None, as in the
            original), the length ("avg"), or ((5 + length) / 6) ** ``alpha`` ("wu"; Wu et al. 2016). The end counts in
            the length.
        alpha: See ``length_penalty``.

    Raises:
        ValueError: An unknown ``length_penalty``.
    """
    penalty = _penalty(length_penalty, alpha)
    with cached():
        decoder = _Decoder(models, features, mask, beam)
        special, rules = decoder.special, _Rules(constraints, decoder, features.device)
        captions = _Unfinished.empty(len(features), beam, max_length, features, special.pad)
        end = _End(features.device, max_length)
        # Where each caption is continued with padding.
        ended = torch.arange(beam, device=features.device) * decoder.num_words + special.pad
        # In the first step all K are the same, so that all but one are ruled out.
        sums = torch.full((len(features), beam), -torch.inf, device=features.device)
        sums[:, 0] = 0
        lengths, done = torch.zeros_like(sums), torch.zeros_like(sums, dtype=torch.bool)
        word = torch.full_like(sums, special.begin, dtype=torch.int64)
        for t in range(max_length):
            log_probs, attention = decoder.step(word)
            candidates = sums.unsqueeze(-1) + rules.apply(log_probs, captions.tokens[:, :, :t])
            # A caption that has ended has one continuation, itself with padding.
            candidates = candidates.masked_fill(done.unsqueeze(-1), -torch.inf)
            candidates[:, :, special.pad] = torch.where(done, sums, candidates[:, :, special.pad])
            lengths = torch.where(done, lengths, t + 1)
            compared = (candidates / penalty(lengths).unsqueeze(-1)).flatten(1)
            # Once all captions have ended, they keep their order, also those with the same score.
            best = torch.where(end.is_due, ended, compared.topk(beam, dim=1).indices)
            scores = compared.gather(1, best)
            parent, word = best // decoder.num_words, best % decoder.num_words
            sums, lengths = candidates.flatten(1).gather(1, best), lengths.gather(1, parent)
            was_done = done.gather(1, parent)
            log_probs = log_probs.flatten(1).gather(1, best).masked_fill(was_done, 0)
            attention = _rows(attention, parent).masked_fill(was_done.unsqueeze(-1), 0)
            captions = captions.select(parent)
            captions.write(t, word, log_probs, attention, ~was_done)
            done = was_done | (word == special.end) | sums.isneginf()
            if end.is_reached(t, done):
                break
            decoder.select(parent)
    return captions.finish(end.steps, scores, special)


@torch.no_grad()
def _follow(
    models: UpDownCaptioner | Sequence[UpDownCaptioner],
    features: Tensor,
    mask: Tensor,
    captions_each: int,
    max_length: int,
    constraints: Constraints,
    choose: Callable[[Tensor], Tensor],
) -> DecodedCaptions:
    """Generates K captions per image independently of each other, with the words [B, K] that ``choose`` returns for the
    log-probabilities [B, K, V]."""
    with cached():
        decoder = _Decoder(models, features, mask, captions_each)
        special, rules = decoder.special, _Rules(constraints, decoder, features.device)
        captions = _Unfinished.empty(len(features), captions_each, max_length, features, special.pad)
        end = _End(features.device, max_length)
        sums = torch.zeros(len(features), captions_each, device=features.device)
        done = torch.zeros_like(sums, dtype=torch.bool)
        word = torch.full_like(sums, special.begin, dtype=torch.int64)
        for t in range(max_length):
            log_probs, attention = decoder.step(word)
            allowed = rules.apply(log_probs, captions.tokens[:, :, :t])
            word = choose(allowed).masked_fill(done, special.pad)
            chosen = allowed.gather(2, word.unsqueeze(2)).squeeze(2).masked_fill(done, 0)
            captions.write(t, word, chosen, attention.masked_fill(done.unsqueeze(-1), 0), ~done)
            sums = sums + chosen
            done = done | (word == special.end) | sums.isneginf()
            if end.is_reached(t, done):
                break
    return captions.finish(end.steps, sums, special)


class _Decoder:
    """One or several models that read the same words, and their states."""

    def __init__(
        self, models: UpDownCaptioner | Sequence[UpDownCaptioner], features: Tensor, mask: Tensor, captions: int
    ):
        self.models = [models] if isinstance(models, UpDownCaptioner) else list(models)
        self.special: SpecialWords = self.models[0].special
        self.num_words = self.models[0].num_words
        self.states: list[State] = [model.start(features, mask, captions) for model in self.models]

    def step(self, word: Tensor) -> tuple[Tensor, Tensor]:
        """Reads words [B, K] and returns log-probabilities [B, K, V] of the next words and attention [B, K, n]."""
        steps = [model.step(word, state) for model, state in zip(self.models, self.states)]
        self.states = [state for _, _, state in steps]
        log_probs = torch.stack([logits.log_softmax(dim=-1) for logits, _, _ in steps])
        log_mean = log_probs[0] if len(steps) == 1 else log_probs.logsumexp(dim=0) - math.log(len(steps))
        return log_mean, torch.stack([attention for _, attention, _ in steps]).mean(dim=0)

    def select(self, captions: Tensor) -> None:
        self.states = [state.select(captions) for state in self.states]


class _Rules:
    """``Constraints`` as tensors on the device."""

    def __init__(self, constraints: Constraints, decoder: _Decoder, device: torch.device):
        self.constraints, self.end = constraints, decoder.special.end
        never = {decoder.special.begin, decoder.special.pad, *constraints.suppress} - {self.end}
        members = torch.zeros(3, decoder.num_words, dtype=torch.bool)
        for row, ids in zip(members, (never, constraints.bad_endings, constraints.repeatable or ())):
            row[list(ids)] = True
        self.never, self.bad_endings, repeatable = upload(members, device)
        self.once = None if constraints.repeatable is None else ~repeatable

    def apply(self, log_probs: Tensor, words: Tensor) -> Tensor:
        """Returns the log-probabilities [B, K, V] with minus infinity for each word that must not follow the words
        [B, K, t]."""
        log_probs = log_probs.masked_fill(self.never, -torch.inf)
        if not words.shape[2]:
            return log_probs
        banned = torch.zeros_like(words, dtype=torch.bool)
        if self.once is not None:
            banned |= self.once[words]
        if self.constraints.no_word_twice_in_a_row:
            banned[:, :, -1] = True
        if self.constraints.no_trigram_twice and words.shape[2] > 2:
            banned[:, :, 2:] |= (words[:, :, :-2] == words[:, :, -2:-1]) & (words[:, :, 1:-1] == words[:, :, -1:])
        # A word that occurs twice may be banned at one of its places only, so that the bans are added, not assigned.
        bans = torch.zeros_like(words, dtype=log_probs.dtype).masked_fill(banned, -torch.inf)
        log_probs = log_probs.scatter_add(2, words, bans)
        if self.constraints.bad_endings:
            bans = torch.zeros_like(bans[:, :, -1]).masked_fill(self.bad_endings[words[:, :, -1]], -torch.inf)
            log_probs[:, :, self.end] += bans
        return log_probs


class _End:
    """Finds out when all captions have ended, every ``STEPS_PER_CHECK`` steps. The steps that were computed in vain are
    not counted.

    Attributes:
        is_due: [] bool, whether all captions had ended before the current step.
        steps: The number of steps until all captions had ended, once ``is_reached`` has returned true.
    """

    def __init__(self, device: torch.device, max_length: int):
        self.period = STEPS_PER_CHECK.get(device.type, 1)
        self.steps = self.max_length = max_length
        self.is_due = torch.zeros((), dtype=torch.bool, device=device)
        self._count = torch.ones((), dtype=torch.int64, device=device)

    def is_reached(self, step: int, done: Tensor) -> bool:
        """Takes which captions have ended after a step, bool of any shape, and returns whether no step must follow."""
        self.is_due = done.all()
        self._count += ~self.is_due
        last = step + 1 == self.max_length
        if not last and (step + 1) % self.period:
            return False
        self.steps = min(int(self._count), self.max_length)
        return last or self.steps <= step + 1


class _Unfinished(NamedTuple):
    """Captions with room for all steps; the fields are those of ``DecodedCaptions``."""

    tokens: Tensor
    log_probs: Tensor
    attention: Tensor
    mask: Tensor

    @classmethod
    def empty(cls, batch: int, captions: int, steps: int, features: Tensor, pad: int) -> "_Unfinished":
        log_probs = torch.zeros(batch, captions, steps, device=features.device)
        attention = torch.zeros(batch, captions, steps, features.shape[1], device=features.device)
        tokens = torch.full_like(log_probs, pad, dtype=torch.int64)
        return cls(tokens, log_probs, attention, torch.zeros_like(tokens, dtype=torch.bool))

    def select(self, captions: Tensor) -> "_Unfinished":
        return _Unfinished(*(_rows(part, captions) for part in self))

    def write(self, step: int, *values: Tensor) -> None:
        for part, value in zip(self, values):
            part[:, :, step] = value

    def finish(self, steps: int, scores: Tensor, special: SpecialWords) -> DecodedCaptions:
        tokens, log_probs, attention, mask = (part[:, :, :steps] for part in self)
        # These captions ended because the constraints allowed no next word.
        dead = scores.isneginf().unsqueeze(-1)
        first = torch.arange(steps, device=tokens.device) == 0
        tokens = torch.where(dead, torch.where(first, special.end, special.pad), tokens)
        log_probs = torch.where(dead, torch.where(first, -torch.inf, 0.0), log_probs)
        mask = torch.where(dead, first, mask)
        return DecodedCaptions(tokens, log_probs, scores, attention.masked_fill(dead.unsqueeze(-1), 0), mask)


def _rows(part: Tensor, captions: Tensor) -> Tensor:
    """Returns [B, K, ...] whose row k of image b is row ``captions[b, k]`` of ``part``."""
    return part[torch.arange(len(part), device=part.device).unsqueeze(1), captions]


def _penalty(name: str | None, alpha: float) -> Callable[[Tensor], Tensor]:
    if name is None:
        return torch.ones_like
    if name == "avg":
        return lambda lengths: lengths
    if name == "wu":
        return lambda lengths: ((5 + lengths) / 6) ** alpha
    raise ValueError(f"length_penalty {name!r}: use avg, wu or None")
