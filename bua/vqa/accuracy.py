"""The official accuracy of VQA v2, and the soft score that training is validated with."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError, first_of
from bua.io.files import whole_file
from bua.vqa.answers import AnswerVocabulary, Memo, SoftTargets, normalize_answer, soft_targets, strip_punctuation
from bua.vqa.official import Annotations, load_annotations, load_questions, load_results, rows_of

REVISIONS = ("2021", "2016")


def vqa_accuracy(
    results: str | Path | list,
    annotations: str | Path | dict | list,
    questions: str | Path | dict | list | None = None,
    *,
    revision: str = "2021",
) -> dict:
    """Computes the accuracy of the official script (GT-Vision-Lab/VQA, vqaEval.py), rounded to two decimals as there.

    For each of the ten people, an answer scores min(1, n / 3), where n of the nine other people gave it. The mean over
    the ten people is the accuracy of the answer: 0, 30, 60, 90 or 100 percent. Answers are normalised by
    ``normalize_answer`` before they are compared, with an exception in which the revisions differ.

    Args:
        results: Answers in the format of the test server: a file, or the list of ``{"question_id", "answer"}`` in it.
            All questions of ``annotations`` must be in it, and no others.
        annotations: An official file, or its content.
        questions: An official file, or its content; if given, it must have the questions of ``annotations``.
        revision: "2021" is the current script: where all people gave literally the same answer, only literally this
            answer scores. "2016" is the script before it, which visualqa.org describes: the answer is always
            normalised. People's answers only lose their punctuation, and not even this if all of them are the same, so
            that an answer with an article or a number in words is never matched.

    Returns:
        The accuracies in percent: "overall"; "per_question_type" and "per_answer_type" by type; "per_question" by id.

    Raises:
        InputError: Questions are missing, unknown or occur twice, or a file is damaged.
    """
    if revision not in REVISIONS:
        raise InputError(f"revision {revision!r}: unknown; use one of {', '.join(REVISIONS)}")
    truth = load_annotations(annotations)
    if questions is not None:
        asked = load_questions(questions)
        rows_of(truth.question_ids, asked.question_ids, truth.name, asked.name)
        rows_of(asked.question_ids, truth.question_ids, asked.name, truth.name)
    given = _answers_in_order(results, truth)
    count = _matches_2021(given, truth.answers) if revision == "2021" else _matches_2016(given, truth.answers)
    accuracies = 100 * _leave_one_out(count, np.array([len(answers) for answers in truth.answers]))
    return {
        "overall": _rounded_mean(accuracies),
        "per_question_type": _by_type(accuracies, truth.question_types),
        "per_answer_type": _by_type(accuracies, truth.answer_types),
        "per_question": dict(zip(truth.question_ids.tolist(), accuracies.round(2).tolist())),
    }


def soft_score(labels: np.ndarray, targets: SoftTargets) -> float:
    """Returns the mean score in percent of the answers ``labels`` [N] to the questions of ``targets``, the score that
    the authors' code reports."""
    return 100 * float(targets.score_of(labels).mean())


def upper_bound(targets: SoftTargets) -> float:
    """Returns the soft score in percent that giving the best answer of the vocabulary to each question would have."""
    return 100 * float(targets.best().mean())


def soft_scores(
    results: str | Path | list, annotations: str | Path | dict | list, vocabulary: AnswerVocabulary
) -> dict[str, float]:
    """Computes "soft_score" and "upper_bound" in percent for answers in a file, with targets from normalised answers.

    Arguments and errors are those of ``vqa_accuracy``. An answer that is not in the vocabulary scores 0.
    """
    truth = load_annotations(annotations)
    targets = soft_targets(truth.answers, vocabulary)
    normal = Memo(normalize_answer)
    known = (vocabulary.label(normal[answer]) for answer in _answers_in_order(results, truth))
    labels = np.array([-1 if label is None else label for label in known])
    return {"soft_score": soft_score(labels, targets), "upper_bound": upper_bound(targets)}


def write_results(path: str | Path, question_ids: Sequence[int], answers: Sequence[str]) -> None:
    """Writes answers in the format of the test server, which ``vqa_accuracy`` reads."""
    records = [{"question_id": int(number), "answer": answer} for number, answer in zip(question_ids, answers)]
    with whole_file(Path(path)) as file:
        file.write(orjson.dumps(records))


def _answers_in_order(results: str | Path | list, truth: Annotations) -> list[str]:
    given = load_results(results)
    name = str(results) if isinstance(results, str | Path) else "results"
    needed = truth.question_ids.tolist()
    if not needed:
        raise InputError(f"{truth.name}: no questions in it; name the official file")
    missing = [number for number in needed if number not in given]
    if missing:
        raise InputError(
            f"{name}: lacks {len(missing)} of the {len(needed)} questions of {truth.name}: {first_of(missing)}; "
            "answer them all"
        )
    if len(given) > len(needed):
        unknown = sorted(set(given) - set(needed))
        raise InputError(
            f"{name}: has {len(unknown)} questions that {truth.name} does not have: {first_of(unknown)}; leave them out"
        )
    return [given[number] for number in needed]


def _matches_2021(given: list[str], answers: list[list[str]]) -> np.ndarray:
    """Returns [N], the number of people who gave each of the answers ``given``."""
    plain = Memo(_without_breaks)
    normal = Memo(lambda answer: normalize_answer(plain[answer]))
    counts = np.zeros(len(given), np.int64)
    for number, (answer, people) in enumerate(zip(given, answers)):
        form = plain if len({plain[other] for other in people}) == 1 else normal
        counts[number] = [form[other] for other in people].count(form[answer])
    return counts


def _matches_2016(given: list[str], answers: list[list[str]]) -> np.ndarray:
    normal = Memo(lambda answer: normalize_answer(_without_breaks(answer)))
    stripped = Memo(strip_punctuation)
    counts = np.zeros(len(given), np.int64)
    for number, (answer, people) in enumerate(zip(given, answers)):
        if len(set(people)) > 1:
            people = [stripped[other] for other in people]
        counts[number] = people.count(normal[answer])
    return counts


def _without_breaks(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _leave_one_out(matches: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Returns the mean over people of min(1, matches among the other people / 3), computed with a single rounding."""
    for_those_who_match = np.minimum(3, matches - 1)
    for_the_others = np.minimum(3, matches)
    return (matches * for_those_who_match + (people - matches) * for_the_others) / (3 * people)


def _rounded_mean(accuracies: np.ndarray) -> float:
    return round(float(accuracies.mean()), 2)


def _by_type(accuracies: np.ndarray, types: list[str]) -> dict[str, float]:
    rows = defaultdict(list)
    for row, kind in enumerate(types):
        rows[kind].append(row)
    return {kind: _rounded_mean(accuracies[chosen]) for kind, chosen in rows.items()}
