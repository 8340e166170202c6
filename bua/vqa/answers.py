"""Answers as the official evaluation compares them, as classes, and as soft targets of training."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.tasks.words import read_strings, write_strings

# The seeds': answers that are the most frequent one of so many questions; 3,129 of VQA v2's train and val.
MIN_COUNT = 9
# The official accuracy of an answer that 0, 1, 2, 3 or more of ten people gave (vqa_accuracy says why).
SCORES = np.array([0, 0.3, 0.6, 0.9, 1.0], np.float32)

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official script passes a flag, whose value is 32, in the place of the number of replacements.
_MAX_PERIODS = 32
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock 'ow's'at oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# A contraction that lacks one of its apostrophes gets it back; the script has one that goes the other way.
_APOSTROPHES = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(answer: str) -> str:
    """An answer as the official evaluation compares it: lower case, without punctuation and articles, digits for
    "none" and the numbers to ten, contractions with their apostrophes (vqaEval.py, processPunctuation and
    processDigitArticle; the seeds' preprocess_answer gives the same)."""
    words = [_DIGITS.get(word, word) for word in strip_punctuation(answer).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def strip_punctuation(answer: str) -> str:
    """The official evaluation's rule for punctuation: a mark goes, where it stands beside a blank anywhere in the
    answer, or the answer has a number such as 1,000; else a blank takes its place. A period goes unless a digit follows
    it. Apostrophes, colons and other marks stay."""
    has_thousands = _THOUSANDS.search(answer) is not None
    goes = {mark: has_thousands or f"{mark} " in answer or f" {mark}" in answer for mark in _MARKS if mark in answer}
    if goes:
        answer = answer.translate({ord(mark): "" if gone else " " for mark, gone in goes.items()})
    return _PERIOD.sub("", answer, count=_MAX_PERIODS)


class Memo(dict):
    """Keeps what a function of a string gives: of millions of answers few are different."""

    def __init__(self, function: Callable[[str], str]):
        super().__init__()
        self.function = function

    def __missing__(self, text: str) -> str:
        self[text] = self.function(text)
        return self[text]


class AnswerVocabulary:
    """The answers that a model can give, and their ids (labels) from 0.

    The seeds' order is that of a dictionary, which depends on the version of Python: weights belong to one list.

    Attributes:
        answers: in the order of their labels (the seeds' ``label2ans``).

    Raises:
        InputError: no answers, or one of them twice.
    """

    def __init__(self, answers: Sequence[str]):
        self.answers = list(answers)
        self._labels = {answer: label for label, answer in enumerate(self.answers)}
        if not self.answers:
            raise InputError("answer vocabulary: no answers; prepare it with a smaller least count")
        if len(self._labels) < len(self.answers):
            raise InputError("answer vocabulary: has an answer twice; prepare it again")

    @classmethod
    def build(cls, answers: Iterable[str], min_count: int = MIN_COUNT) -> "AnswerVocabulary":
        """The answers that are the most frequent one (``multiple_choice_answer``) of at least ``min_count`` questions,
        normalised, in the order in which they appear first.

        Args:
            answers: the most frequent answer of each question, of train and val together.
        """
        normal, counts = Memo(normalize_answer), {}
        for answer in answers:
            answer = normal[answer]
            counts[answer] = counts.get(answer, 0) + 1
        return cls([answer for answer, count in counts.items() if count >= min_count])

    @classmethod
    def load(cls, path: str | Path) -> "AnswerVocabulary":
        """From a JSON list of answers."""
        return cls(read_strings(path))

    def save(self, path: str | Path) -> None:
        write_strings(path, self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __eq__(self, other) -> bool:
        return isinstance(other, AnswerVocabulary) and self.answers == other.answers

    def label(self, answer: str) -> int | None:
        """The label of a normalised answer; None where it is not there."""
        return self._labels.get(answer)


@dataclass
class SoftTargets:
    """What each of N questions' answers score, 0 to 1, where that is not 0.

    Attributes:
        offsets: [N + 1] int64: question i has the entries from offsets[i] to offsets[i + 1].
        labels: [T] int32. scores: [T] float32.
    """

    offsets: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        entries = slice(self.offsets[index], self.offsets[index + 1])
        return self.labels[entries], self.scores[entries]

    def entries(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of chosen questions: the place in ``indices`` that each belongs to, and its own number."""
        counts = self.offsets[indices + 1] - self.offsets[indices]
        places = np.repeat(np.arange(len(indices)), counts)
        first = np.repeat(self.offsets[indices] - (counts.cumsum() - counts), counts)
        return places, first + np.arange(len(places))

    def score_of(self, labels: np.ndarray) -> np.ndarray:
        """[N] float64: what giving the answers ``labels`` [N] scores, a question each."""
        rows, entries = self.entries(np.arange(len(self)))
        hits = self.labels[entries] == np.asarray(labels)[rows]
        return np.bincount(rows, weights=self.scores[entries] * hits, minlength=len(self))

    def best(self) -> np.ndarray:
        """[N] float32: what the best answer of the vocabulary scores."""
        rows, entries = self.entries(np.arange(len(self)))
        best = np.zeros(len(self), np.float32)
        np.maximum.at(best, rows, self.scores[entries])
        return best


def soft_targets(
    answers: Iterable[Sequence[str]], vocabulary: AnswerVocabulary, *, normalize: bool = True
) -> SoftTargets:
    """The scores of the answers that people gave, by how many gave each.

    Args:
        answers: what people answered, a sequence for each question.
        normalize: count answers that are the same when normalised as one. The seeds do not (compute_softscore.py),
            though their vocabulary is normalised: False gives their targets.

    Returns:
        SoftTargets, entries in the order in which the answers appear first.
    """
    normal = Memo(normalize_answer if normalize else str)
    offsets, labels, scores = [0], [], []
    for given in answers:
        counts: dict[str, int] = {}
        for answer in given:
            answer = normal[answer]
            counts[answer] = counts.get(answer, 0) + 1
        for answer, count in counts.items():
            label = vocabulary.label(answer)
            if label is not None:
                labels.append(label)
                scores.append(min(count, len(SCORES) - 1))
        offsets.append(len(labels))
    return SoftTargets(np.array(offsets, np.int64), np.array(labels, np.int32), SCORES[np.array(scores, np.int64)])
