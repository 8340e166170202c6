import json
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.errors import InputError
from bua.vqa.accuracy import soft_score, soft_scores, upper_bound, vqa_accuracy, write_results
from bua.vqa.answers import AnswerVocabulary, normalize_answer, soft_targets, strip_punctuation

DIRTY = ["yes", "Yes.", " yes", "the cat", "cat", "two", "2", "none", "0", "t-shirt", "t shirt", "b\tc", "b c", "cat\n"]
ANSWERS = st.sampled_from(DIRTY)


def annotation(number, answers, question_type="is", answer_type="other"):
    return {
        "question_id": number,
        "image_id": number // 10,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": answer, "answer_id": person} for person, answer in enumerate(answers, start=1)],
    }


def result(number, answer):
    return {"question_id": number, "answer": answer}


def plainly(answer, people, revision):
    """Computes the accuracy in percent, person by person."""

    def unbroken(text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    answer = unbroken(answer)
    if revision == "2021":
        people = [unbroken(other) for other in people]
        if len(set(people)) > 1:
            answer, people = normalize_answer(answer), [normalize_answer(other) for other in people]
    else:
        answer = normalize_answer(answer)
        if len(set(people)) > 1:
            people = [strip_punctuation(other) for other in people]
    scores = []
    for left_out in range(len(people)):
        others = people[:left_out] + people[left_out + 1 :]
        scores.append(min(1, others.count(answer) / 3))
    return round(100 * sum(scores) / len(scores), 2)


def test_equals_the_official_script(shared_data):
    folder = shared_data / "golden" / "vqa_accuracy"
    official = json.loads((folder / "official_accuracy.json").read_text())
    scores = vqa_accuracy(folder / "results.json", folder / "annotations.json", folder / "questions.json")
    assert scores["overall"] == official["accuracy"]["overall"]
    assert scores["per_question_type"] == official["accuracy"]["perQuestionType"]
    assert scores["per_answer_type"] == official["accuracy"]["perAnswerType"]
    assert {str(number): score for number, score in scores["per_question"].items()} == official["per_question"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=11) | ANSWERS.map(lambda a: [a] * 10)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["2021", "2016"]),
)
def test_equals_a_loop_over_people(cases, revision):
    annotations = [
        annotation(number, people, f"type {number % 3}", ["yes/no", "other"][number % 2])
        for number, (_, people) in enumerate(cases)
    ]
    results = [result(number, answer) for number, (answer, _) in enumerate(cases)]
    given_annotations = deepcopy(annotations)
    scores = vqa_accuracy(results[::-1], given_annotations, revision=revision)
    assert given_annotations == annotations
    expected = [plainly(answer, people, revision) for answer, people in cases]
    assert list(scores["per_question"].values()) == expected
    assert scores["overall"] == pytest.approx(np.mean(expected), abs=0.011)
    for kind, score in scores["per_question_type"].items():
        chosen = [value for number, value in enumerate(expected) if f"type {number % 3}" == kind]
        assert score == pytest.approx(np.mean(chosen), abs=0.011)
    assert scores["per_answer_type"]["yes/no"] == pytest.approx(np.mean(expected[::2]), abs=0.011)


@pytest.mark.parametrize(
    ("answer", "people", "now", "before"),
    [
        ("Black.", ["black"] * 10, 0, 100),
        ("0", ["none"] * 10, 0, 0),
        ("none", ["none"] * 10, 100, 0),
        ("cat", ["the cat"] * 10, 0, 0),
        ("Black.", ["black"] * 9 + ["blue"], 100, 100),
        ("0", ["none"] * 9 + ["one"], 100, 0),
        ("x", ["x", *"abcdefghi"], 30, 30),
        ("x", [*"xx", *"abcdefgh"], 60, 60),
        ("x", [*"xxx", *"abcdefg"], 90, 90),
    ],
)
def test_revisions(answer, people, now, before):
    for revision, expected in (("2021", now), ("2016", before)):
        scores = vqa_accuracy([result(1, answer)], {"annotations": [annotation(1, people)]}, revision=revision)
        assert scores["overall"] == expected


def test_results_must_be_those_of_the_questions(tmp_path):
    annotations = [annotation(number, ["yes"] * 10) for number in range(10)]
    results = [result(number, "yes") for number in range(10)]
    path = tmp_path / "results.json"

    def message_of(content, **other):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError) as caught:
            vqa_accuracy(path, annotations, **other)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    lacking = message_of(results[7:])
    assert f"{path}: lacks 7 of the 10 questions of annotations: 0, 1, 2, 3, 4, ...; answer them all" in lacking
    assert "has 1 questions that annotations does not have: 99; leave them out" in message_of(
        [*results, result(99, "a")]
    )
    assert "has 2 questions more than once: 3, 4; keep one" in message_of([*results, results[3], results[4]])
    assert "record 10: question_id is '3'; it must be an integer" in message_of([*results, result("3", "a")])
    assert "record 10: answer is 5; it must be a string" in message_of([*results, result(12, 5)])
    assert "does not hold a list of results" in message_of({"results": results})
    asked = [{"question_id": number, "image_id": 0, "question": "?"} for number in range(9)]
    assert "questions: lacks 1 of the 10 questions of annotations: 9" in message_of(results, questions=asked)
    with pytest.raises(InputError, match="annotations: no questions in it"):
        vqa_accuracy([], [])
    with pytest.raises(InputError, match="revision '2017': unknown; use one of 2021, 2016"):
        vqa_accuracy(results, annotations, revision="2017")
    with pytest.raises(InputError, match=r"nowhere\.json: no such file; name another file"):
        vqa_accuracy(tmp_path / "nowhere.json", annotations)


def test_soft_scores():
    vocabulary = AnswerVocabulary(["yes", "cat"])
    annotations = [
        annotation(1, ["yes"] * 9 + ["no"]),
        annotation(2, ["a cat", "cat", *"abcdefgh"]),
        annotation(3, [*"abcdefghij"]),
        annotation(4, ["Yes"] * 3 + ["cat"] * 7),
    ]
    results = [result(1, "Yes."), result(2, "dog"), result(3, "a"), result(4, "yes")]
    targets = soft_targets([[a["answer"] for a in item["answers"]] for item in annotations], vocabulary)
    assert upper_bound(targets) == pytest.approx(100 * (1 + 0.6 + 0 + 1) / 4)
    assert soft_score(np.array([0, 1, 0, 0]), targets) == pytest.approx(100 * (1 + 0.6 + 0 + 0.9) / 4)
    scores = soft_scores(results, annotations, vocabulary)
    assert scores == pytest.approx({"soft_score": 100 * (1 + 0 + 0 + 0.9) / 4, "upper_bound": 65.0})


def test_results_are_written_as_they_are_read(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, np.array([5, 6]), ["yes", "ü"])
    assert json.loads(path.read_text(encoding="utf-8")) == [result(5, "yes"), result(6, "ü")]
    scores = vqa_accuracy(path, [annotation(5, ["yes"] * 10), annotation(6, ["no"] * 10)])
    assert scores["per_question"] == {5: 100, 6: 0}
