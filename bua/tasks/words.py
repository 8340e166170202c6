"""Sentences as ids of words, by the rules of hengyuan-hu's code and ban-vqa (dataset.py in both)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.io.files import whole_file
from bua.io.json_records import read_json

# Number of words of a question that hengyuan-hu's and ban-vqa's models read.
QUESTION_LENGTH = 14


def tokenize(text: str) -> list[str]:
    """Splits a sentence into words as the authors' code does: it is lower-cased, commas and question marks are removed,
    "'s" becomes a word of its own, and the rest is split at white space. Other punctuation stays part of the words."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").split()


class WordVocabulary:
    """The words of questions or sentences and their ids, which count from 0. The id of padding is the number of words.

    An unknown word gets the id of the last word, as in BAN, where the last word is one that occurs once. There is no
    separate id for unknown words.

    Args:
        source: The file of the words, for messages.

    Attributes:
        words: The words in the order of their ids.

    Raises:
        InputError: There are no words, or a word occurs twice.
    """

    def __init__(self, words: Sequence[str], source: str | Path = "vocabulary"):
        self.words = list(words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        if not self.words:
            raise InputError(f"{source}: no words; prepare it again from sentences that have words")
        if len(self._ids) < len(self.words):
            raise InputError(f"{source}: has a word twice; prepare it again")

    @classmethod
    def build(cls, sentences: Iterable[str]) -> "WordVocabulary":
        """Returns the vocabulary of all words of the sentences, in the order in which they appear first."""
        return cls(list(dict.fromkeys(word for sentence in sentences for word in tokenize(sentence))))

    @classmethod
    def load(cls, path: str | Path) -> "WordVocabulary":
        """Reads a JSON list of words."""
        return cls(read_strings(path), path)

    def save(self, path: str | Path) -> None:
        """Writes a JSON list of the words."""
        write_strings(path, self.words)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary) and self.words == other.words

    def id_of(self, word: str) -> int:
        """Returns the id of a word, or that of the last word where it is unknown."""
        return self._ids.get(word, len(self) - 1)

    def encode(self, sentence: str, length: int = QUESTION_LENGTH) -> np.ndarray:
        """Returns [length] int32, the ids of the first words of a sentence, padded at the end."""
        ids: np.ndarray = self.encode_all([sentence], length)[0]
        return ids

    def encode_all(self, sentences: Sequence[str], length: int = QUESTION_LENGTH) -> np.ndarray:
        """Returns [N, length] int32, the same for N sentences."""
        return self.encode_words([tokenize(sentence)[:length] for sentence in sentences], length)

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> np.ndarray:
        """Returns [N, length] int32, the same for N sentences that are given as at most ``length`` words each."""
        ids = np.full((len(sentences), length), len(self), np.int32)
        for row, words in enumerate(sentences):
            ids[row, : len(words)] = [self.id_of(word) for word in words]
        return ids

    def recode(self, ids: np.ndarray, source: "WordVocabulary") -> np.ndarray:
        """Returns int32 ids of this vocabulary, in the shape of ``ids``, for the same words and the same padding.

        Args:
            ids: Ids of the vocabulary ``source``.
        """
        new_ids = np.array([*map(self.id_of, source.words), len(self)], np.int32)
        recoded: np.ndarray = new_ids[ids]
        return recoded

    def check(self, question: str) -> None:
        """Checks that a word of a question is known, since a model would otherwise answer another question.

        Raises:
            InputError: None of the words of the question is in the vocabulary.
        """
        if not any(word in self for word in tokenize(question)):
            raise InputError(
                f"question {question[:200]!r}: none of its words is among the {len(self)} of the vocabulary; "
                f"ask in words such as {', '.join(self.words[:5])}"
            )


def pad_in_front(ids: np.ndarray, padding: int) -> np.ndarray:
    """Moves the padding of questions from the end, where ``WordVocabulary.encode`` puts it, to the front, where Up-Down
    needs it.

    Args:
        ids: [N, L]; ``padding`` stands only after the words of a question.

    Returns:
        [N, L] of the same dtype.
    """
    lacking = (ids == padding).sum(axis=1, keepdims=True)
    places = np.arange(ids.shape[1]) - lacking
    moved: np.ndarray = np.where(places < 0, padding, np.take_along_axis(ids, np.maximum(places, 0), axis=1))
    return moved.astype(ids.dtype)


def read_strings(path: str | Path) -> list[str]:
    """Reads a JSON list of strings.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    strings = read_json(path, "prepare it again", missing="prepare it again")
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise InputError(f"{path}: not a list of strings; prepare it again")
    return strings


def write_strings(path: str | Path, strings: Sequence[str]) -> None:
    """Writes a JSON list of strings, one string per line."""
    with whole_file(Path(path)) as file:
        file.write(orjson.dumps(list(strings), option=orjson.OPT_INDENT_2))
