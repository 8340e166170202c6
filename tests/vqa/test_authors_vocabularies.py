"""The authors' pickles of vocabularies are read, of any version of Python, and no code in them is executed."""

import os
import pickle

import pytest

from bua.errors import InputError
from bua.vqa.authors_vocabularies import read_both_vocabularies, read_vocabularies

WORDS = ["what", "color", "is", "the", "caf\u00e9", "'s", "\u4f60"]
ANSWERS = ["yes", "0", "t shirt", "caf\u00e9"]
# The same lists as Python 2 writes them: byte strings, but text for what came from JSON.
PYTHON_2_DICTIONARY = (
    b"(lp0\n(dp1\nVwhat\np2\nI0\nsS'is'\np3\nI1\nsVcaf\xe9\np4\nI2\nsa(lp5\ng2\nag3\nag4\naa.",
    b"\x80\x02]q\x00(}q\x01(X\x04\x00\x00\x00whatq\x02K\x00U\x02isq\x03K\x01X\x05\x00\x00\x00caf\xc3\xa9q\x04K\x02u"
    b"]q\x05(h\x02h\x03h\x04ee.",
)


def write_authors_folder(folder, words: list[str], answers: list[str], protocol: int):
    """As hengyuan-hu's create_dictionary.py and compute_softscore.py do."""
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    word2idx = {word: number for number, word in enumerate(words)}
    ans2label = {answer: label for label, answer in enumerate(answers)}
    for name, content in (
        ("dictionary.pkl", [word2idx, words]),
        ("cache/trainval_label2ans.pkl", answers),
        ("cache/trainval_ans2label.pkl", ans2label),
    ):
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_the_authors_folder_or_its_files(tmp_path, protocol):
    data = write_authors_folder(tmp_path / "data", WORDS, ANSWERS, protocol)
    dictionary, cache = data / "dictionary.pkl", data / "cache"
    for paths in ([data], [dictionary, cache], [cache / "trainval_ans2label.pkl", str(dictionary)]):
        words, answers = read_both_vocabularies(paths)
        assert words.words == WORDS
        assert answers.answers == ANSWERS
    assert read_vocabularies([cache]).words is None
    assert read_vocabularies([dictionary]).answers is None


@pytest.mark.parametrize("content", PYTHON_2_DICTIONARY)
def test_pickles_of_python_2(tmp_path, content):
    path = tmp_path / "dictionary.pkl"
    path.write_bytes(content)
    assert read_vocabularies([path]).words.words == ["what", "is", "caf\u00e9"]


def test_bytes_and_tuples(tmp_path):
    path = tmp_path / "mine.pkl"
    path.write_bytes(pickle.dumps(({b"a": 0, "caf\u00e9".encode(): 1}, (b"a", "caf\u00e9".encode()))))
    assert read_vocabularies([path]).words.words == ["a", "caf\u00e9"]
    path.write_bytes(pickle.dumps(["caf\u00e9".encode("latin-1")]))
    assert read_vocabularies([path]).answers.answers == ["caf\u00e9"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([{"a": 0}, ["a"], Hostile()]), "mkdir, which is not allowed; name the files"),
        (pickle.dumps(["yes", "no"])[:-3], "not a readable pickle"),
        (b"", "not a readable pickle"),
        (b"\x80\x05]\x94(" + b"\x00" * 50, "not a readable pickle"),
        (pickle.dumps([{"a": 0, "b": 1}, ["b", "a"]]), "the words and their ids contradict each other"),
        (pickle.dumps([{"a": 0}, "a"]), "the words and their ids contradict each other"),
        (pickle.dumps([{"a": 0.5}, ["a"]]), "the words and their ids contradict each other"),
        (pickle.dumps({"yes": 0, "no": 2}), "holds neither words nor answers"),
        (pickle.dumps({"yes": [0]}), "holds neither words nor answers"),
        (pickle.dumps([1, 2]), "holds neither words nor answers"),
        (pickle.dumps(7), "holds neither words nor answers"),
        (pickle.dumps(["yes", "yes"]), "has an answer twice"),
        (pickle.dumps(["\ud800", "yes"]), "holds neither words nor answers"),
        (pickle.dumps([]), "no answers"),
    ],
)
def test_damaged_and_hostile_pickles_are_named_in_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dictionary.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_vocabularies([tmp_path])
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["dictionary.pkl"]


def test_files_that_are_missing_or_contradict_each_other(tmp_path):
    data = write_authors_folder(tmp_path / "data", WORDS, ANSWERS, 2)
    other = write_authors_folder(tmp_path / "other", WORDS, ANSWERS[::-1], 2)
    for paths, message in (
        ([tmp_path], "none of dictionary.pkl, trainval_label2ans.pkl, trainval_ans2label.pkl is in it"),
        ([tmp_path / "none.pkl"], "none.pkl: cannot be read: No such file or directory"),
        ([data, other], "trainval_label2ans.pkl: has another vocabulary than "),
        ([data / "dictionary.pkl"], "has no answers; name trainval_label2ans.pkl or"),
        ([data / "cache"], "has no dictionary.pkl; name it too, or prepare a folder with bua prepare-vqa --vocabulary"),
    ):
        with pytest.raises(InputError, match=message):
            read_both_vocabularies(paths)
