"""Reads the official files of VQA v2, and Visual Genome's questions as further training data."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.errors import InputError, first_of, shown
from bua.io.json_records import column, iter_records, read_records, without_gc
from bua.vqa.answers import AnswerVocabulary, Memo, normalize_answer


@dataclass
class Questions:
    """The questions of a split, in the order of the file.

    Attributes:
        name: Path of the file, for messages.
        question_ids, image_ids: [N] int64.
        texts: The N questions.
    """

    name: str
    question_ids: np.ndarray
    image_ids: np.ndarray
    texts: list[str]


@dataclass
class Annotations:
    """The answers that people gave to the questions of a split, in the order of the file.

    Attributes:
        name: Path of the file, for messages.
        question_ids, image_ids: [N] int64.
        answers: For each question its answers, usually ten.
        frequent: The most frequent answer to each question (``multiple_choice_answer``).
        question_types: For each question its first words.
        answer_types: For each question "yes/no", "number" or "other".
    """

    name: str
    question_ids: np.ndarray
    image_ids: np.ndarray
    answers: list[list[str]]
    frequent: list[str]
    question_types: list[str]
    answer_types: list[str]


def load_questions(source: str | Path | dict | list) -> Questions:
    """Reads ``v2_OpenEnded_mscoco_*_questions.json``.

    Args:
        source: Path of the file, its content, or the list of questions in it.

    Raises:
        InputError: The file cannot be read or is of another kind, a field is missing or of another type, or a question
            occurs twice. The message names the file, the record and the field.
    """
    name, records = read_records(source, "questions")
    with without_gc():
        texts = column(name, records, "question", str)
    return Questions(name, _question_ids(name, records), _ids(name, records, "image_id"), texts)


def load_annotations(source: str | Path | dict | list) -> Annotations:
    """Reads ``v2_mscoco_*_annotations.json``. The argument and the errors are those of ``load_questions``."""
    name, records = read_records(source, "annotations")
    with without_gc():
        answers = []
        for number, given in enumerate(column(name, records, "answers", list)):
            try:
                # Millions of answers are few different strings: equal ones share one object.
                answers.append([sys.intern(item["answer"]) for item in given])
            except (TypeError, KeyError) as error:
                raise InputError(f"{name}: record {number}: answers: an entry has no answer; get it again") from error
            if not given:
                raise InputError(f"{name}: record {number}: answers: empty; leave the question out of all files")
        return Annotations(
            name,
            _question_ids(name, records),
            _ids(name, records, "image_id"),
            answers,
            *(
                [sys.intern(text) for text in column(name, records, field, str)]
                for field in ("multiple_choice_answer", "question_type", "answer_type")
            ),
        )


def load_results(source: str | Path | list) -> dict[int, str]:
    """Reads answers in the format of the test server: a list of ``{"question_id", "answer"}``.

    Returns:
        The answers by question id.

    Raises:
        InputError: As for ``load_questions``.
    """
    name, records = read_records(source, None)
    ids = _question_ids(name, records)
    return dict(zip(ids.tolist(), column(name, records, "answer", str)))


def rows_of(question_ids: np.ndarray, wanted: np.ndarray, name: str, wanted_by: str) -> np.ndarray:
    """Returns [M] int64, the place of each id of ``wanted`` in ``question_ids``.

    Args:
        question_ids: [N] int64, the ids of the file ``name``, all different.
        wanted: [M] int64, the ids of the file ``wanted_by``.

    Raises:
        InputError: Some ids are missing. The message has their number and the first of them.
    """
    order = np.argsort(question_ids)
    places = np.searchsorted(question_ids, wanted, sorter=order)
    found = places < len(order)
    found[found] = question_ids[order[places[found]]] == wanted[found]
    if not found.all():
        missing = wanted[~found].tolist()
        raise InputError(
            f"{name}: lacks {len(missing)} of the {len(wanted)} questions of {wanted_by}: {first_of(missing)}; "
            "both must be of one split"
        )
    return order[places]


def visual_genome_questions(
    folder: str | Path, images: Sequence[np.ndarray], vocabulary: AnswerVocabulary
) -> list[tuple[Questions, np.ndarray]]:
    """Reads Visual Genome's questions about images of COCO, selected as in ban-vqa (dataset.py, _load_visualgenome).

    The image of a question must be in the split, and its normalised answer in the vocabulary.

    Args:
        folder: Folder with ``image_data.json`` and ``question_answers.json``.
        images: For each split the COCO ids of the images that VQA's questions are about, since these images have
            features.
        vocabulary: The vocabulary of VQA's answers.

    Returns:
        For each split the questions, with COCO's image ids, and the labels of their answers, [N] int32.
    """
    folder = Path(folder)
    split_of_coco = {image_id: split for split, ids in enumerate(images) for image_id in np.unique(ids).tolist()}
    coco_ids = _coco_ids(folder / "image_data.json")
    found: list[list[tuple[int, int, str, int]]] = [[] for _ in images]
    normal = Memo(normalize_answer)
    name = str(folder / "question_answers.json")
    for record in iter_records(name):
        coco_id = coco_ids.get(_either(name, record, "id", "image_id"))
        split = split_of_coco.get(coco_id)
        if split is None:
            continue
        assert coco_id is not None
        for item in _value(name, record, "qas", list):
            label = vocabulary.label(normal[_value(name, item, "answer", str)])
            if label is not None:
                question_id = _either(name, item, "qa_id", "id")
                found[split].append((question_id, coco_id, _value(name, item, "question", str), label))
    return [_as_questions(name, items) for items in found]


def _ids(name: str, records: list, field: str) -> np.ndarray:
    return np.array(column(name, records, field, int), np.int64)


def _question_ids(name: str, records: list) -> np.ndarray:
    ids = _ids(name, records, "question_id")
    different, counts = np.unique(ids, return_counts=True)
    if len(different) < len(ids):
        doubled = different[counts > 1].tolist()
        raise InputError(f"{name}: has {len(doubled)} questions more than once: {first_of(doubled)}; keep one of each")
    return ids


def _coco_ids(path: Path) -> dict[int, int]:
    """Returns COCO's image id by Visual Genome's, for images that are in COCO."""
    in_coco = (item for item in iter_records(path) if item.get("coco_id") is not None)
    return {_either(path, item, "image_id", "id"): _value(path, item, "coco_id", int) for item in in_coco}


def _either(name: str | Path, record: object, field: str, other: str) -> int:
    """Returns a field that has one name or the other, depending on the version of Visual Genome."""
    return _value(name, record, field if isinstance(record, dict) and field in record else other, int)


def _value(name: str | Path, record: object, field: str, kind: type):
    value = record.get(field) if isinstance(record, dict) else None
    if type(value) is not kind:
        raise InputError(f"{name}: {field} is {value!r:.50} in {str(record)[:60]}...; get the file again")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{name}: {field} is {shown(value)}; it must have at most 64 bits")
    return value


def _as_questions(name: str, items: list[tuple[int, int, str, int]]) -> tuple[Questions, np.ndarray]:
    question_ids, image_ids, texts, labels = zip(*items) if items else ((), (), (), ())
    ids = np.array(question_ids, np.int64), np.array(image_ids, np.int64)
    return Questions(name, *ids, list(texts)), np.array(labels, np.int32)
