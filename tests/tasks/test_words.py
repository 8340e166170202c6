import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.errors import InputError
from bua.tasks.words import WordVocabulary, pad_in_front, tokenize

SENTENCES = st.text("ab',? -", max_size=20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What color is the man's hat?", ["what", "color", "is", "the", "man", "'s", "hat"]),
        ("Is 1,000 many, or few?", ["is", "1000", "many", "or", "few"]),
        ("Is this (a.m.) or a 'stop' sign!", ["is", "this", "(a.m.)", "or", "a", "'stop'", "sign!"]),
        ("Are they?Outside", ["are", "theyoutside"]),
        (" ? ", []),
    ],
)
def test_words_are_those_of_the_authors_code(text, words):
    assert tokenize(text) == words


@given(st.lists(SENTENCES.filter(tokenize), min_size=1, max_size=5), st.lists(SENTENCES, max_size=4), st.integers(1, 6))
def test_ids_are_those_of_the_words(known, others, length):
    vocabulary = WordVocabulary.build(known)
    assert len(set(vocabulary.words)) == len(vocabulary)
    encoded = vocabulary.encode_all(known + others, length)
    assert encoded.shape == (len(known + others), length)
    assert encoded.dtype == np.int32
    last = vocabulary.words[-1]
    for ids, text in zip(encoded.tolist(), known + others):
        words = tokenize(text)[:length]
        expected = [word if word in vocabulary else last for word in words]
        assert [vocabulary.words[i] for i in ids[: len(words)]] == expected
        assert ids[len(words) :] == [len(vocabulary)] * (length - len(words))
    in_front = pad_in_front(encoded, len(vocabulary))
    assert in_front.dtype == np.int32
    for moved, ids, text in zip(in_front.tolist(), encoded.tolist(), known + others):
        count = len(tokenize(text)[:length])
        assert moved == ids[count:] + ids[:count]


def test_ids_follow_the_first_appearance():
    vocabulary = WordVocabulary.build(["Is it red?", "red, is green"])
    assert vocabulary.words == ["is", "it", "red", "green"]
    assert vocabulary.encode("it is blue", 4).tolist() == [1, 0, 3, 4]


def test_vocabulary_is_saved_as_json(tmp_path):
    vocabulary = WordVocabulary.build(["Où est-il ?"])
    vocabulary.save(tmp_path / "words.json")
    assert json.loads((tmp_path / "words.json").read_text(encoding="utf-8")) == ["où", "est-il"]
    assert WordVocabulary.load(tmp_path / "words.json") == vocabulary


def test_a_question_without_a_known_word_is_refused():
    vocabulary = WordVocabulary.build(["what is this"])
    vocabulary.check("And this?")
    for question in ("Wer da?", "?", ""):
        with pytest.raises(InputError, match="none of its words is among the 3 of the vocabulary") as caught:
            vocabulary.check(question)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; prepare it again"),
        ("{", "not JSON"),
        ("[1]", "not a list of strings"),
        ("[]", "no words"),
        ('["a", "a"]', "twice"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "words.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"^{path}: .*{message}"):
        WordVocabulary.load(path)


def test_words_must_differ():
    with pytest.raises(InputError, match="vocabulary: has a word twice"):
        WordVocabulary(["a", "a"])


def test_ids_in_another_vocabulary():
    source, other = WordVocabulary(["a", "b", "c"]), WordVocabulary(["c", "a", "rare", "last"])
    recoded = other.recode(source.encode_all(["a b c", "c"], 4), source)
    assert recoded.dtype == np.int32
    assert recoded.tolist() == [[1, 3, 0, 4], [0, 4, 4, 4]]


def test_the_message_about_a_question_does_not_repeat_a_text_of_any_length():
    with pytest.raises(InputError, match="none of its words") as error:
        WordVocabulary(["what"]).check("x" * 10**6)
    assert len(str(error.value)) < 400
