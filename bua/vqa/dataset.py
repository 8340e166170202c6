"""VQA v2 ready for training: a folder of vocabularies and arrays, and what is read from it.

``prepare_vqa`` writes::

    question_vocabulary.json, answer_vocabulary.json   JSON lists, in the order of ids
    train.npz, val.npz, test.npz                       the questions of a split (``VqaDataset``)
    vg_train.npz, vg_val.npz                           Visual Genome's about the same images
    word_vectors.npz                                   GloVe's vectors, and BAN's second table (``load_word_vectors``)
    vqa.json                                           what it was made from, written last
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from bua.errors import InputError, make_folder
from bua.io.files import whole_file
from bua.tasks.prepared import VECTORS, prepared_folder, read_split
from bua.tasks.words import QUESTION_LENGTH, QuestionVocabulary
from bua.vqa.answers import MIN_COUNT, AnswerVocabulary, SoftTargets, soft_targets
from bua.vqa.official import (
    Annotations,
    Questions,
    load_annotations,
    load_questions,
    rows_of,
    visual_genome_questions,
)

SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}
# A part of test2015; the seeds take its words into the vocabulary after the others'.
TEST_DEV = "test-dev2015"
ABOUT = "vqa.json"
PROGRAM = "prepare_vqa.py"

# Fields of VqaDataset and of its SoftTargets.
ARRAYS = ("question_ids", "image_ids", "questions")
TARGETS = ("offsets", "labels", "scores")
NO_TARGETS = np.zeros(0, np.int32), np.zeros(0, np.float32)

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """A question.

    Attributes:
        words: [L] int32 ids, padded at the end with the number of words.
        labels: [t] int32, scores: [t] float32: the answers that score, none where they are not known.
    """

    question_id: int
    image_id: int
    words: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass
class VqaDataset:
    """Questions as arrays; ``dataset[i]`` is an ``Item``.

    Attributes:
        name: the file, for messages.
        question_ids, image_ids: [N] int64.
        questions: [N, L] int32 ids of words, padded at the end with ``len(words)``.
        targets: None where the answers are not known.
        words, answers: the vocabularies that the ids are of.
    """

    name: str
    question_ids: np.ndarray
    image_ids: np.ndarray
    questions: np.ndarray
    targets: SoftTargets | None
    words: QuestionVocabulary
    answers: AnswerVocabulary

    def __len__(self) -> int:
        return len(self.question_ids)

    def __getitem__(self, index: int) -> Item:
        labels, scores = NO_TARGETS if self.targets is None else self.targets[index]
        ids = int(self.question_ids[index]), int(self.image_ids[index])
        return Item(*ids, self.questions[index], labels, scores)

    @classmethod
    def load(cls, folder: str | Path, split: str) -> "VqaDataset":
        """Reads a split of a folder that ``prepare_vqa`` wrote: "train", "val", "test", "vg_train" or "vg_val".

        Raises:
            InputError: no such folder or split, or a damaged one.
        """
        words, answers = load_vocabularies(folder)
        name, arrays = read_split(Path(folder), split, ARRAYS, PROGRAM)
        targets = SoftTargets(*(arrays.pop(key) for key in TARGETS)) if "offsets" in arrays else None
        return cls(name, **arrays, targets=targets, words=words, answers=answers)

    def save(self, path: str | Path) -> None:
        """Writes the arrays, without the vocabularies."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        if self.targets is not None:
            arrays |= {name: getattr(self.targets, name) for name in TARGETS}
        with whole_file(Path(path)) as file:
            np.savez(file, **arrays)

    @classmethod
    def concatenate(cls, datasets: Sequence["VqaDataset"]) -> "VqaDataset":
        """One data set of several that have the same vocabularies, such as train, val and Visual Genome's.

        Raises:
            InputError: the vocabularies differ, or only some have targets.
        """
        first = datasets[0]
        for other in datasets[1:]:
            if (other.words, other.answers) != (first.words, first.answers):
                raise InputError(f"{other.name}: has other vocabularies than {first.name}; prepare them together")
            if (other.targets is None) != (first.targets is None):
                raise InputError(f"{other.name} and {first.name}: only one of them has answers; use splits that do")
        targets = None
        if first.targets is not None:
            every = [dataset.targets for dataset in datasets]
            counts = np.concatenate([np.diff(targets.offsets) for targets in every])
            targets = SoftTargets(
                np.concatenate([[0], counts.cumsum()]).astype(np.int64),
                np.concatenate([targets.labels for targets in every]),
                np.concatenate([targets.scores for targets in every]),
            )
        arrays = (np.concatenate([getattr(dataset, name) for dataset in datasets]) for name in ARRAYS)
        names = " + ".join(dataset.name for dataset in datasets)
        return cls(names, *arrays, targets, first.words, first.answers)

    def in_vocabularies(self, words: QuestionVocabulary, answers: AnswerVocabulary) -> "VqaDataset":
        """The same questions in other vocabularies, such as those of a checkpoint: unknown words become the last one,
        as in ``QuestionVocabulary``, and answers that are not there no longer score."""
        if (words, answers) == (self.words, self.answers):
            return self
        new_ids = np.array([*map(words.id_of, self.words.words), len(words)], np.int32)
        targets = self.targets
        if targets is not None:
            known = [answers.label(answer) for answer in self.answers.answers]
            new_labels = np.array([-1 if label is None else label for label in known], np.int32)[targets.labels]
            kept = new_labels >= 0
            before = np.concatenate([[0], kept.cumsum()])
            targets = SoftTargets(before[targets.offsets], new_labels[kept], targets.scores[kept])
        return replace(self, questions=new_ids[self.questions], targets=targets, words=words, answers=answers)


def load_vocabularies(folder: str | Path) -> tuple[QuestionVocabulary, AnswerVocabulary]:
    """The vocabularies of a folder that ``prepare_vqa`` wrote."""
    folder = prepared_folder(folder, ABOUT, PROGRAM)
    words = QuestionVocabulary.load(folder / "question_vocabulary.json")
    return words, AnswerVocabulary.load(folder / "answer_vocabulary.json")


def prepare_vqa(
    root: str | Path,
    output: str | Path,
    *,
    min_count: int = MIN_COUNT,
    length: int = QUESTION_LENGTH,
    normalize_targets: bool = True,
    visual_genome: str | Path | None = None,
) -> dict[str, VqaDataset]:
    """Makes vocabularies and arrays of the official files, as the seeds do, and writes them to ``output``.

    Words are those of all questions, answers those of train and val; without the files of test, its words are left
    out.

    Args:
        root: folder of the official files, unpacked; those of train and val must be there.
        output: folder; made where it does not exist.
        min_count: questions that an answer of the vocabulary must be the most frequent one of.
        length: words that are kept of a question.
        normalize_targets: see ``soft_targets``.
        visual_genome: folder with ``image_data.json`` and ``question_answers.json``; None goes without.

    Returns:
        the data sets by split.

    Raises:
        InputError: a file that is not there, or damaged, or of another split.
    """
    root, output = Path(root), make_folder(output)
    # What an earlier run left is of other vocabularies.
    for name in (ABOUT, VECTORS, *(f"{split}.npz" for split in (*SUBSETS, "vg_train", "vg_val"))):
        (output / name).unlink(missing_ok=True)
    questions = _load_all_questions(root)
    splits = {split: questions[subset] for split, subset in SUBSETS.items() if subset in questions}
    words = QuestionVocabulary.build(text for part in questions.values() for text in part.texts)
    annotations = {split: _load_annotations(root, split) for split in splits}
    answered = [part.frequent for split, part in annotations.items() if split != "test"]
    answers = AnswerVocabulary.build((answer for part in answered for answer in part), min_count)
    words.save(output / "question_vocabulary.json")
    answers.save(output / "answer_vocabulary.json")

    datasets = {}
    for split, asked in splits.items():
        targets = _targets(asked, annotations[split], answers, normalize_targets)
        datasets[split] = _dataset(asked, targets, words, answers, length)
    if visual_genome is not None:
        images = [splits[split].image_ids for split in ("train", "val")]
        found = visual_genome_questions(visual_genome, images, answers)
        for split, (asked, labels) in zip(("vg_train", "vg_val"), found):
            one_each = SoftTargets(np.arange(len(labels) + 1), labels, np.ones(len(labels), np.float32))
            datasets[split] = _dataset(asked, one_each, words, answers, length)
    for split, dataset in datasets.items():
        dataset.save(output / f"{split}.npz")
    about = {
        "root": str(root.absolute()),
        "visual_genome": None if visual_genome is None else str(Path(visual_genome).absolute()),
        "min_count": min_count,
        "length": length,
        "normalize_targets": normalize_targets,
        "questions": {split: len(dataset) for split, dataset in datasets.items()},
    }
    with whole_file(output / ABOUT) as file:
        file.write(orjson.dumps(about, option=orjson.OPT_INDENT_2))
    return datasets


def question_file(root: str | Path, subset: str) -> Path:
    """The official questions of a subset, such as "val2014"."""
    return Path(root) / f"v2_OpenEnded_mscoco_{subset}_questions.json"


def annotation_file(root: str | Path, subset: str) -> Path:
    """The official annotations of a subset; there is none of test2015 but that of Shapes."""
    return Path(root) / f"v2_mscoco_{subset}_annotations.json"


def _load_all_questions(root: Path) -> dict[str, Questions]:
    loaded = {}
    for subset in (*SUBSETS.values(), TEST_DEV):
        path = question_file(root, subset)
        if path.exists() or subset in (SUBSETS["train"], SUBSETS["val"]):
            loaded[subset] = load_questions(path)
            logger.info("%s: %d questions", path, len(loaded[subset].texts))
        else:
            logger.info("%s: not there; goes without", path)
    return loaded


def _load_annotations(root: Path, split: str) -> Annotations | None:
    path = annotation_file(root, SUBSETS[split])
    return load_annotations(path) if split != "test" or path.exists() else None


def _targets(
    questions: Questions, annotations: Annotations | None, answers: AnswerVocabulary, normalize: bool
) -> SoftTargets | None:
    if annotations is None:
        return None
    rows_of(questions.question_ids, annotations.question_ids, questions.name, annotations.name)
    rows = rows_of(annotations.question_ids, questions.question_ids, annotations.name, questions.name)
    return soft_targets((annotations.answers[row] for row in rows.tolist()), answers, normalize=normalize)


def _dataset(
    questions: Questions,
    targets: SoftTargets | None,
    words: QuestionVocabulary,
    answers: AnswerVocabulary,
    length: int,
) -> VqaDataset:
    encoded = words.encode_all(questions.texts, length)
    return VqaDataset(questions.name, questions.question_ids, questions.image_ids, encoded, targets, words, answers)
