"""Questions as ids of words, as the VQA seeds have them (hengyuan-hu, dataset.py; ban-vqa, dataset.py)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.io.files import whole_file

# The seeds' models read so many words of a question.
QUESTION_LENGTH = 14


def tokenize(text: str) -> list[str]:
    """The words of a sentence by the seeds' rule: lower case, without commas and question marks, "'s" a word of its
    own; split at blanks. Other punctuation stays part of the words."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").split()


class QuestionVocabulary:
    """The words of questions and their ids, from 0; the id of padding is the number of words.

    A word that is not there gets the id of the last one, as in BAN, where that is a word that occurs once; there is
    no class for unknown words.

    Attributes:
        words: in the order of their ids.

    Raises:
        InputError: no words, or one of them twice.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        if not self.words:
            raise InputError("question vocabulary: no words; prepare it from questions")
        if len(self._ids) < len(self.words):
            raise InputError("question vocabulary: has a word twice; prepare it again")

    @classmethod
    def build(cls, questions: Iterable[str]) -> "QuestionVocabulary":
        """All words of all questions, in the order in which they appear first."""
        return cls(list(dict.fromkeys(word for question in questions for word in tokenize(question))))

    @classmethod
    def load(cls, path: str | Path) -> "QuestionVocabulary":
        """From a JSON list of words."""
        return cls(read_strings(path))

    def save(self, path: str | Path) -> None:
        write_strings(path, self.words)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __eq__(self, other) -> bool:
        return isinstance(other, QuestionVocabulary) and self.words == other.words

    def id_of(self, word: str) -> int:
        return self._ids.get(word, len(self) - 1)

    def encode(self, question: str, length: int = QUESTION_LENGTH) -> np.ndarray:
        """[length] int32 ids of a question's first words, padded at the end."""
        return self.encode_all([question], length)[0]

    def encode_all(self, questions: Sequence[str], length: int = QUESTION_LENGTH) -> np.ndarray:
        """[N, length] int32, likewise, for N questions."""
        ids = np.full((len(questions), length), len(self), np.int32)
        for row, question in enumerate(questions):
            words = tokenize(question)[:length]
            ids[row, : len(words)] = [self.id_of(word) for word in words]
        return ids

    def check(self, question: str) -> None:
        """
        Raises:
            InputError: none of the question's words is known, so that a model would answer another question.
        """
        if not any(word in self for word in tokenize(question)):
            raise InputError(
                f"question {question!r}: none of its words is among the {len(self)} of the vocabulary; "
                f"ask in words such as {', '.join(self.words[:5])}"
            )


def pad_in_front(ids: np.ndarray, padding: int) -> np.ndarray:
    """Moves the padding of questions from their end, where ``encode`` has it, to the front, where Up-Down has it.

    Args:
        ids: [N, L] with ``padding`` only after a question's words.
    """
    lacking = (ids == padding).sum(axis=1, keepdims=True)
    places = np.arange(ids.shape[1]) - lacking
    return np.where(places < 0, padding, np.take_along_axis(ids, np.maximum(places, 0), axis=1)).astype(ids.dtype)


def read_strings(path: str | Path) -> list[str]:
    """A JSON list of strings.

    Raises:
        InputError: no such file, or it holds something else.
    """
    try:
        strings = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; prepare it with prepare_vqa.py") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); prepare it again") from error
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise InputError(f"{path}: not a list of strings; prepare it again")
    return strings


def write_strings(path: str | Path, strings: Sequence[str]) -> None:
    """A JSON list, an item a line."""
    with whole_file(Path(path)) as file:
        file.write(orjson.dumps(list(strings), option=orjson.OPT_INDENT_2))
