"""VQA v2 prepared for training: writes a folder of vocabularies and arrays, and reads it.

``prepare_vqa`` writes::

    question_vocabulary.json, answer_vocabulary.json   JSON lists, in the order of the ids
    train.npz, val.npz, test.npz                       the questions of a split (``VqaDataset``)
    vg_train.npz, vg_val.npz                           Visual Genome's questions about the images of train and val
    vqa.json                                           what the folder was made from; written last

and ``bua.vqa.cooccurrence.prepare_word_vectors`` adds ``word_vectors.npz``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bua.errors import InputError
from bua.tasks import prepared
from bua.tasks.prepared import PreparedDataset
from bua.tasks.words import QUESTION_LENGTH, WordVocabulary
from bua.vqa.answers import MIN_COUNT, AnswerVocabulary, SoftTargets, soft_targets
from bua.vqa.authors_vocabularies import read_vocabularies
from bua.vqa.official import (
    Annotations,
    Questions,
    load_annotations,
    load_questions,
    rows_of,
    visual_genome_questions,
)

SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}
# A part of test2015. The authors' code adds its words to the vocabulary after those of the other subsets.
TEST_DEV = "test-dev2015"
ABOUT = "vqa.json"
PROGRAM = "prepare-vqa"

# The fields of SoftTargets, which are in a split's file where the answers are known.
TARGETS = ("offsets", "labels", "scores")
NO_TARGETS = np.zeros(0, np.int32), np.zeros(0, np.float32)

logger = logging.getLogger(__name__)


class VqaItem(NamedTuple):
    """A question.

    Attributes:
        words: [L] int32, ids of the words, padded at the end with the size of the vocabulary.
        labels: [t] int32, the answers with a score above 0; empty where the answers are not known.
        scores: [t] float32, their scores.
    """

    question_id: int
    image_id: int
    words: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass
class VqaDataset(PreparedDataset):
    """Questions as arrays; ``dataset[i]`` is a ``VqaItem``.

    Attributes:
        name: Path of the file, for messages.
        question_ids, image_ids: [N] int64.
        questions: [N, L] int32, ids of the words, padded at the end with ``len(words)``.
        targets: Scores of the answers; None where the answers are not known.
        words, answers: The vocabularies that the ids belong to.
    """

    ARRAYS = ("question_ids", "image_ids", "questions")

    name: str
    question_ids: np.ndarray
    image_ids: np.ndarray
    questions: np.ndarray
    targets: SoftTargets | None
    words: WordVocabulary
    answers: AnswerVocabulary

    def __getitem__(self, index: int) -> VqaItem:
        labels, scores = NO_TARGETS if self.targets is None else self.targets[index]
        ids = int(self.question_ids[index]), int(self.image_ids[index])
        return VqaItem(*ids, self.questions[index], labels, scores)

    @classmethod
    def load(cls, folder: str | Path, split: str) -> "VqaDataset":
        """Reads a split of a folder that ``prepare_vqa`` wrote: "train", "val", "test", "vg_train" or "vg_val".

        Raises:
            InputError: There is no such folder or split, or it is damaged.
        """
        words, answers = load_vocabularies(folder)
        name, arrays = prepared.read_split(Path(folder), split, cls.ARRAYS, PROGRAM)
        prepared.check_arrays(name, arrays, {"questions": "i2", "question_ids": "i1", "image_ids": "i1"}, PROGRAM)
        prepared.check_ids(name, arrays["questions"], len(words) + 1, PROGRAM)
        if any(key in arrays for key in TARGETS):
            prepared.check_arrays(name, arrays, {"offsets": "i1"}, PROGRAM)
            prepared.check_arrays(name, arrays, {"labels": "i1", "scores": "f1"}, PROGRAM)
            prepared.check_ids(name, arrays["labels"], len(answers), PROGRAM)
            prepared.check_offsets(name, arrays["offsets"], len(arrays["labels"]), PROGRAM, len(arrays["questions"]))
        return cls._from_arrays(name, arrays, words, answers)

    @classmethod
    def concatenate(cls, datasets: Sequence["VqaDataset"]) -> "VqaDataset":
        """Joins data sets that have the same vocabularies, such as train, val and Visual Genome's.

        Raises:
            InputError: The vocabularies differ, or only some of the data sets have targets.
        """
        first = datasets[0]
        for other in datasets[1:]:
            if (other.words, other.answers) != (first.words, first.answers):
                raise InputError(f"{other.name}: has other vocabularies than {first.name}; prepare them together")
            if (other.targets is None) != (first.targets is None):
                raise InputError(f"{other.name} and {first.name}: only one of them has answers; use splits that do")
        name, arrays = prepared.concatenate(datasets, offsets=["offsets"])
        return cls._from_arrays(name, arrays, first.words, first.answers)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = super().arrays()
        if self.targets is not None:
            arrays |= {name: getattr(self.targets, name) for name in TARGETS}
        return arrays

    def in_vocabularies(self, words: WordVocabulary, answers: AnswerVocabulary) -> "VqaDataset":
        """Returns the same questions in other vocabularies, such as those of a checkpoint.

        Words that are not in ``words`` become its last word, as in ``WordVocabulary``. Answers that are not in
        ``answers`` no longer have a score.
        """
        if (words, answers) == (self.words, self.answers):
            return self
        targets = self.targets
        if targets is not None:
            known = [answers.label(answer) for answer in self.answers.answers]
            new_labels = np.array([-1 if label is None else label for label in known], np.int32)[targets.labels]
            kept = new_labels >= 0
            before = prepared.offsets_of(kept)
            targets = SoftTargets(before[targets.offsets], new_labels[kept], targets.scores[kept])
        questions = words.recode(self.questions, self.words)
        return replace(self, questions=questions, targets=targets, words=words, answers=answers)

    @classmethod
    def _from_arrays(
        cls, name: str, arrays: dict[str, np.ndarray], words: WordVocabulary, answers: AnswerVocabulary
    ) -> "VqaDataset":
        targets = SoftTargets(*(arrays.pop(key) for key in TARGETS)) if "offsets" in arrays else None
        return cls(name, **arrays, targets=targets, words=words, answers=answers)


def load_vocabularies(folder: str | Path) -> tuple[WordVocabulary, AnswerVocabulary]:
    """Reads the vocabularies of a folder that ``prepare_vqa`` wrote."""
    folder = prepared.prepared_folder(folder, ABOUT, PROGRAM)
    words = WordVocabulary.load(folder / "question_vocabulary.json")
    return words, AnswerVocabulary.load(folder / "answer_vocabulary.json")


def prepare_vqa(
    root: str | Path,
    output: str | Path,
    *,
    min_count: int | None = None,
    length: int = QUESTION_LENGTH,
    normalize_targets: bool = True,
    visual_genome: str | Path | None = None,
    vocabulary: Sequence[str | Path] = (),
) -> dict[str, VqaDataset]:
    """Makes vocabularies and arrays from the official files, as the authors' code does, and writes them to a folder.

    The words are those of all questions; the words of test are left out where its files are missing. The answers are
    those of train and val.

    Args:
        root: Folder of the official files, unpacked. Those of train and val must be in it.
        output: The folder to write; it is created if it does not exist.
        min_count: The vocabulary has the answers that are the most frequent answer to at least ``min_count`` questions;
            ``MIN_COUNT`` by default.
        length: Number of words of a question that are kept.
        normalize_targets: See ``soft_targets``.
        visual_genome: Folder with ``image_data.json`` and ``question_answers.json``, for the splits "vg_train" and
            "vg_val"; None leaves these splits out.
        vocabulary: The authors' files of words or answers or both, which are used instead, as for
            ``bua.vqa.authors_vocabularies.read_vocabularies``. If they have answers, ``min_count`` must be None.

    Returns:
        The data sets by split.

    Raises:
        InputError: A file is missing or damaged, or belongs to another split; or ``min_count`` has no effect. The
            folder is then as it was.
    """
    root = Path(root)
    words, answers = read_vocabularies(vocabulary)
    if answers is not None and min_count is not None:
        raise InputError(
            f"--min-count {min_count}: has no effect, since --vocabulary names the answers; leave one of them out"
        )
    _check_official(root)
    questions = _load_all_questions(root)
    splits = {split: questions[subset] for split, subset in SUBSETS.items() if subset in questions}
    if words is None:
        words = WordVocabulary.build(text for part in questions.values() for text in part.texts)
    annotations = {split: _load_annotations(root, split) for split in splits}
    if answers is None:
        min_count = MIN_COUNT if min_count is None else min_count
        answered = [part.frequent for split, part in annotations.items() if part is not None and split != "test"]
        answers = AnswerVocabulary.build((answer for part in answered for answer in part), min_count)

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

    outdated = (prepared.VECTORS, *(f"{split}.npz" for split in (*SUBSETS, "vg_train", "vg_val")))
    output = prepared.begin_folder(output, ABOUT, outdated)
    words.save(output / "question_vocabulary.json")
    answers.save(output / "answer_vocabulary.json")
    for split, dataset in datasets.items():
        dataset.save(output / f"{split}.npz")
    about = {
        "root": str(root.absolute()),
        "visual_genome": None if visual_genome is None else str(Path(visual_genome).absolute()),
        "vocabulary": [str(Path(path).absolute()) for path in vocabulary],
        "min_count": min_count,
        "length": length,
        "normalize_targets": normalize_targets,
        "questions": {split: len(dataset) for split, dataset in datasets.items()},
    }
    prepared.write_json(output / ABOUT, about)
    return datasets


def question_file(root: str | Path, subset: str) -> Path:
    """Returns the path of the official questions of a subset, such as "val2014"."""
    return Path(root) / f"v2_OpenEnded_mscoco_{subset}_questions.json"


def annotation_file(root: str | Path, subset: str) -> Path:
    """Returns the path of the official annotations of a subset. Only Shapes has such a file for test2015."""
    return Path(root) / f"v2_mscoco_{subset}_annotations.json"


def _check_official(root: Path) -> None:
    """Raises an error that says what to do if a file of train or val is missing."""
    needed = [file(root, SUBSETS[split]) for split in ("train", "val") for file in (question_file, annotation_file)]
    missing = [path.name for path in needed if not path.exists()]
    if missing:
        raise InputError(
            f"{root}: has no {', '.join(missing)}; name the folder of the unpacked files with --root, or fetch them "
            "with `bua download vqa`"
        )


def _load_all_questions(root: Path) -> dict[str, Questions]:
    loaded = {}
    for subset in (*SUBSETS.values(), TEST_DEV):
        path = question_file(root, subset)
        if path.exists() or subset in (SUBSETS["train"], SUBSETS["val"]):
            loaded[subset] = load_questions(path)
            logger.info("%s: %d questions", path, len(loaded[subset].texts))
        else:
            logger.info("%s: no such file; its questions are left out", path)
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
    words: WordVocabulary,
    answers: AnswerVocabulary,
    length: int,
) -> VqaDataset:
    encoded = words.encode_all(questions.texts, length)
    return VqaDataset(questions.name, questions.question_ids, questions.image_ids, encoded, targets, words, answers)
