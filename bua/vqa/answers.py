"""Answers: normalised as in the official evaluation, as classes of a model, and as soft targets for training."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.tasks.words import read_strings, write_strings

# The authors' code keeps answers that are the most frequent answer to at least 9 questions: 3,129 answers of VQA v2's
# train and val.
MIN_COUNT = 9
# The official accuracy of an answer that 0, 1, 2, 3, or 4 and more of ten people gave; see vqa_accuracy.
SCORES = np.array([0, 0.3, 0.6, 0.9, 1.0], np.float32)

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official script passes a flag, whose value is 32, as the maximal number of replacements.
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
# A contraction that lacks one of its apostrophes gets it back. The script has one entry that does the opposite.
_APOSTROPHES = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(answer: str) -> str:
    """Normalises an answer as the official evaluation does before it compares answers.

    The result is in lower case, without punctuation and articles, with digits for "none" and the numbers up to ten, and
    with the apostrophes of contractions (vqaEval.py, processPunctuation and processDigitArticle; preprocess_answer in
    hengyuan-hu's code gives the same).
    """
    words = [_DIGITS.get(word, word) for word in strip_punctuation(answer).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def strip_punctuation(answer: str) -> str:
    """Removes punctuation from an answer by the rule of the official evaluation.

    A mark is removed if it stands beside a blank anywhere in the answer, or if the answer has a number such as 1,000;
    otherwise it is replaced by a blank. A period is removed unless a digit follows it. Apostrophes, colons and other
    marks are kept.
    """
    has_thousands = _THOUSANDS.search(answer) is not None
    removed = {mark: has_thousands or f"{mark} " in answer or f" {mark}" in answer for mark in _MARKS if mark in answer}
    if removed:
        answer = answer.translate({ord(mark): "" if is_removed else " " for mark, is_removed in removed.items()})
    return _PERIOD.sub("", answer, count=_MAX_PERIODS)


class Memo(dict[str, str]):
    """The values of a function of a string, computed once per string, since millions of answers are few different
    strings."""

    def __init__(self, function: Callable[[str], str]):
        super().__init__()
        self.function = function

    def __missing__(self, text: str) -> str:
        self[text] = self.function(text)
        return self[text]


class AnswerVocabulary:
    """The answers that a model can give, and their ids (labels), which count from 0.

    In the authors' code the order is that of a Python dictionary, which depends on the version of Python. Weights must
    be used with the list that they were trained with.

    Args:
        source: The file of the answers, for messages.

    Attributes:
        answers: The answers in the order of their labels (``label2ans`` in the authors' code).

    Raises:
        InputError: There are no answers, or an answer occurs twice.
    """

    def __init__(self, answers: Sequence[str], source: str | Path = "answer vocabulary"):
        self.answers = list(answers)
        self._labels = {answer: label for label, answer in enumerate(self.answers)}
        if not self.answers:
            raise InputError(f"{source}: no answers; prepare it with a smaller --min-count")
        if len(self._labels) < len(self.answers):
            raise InputError(f"{source}: has an answer twice; prepare it again")

    @classmethod
    def build(cls, answers: Iterable[str], min_count: int = MIN_COUNT) -> "AnswerVocabulary":
        """Returns the vocabulary of the normalised answers that are the most frequent answer to at least ``min_count``
        questions, in the order in which they appear first.

        Args:
            answers: The most frequent answer (``multiple_choice_answer``) to each question of train and val.
        """
        normal = Memo(normalize_answer)
        counts: dict[str, int] = {}
        for answer in answers:
            answer = normal[answer]
            counts[answer] = counts.get(answer, 0) + 1
        return cls([answer for answer, count in counts.items() if count >= min_count])

    @classmethod
    def load(cls, path: str | Path) -> "AnswerVocabulary":
        """Reads a JSON list of answers."""
        return cls(read_strings(path), path)

    def save(self, path: str | Path) -> None:
        """Writes a JSON list of the answers."""
        write_strings(path, self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnswerVocabulary) and self.answers == other.answers

    def label(self, answer: str) -> int | None:
        """Returns the label of a normalised answer, or None where the answer is not in the vocabulary."""
        return self._labels.get(answer)


@dataclass
class SoftTargets:
    """The answers to each of N questions that have a score above 0, and their scores.

    Attributes:
        offsets: [N + 1] int64; question i has the entries from ``offsets[i]`` to ``offsets[i + 1]`` - 1.
        labels: [T] int32, the answer of each entry.
        scores: [T] float32, its score, at most 1.
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
        """Returns the entries of the questions ``indices`` [B]: the place in ``indices`` that each belongs to, and its
        number among all T entries."""
        counts = self.offsets[indices + 1] - self.offsets[indices]
        places = np.repeat(np.arange(len(indices)), counts)
        first = np.repeat(self.offsets[indices] - (counts.cumsum() - counts), counts)
        return places, first + np.arange(len(places))

    def score_of(self, labels: np.ndarray) -> np.ndarray:
        """Returns [N] float64, the scores of the answers ``labels`` [N], one answer per question."""
        rows, entries = self.entries(np.arange(len(self)))
        hits = self.labels[entries] == np.asarray(labels)[rows]
        return np.bincount(rows, weights=self.scores[entries] * hits, minlength=len(self))

    def best(self) -> np.ndarray:
        """Returns [N] float32, the score of the best answer of the vocabulary."""
        rows, entries = self.entries(np.arange(len(self)))
        best = np.zeros(len(self), np.float32)
        np.maximum.at(best, rows, self.scores[entries])
        return best


def soft_targets(
    answers: Iterable[Sequence[str]], vocabulary: AnswerVocabulary, *, normalize: bool = True
) -> SoftTargets:
    """Returns the scores of the answers that people gave, by the number of people who gave each.

    Args:
        answers: For each question the answers that people gave.
        normalize: Whether answers are normalised before they are counted. False gives the targets of the authors' code
            (compute_softscore.py), which does not normalise them, though its vocabulary is normalised.

    Returns:
        The entries of a question are in the order in which its answers appear first.
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
