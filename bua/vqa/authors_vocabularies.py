"""Reads the vocabularies that hengyuan-hu's code and ban-vqa keep in pickles, without executing code from them.

Their create_dictionary.py writes ``dictionary.pkl``, a list of the ids by word and the words by id. Their
compute_softscore.py writes ``cache/trainval_label2ans.pkl``, the list of answers, and ``cache/trainval_ans2label.pkl``,
the labels by answer. The order of the answers depends on the version of Python, so that weights need the files that
they were trained with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bua.errors import InputError
from bua.io import safe_pickle
from bua.regular_files import read_regular
from bua.tasks.words import WordVocabulary
from bua.vqa.answers import AnswerVocabulary

DICTIONARY = "dictionary.pkl"
ANSWERS = ("trainval_label2ans.pkl", "trainval_ans2label.pkl")
# The authors' folder "data" has the dictionary, and its folder "cache" the answers.
CACHE = "cache"


class AuthorsVocabularies(NamedTuple):
    """The vocabularies in some of the authors' files; None where no file has it.

    Attributes:
        words: The words of questions.
        answers: The answers.
    """

    words: WordVocabulary | None
    answers: AnswerVocabulary | None


def read_vocabularies(paths: Sequence[str | Path]) -> AuthorsVocabularies:
    """Reads the authors' vocabularies.

    Args:
        paths: The files, in any order and under any names, or folders with them: the authors' folder "data", or one
            with all files in it. Pickles may be of any protocol, of Python 2 too.

    Raises:
        InputError: A file is missing, is not such a pickle, or contradicts another one; or a folder has none of them.
    """
    words: WordVocabulary | None = None
    answers: AnswerVocabulary | None = None
    read_before = ""
    for path in _files(paths):
        found = _read(path)
        if isinstance(found, WordVocabulary):
            different, words = words is not None and words != found, found
        else:
            different, answers = answers is not None and answers != found, found
        if different:
            raise InputError(f"{path}: has another vocabulary than {read_before}; name only the files of one model")
        read_before = str(path) if not read_before else f"{read_before} or {path}"
    return AuthorsVocabularies(words, answers)


def read_both_vocabularies(paths: Sequence[str | Path]) -> tuple[WordVocabulary, AnswerVocabulary]:
    """Returns the words and the answers; argument as for ``read_vocabularies``.

    Raises:
        InputError: As for ``read_vocabularies``, or one of the two is missing.
    """
    words, answers = read_vocabularies(paths)
    where = ", ".join(map(str, paths))
    if words is None:
        raise InputError(
            f"{where}: has no {DICTIONARY}; name it too, or prepare a folder with bua prepare-vqa --vocabulary, whose "
            "words are those of the questions in the authors' order, and use --vqa-folder"
        )
    if answers is None:
        raise InputError(f"{where}: has no answers; name {' or '.join(ANSWERS)} too")
    return words, answers


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        candidates = [folder / name for folder in (path, path / CACHE) for name in (DICTIONARY, *ANSWERS)]
        there = [candidate for candidate in candidates if candidate.is_file()]
        if not there:
            raise InputError(f"{path}: none of {', '.join((DICTIONARY, *ANSWERS))} is in it, or in its {CACHE}")
        files += there
    return files


def _read(path: Path) -> WordVocabulary | AnswerVocabulary:
    """Returns the vocabulary in a file. What it is of follows from its content."""
    try:
        content = safe_pickle.loads(read_regular(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; name the files of the authors' code") from error
    if isinstance(content, (list, tuple)) and len(content) == 2 and isinstance(content[0], dict):
        ids, words = content
        in_order = _texts(words)
        if in_order is None or _by_label(ids) != in_order:
            raise InputError(f"{path}: damaged (the words and their ids contradict each other); get it again")
        return WordVocabulary(in_order, path)
    answers = _by_label(content) if isinstance(content, dict) else _texts(content)
    if answers is None:
        raise InputError(f"{path}: holds neither words nor answers; name {DICTIONARY} or {' or '.join(ANSWERS)}")
    return AnswerVocabulary(answers, path)


def _by_label(labels: object) -> list[str] | None:
    """Returns the texts of a dictionary in the order of their numbers, or None if these are not 0, 1, 2 and so on."""
    if not isinstance(labels, dict) or not all(type(label) is int for label in labels.values()):
        return None
    if sorted(labels.values()) != list(range(len(labels))):
        return None
    return _texts(sorted(labels, key=labels.__getitem__))


def _texts(items: object) -> list[str] | None:
    """Returns a list of strings or bytes as strings, or None if it is something else, or has strings that are no
    text."""
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, (str, bytes)) for item in items):
        return None
    texts = [item if isinstance(item, str) else _decoded(item) for item in items]
    # A string of a pickle can hold halves of surrogate pairs, which no file of text can.
    return None if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text) else texts


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
