from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.errors import InputError
from bua.vqa.answers import SCORES, AnswerVocabulary, SoftTargets, normalize_answer, soft_targets

ANSWERS = st.sampled_from(["yes", "Yes.", "no", "the cat", "cat", "two", "2", "a", "t-shirt", "t shirt", "rare"])


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("1,000 a/b", "1000 ab"),
        ("t-shirt", "t shirt"),
        ("on the left", "on left"),
        ("the", ""),
        ("A Cat.", "cat"),
        ("3.", "3"),
        (".5", ".5"),
        ("3.5", "3.5"),
        ("a.b", "ab"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("no parking?", "no parking"),
        ("yes / no", "yes no"),
        ("man's hat: 5%", "man's hat: 5%"),
        ("couldntve", "couldntve"),
        ("COULDN'TVE", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("10 oclock", "10 o'clock"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("somebodyd've", "somebody'd've"),
        ("im", "im"),
        ("shed", "shed"),
        ("x" + "." * 34 + "y", "x..y"),
    ],
)
def test_normal_form(answer, normal):
    assert normalize_answer(answer) == normal


def test_vocabulary_counts_normal_forms(tmp_path):
    frequent = ["The cat", "cat", "dog", "cat.", "two", "2", "dog"]
    assert AnswerVocabulary.build(frequent, 2).answers == ["cat", "dog", "2"]
    assert AnswerVocabulary.build(frequent, 3).answers == ["cat"]
    assert AnswerVocabulary.build(frequent, 1).label("cat") == 0
    assert AnswerVocabulary.build(frequent, 1).label("The cat") is None
    with pytest.raises(InputError, match="no answers"):
        AnswerVocabulary.build(frequent)
    with pytest.raises(InputError, match="an answer twice"):
        AnswerVocabulary(["a", "a"])
    (tmp_path / "answers.json").write_text('["a", "a"]')
    with pytest.raises(InputError, match=r"answers\.json: has an answer twice"):
        AnswerVocabulary.load(tmp_path / "answers.json")


def test_vocabulary_is_kept_as_json(tmp_path):
    vocabulary = AnswerVocabulary(["", "two words", "ü"])
    vocabulary.save(tmp_path / "answers.json")
    assert AnswerVocabulary.load(tmp_path / "answers.json") == vocabulary


def test_scores_are_the_official_accuracy():
    for matches in range(11):
        people = [True] * matches + [False] * (10 - matches)
        one_out = [min(1, (sum(people) - left_out) / 3) for left_out in people]
        assert SCORES[min(matches, 4)] == pytest.approx(np.mean(one_out))


@given(st.lists(st.lists(ANSWERS, min_size=1, max_size=10), max_size=6), st.booleans())
def test_targets(answers, normalize):
    vocabulary = AnswerVocabulary(["yes", "no", "cat", "2", "t shirt", ""])
    targets = soft_targets(answers, vocabulary, normalize=normalize)
    assert len(targets) == len(answers)
    assert (targets.offsets.dtype, targets.labels.dtype, targets.scores.dtype) == (np.int64, np.int32, np.float32)
    for number, given_answers in enumerate(answers):
        counts = Counter(normalize_answer(answer) if normalize else answer for answer in given_answers)
        expected = {
            label: {1: 0.3, 2: 0.6, 3: 0.9}.get(counts[answer], 1)
            for label, answer in enumerate(vocabulary.answers)
            if counts[answer]
        }
        labels, scores = targets[number]
        assert dict(zip(labels.tolist(), scores.tolist())) == pytest.approx(expected)


def test_authors_targets_do_not_normalise_answers():
    vocabulary = AnswerVocabulary(["cat", "t shirt"])
    answers = [["Cat", "cat", "a cat", "t-shirt", "t shirt"]]
    assert soft_targets(answers, vocabulary).score_of([0]).tolist() == pytest.approx([0.9])
    assert soft_targets(answers, vocabulary, normalize=False).score_of([0]).tolist() == pytest.approx([0.3])


def test_entries_of_chosen_questions():
    targets = SoftTargets(np.array([0, 2, 2, 3]), np.array([4, 7, 1], np.int32), np.array([0.3, 1, 0.6], np.float32))
    places, entries = targets.entries(np.array([2, 1, 0, 2]))
    assert places.tolist() == [0, 2, 2, 3]
    assert entries.tolist() == [2, 0, 1, 2]
    assert targets.best().tolist() == pytest.approx([1, 0, 0.6])
    assert targets.score_of(np.array([4, 4, 1])).tolist() == pytest.approx([0.3, 0, 0.6])
    assert targets.score_of(np.array([-1, -1, -1])).tolist() == [0, 0, 0]
