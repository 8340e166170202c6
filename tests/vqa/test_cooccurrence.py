from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bua.vqa.cooccurrence
from bua.errors import InputError
from bua.tasks.glove import load_glove
from bua.tasks.words import WordVocabulary, tokenize
from bua.vqa.cooccurrence import (
    cooccurrence,
    count_pairs,
    load_answer_vectors,
    load_captions,
    load_embedding_tables,
    tfidf_embedding,
)

SENTENCES = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join), min_size=2, max_size=12)


def list_pairs(sentences, vocabulary):
    """Returns the words, and all pairs (row, column) in the order in which ban-vqa lists them."""
    ids = {word: number for number, word in enumerate(vocabulary.words)}
    entries = []
    for sentence in sentences:
        words = [ids.setdefault(word, len(ids)) for word in tokenize(sentence)]
        for pair in combinations(words, 2):
            entries += [entry for entry in (pair, pair[::-1]) if entry[0] < len(vocabulary)]
    return list(ids), entries


def normalized(entries, values, shape):
    matrix = np.zeros(shape)
    for (row, column), value in zip(entries, values):
        matrix[row, column] += value
    sums = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, sums, out=np.zeros(shape), where=sums > 0)


@pytest.mark.parametrize("held", [1, 2**24])
@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, known=st.integers(1, 12))
def test_cooccurrence(sentences, known, held):
    vocabulary = WordVocabulary.build(["a", *sentences[:known]])
    words, entries = list_pairs(sentences, vocabulary)
    shape = (len(vocabulary), len(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bua.vqa.cooccurrence, "_PAIRS_HELD", held)
        pairs = count_pairs(sentences, vocabulary)
    assert pairs.words == words

    documents = Counter(word for sentence in sentences for word in set(tokenize(sentence)))
    values = [1 / documents[words[column]] for _, column in entries]
    tfidf = cooccurrence(pairs, "tfidf").to_dense().numpy()
    assert np.allclose(tfidf, normalized(entries, values, shape), rtol=1e-6)

    occurrences = Counter(word for sentence in sentences for word in tokenize(sentence))
    values = [1.0] * len(entries)
    for _, column in entries:
        if column < len(values):
            values[column] /= occurrences[words[column]]
    authors = cooccurrence(pairs, "authors").to_dense().numpy()
    assert np.allclose(authors, normalized(entries, values, shape), rtol=1e-5, atol=1e-12)


def test_embedding_is_the_mean_of_the_words_beside_it():
    vocabulary = WordVocabulary.build(["red ball", "alone"])
    pairs = count_pairs(["red ball", "red ball", "red box", "alone"], vocabulary)
    assert pairs.words == ["red", "ball", "alone", "box"]
    vectors = torch.tensor([[1.0, 0], [0, 1], [5, 5], [0, 4]])
    # "box" is in one sentence, "ball" in two: 1 * (0, 4) and 2 / 2 * (0, 1).
    assert tfidf_embedding(pairs, vectors).tolist() == [[0, 2.5], [1, 0], [0, 0]]


def test_the_vector_of_an_answer_is_the_mean_of_those_of_its_words():
    vectors = {"red": torch.tensor([1.0, 3]), "car": torch.tensor([3.0, 1]), "unheard": torch.zeros(2)}
    answers = ["red car", "Red, unheard", "unheard", ""]
    assert bua.vqa.cooccurrence._mean_vectors(answers, vectors).tolist() == [[2, 2], [1, 3], [0, 0], [0, 0]]


def test_no_pairs_at_all():
    pairs = count_pairs(["alone", ""], WordVocabulary(["alone"]))
    for weighting in bua.vqa.cooccurrence.WEIGHTINGS:
        assert tfidf_embedding(pairs, torch.ones(1, 2), weighting).tolist() == [[0, 0]]


def test_bad_input_is_named(tmp_path):
    pairs = count_pairs(["a b"], WordVocabulary(["a", "b"]))
    with pytest.raises(InputError, match="weighting 'idf': unknown; use one of authors, tfidf"):
        cooccurrence(pairs, "idf")
    with pytest.raises(InputError, match="weighting 'idf': unknown"):
        load_embedding_tables(tmp_path, "idf")
    with pytest.raises(InputError, match=r"word_vectors\.npz: no such file; prepare it with bua prepare-vqa --glove"):
        load_embedding_tables(tmp_path)
    np.savez(tmp_path / "word_vectors.npz", glove=np.ones((2, 3), np.float32))
    with pytest.raises(
        InputError, match=r"word_vectors\.npz: lacks tfidf; prepare it again with bua prepare-vqa --glove"
    ):
        load_embedding_tables(tmp_path)
    with pytest.raises(InputError, match="lacks the vectors of answers; prepare it again with bua prepare-vqa"):
        load_answer_vectors(tmp_path)
    (tmp_path / "word_vectors.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="damaged"):
        load_embedding_tables(tmp_path)
    (tmp_path / "captions.json").write_text('{"annotations": [{"id": 1}]}')
    with pytest.raises(InputError, match="an entry has no caption"):
        load_captions(tmp_path / "captions.json")
    (tmp_path / "question_answers.json").write_text('[{"id": 1, "qas": [{"answer": "Red."}]}]')
    with pytest.raises(InputError, match=r"question_answers\.json: qas: an entry has no question; get the file again"):
        list(bua.vqa.cooccurrence._visual_genome_sentences(tmp_path / "question_answers.json"))


def write_vocabularies(folder):
    """Writes what is read of a prepared folder beside the vectors: two words and one answer."""
    (folder / "vqa.json").write_text("{}")
    (folder / "question_vocabulary.json").write_text('["what", "color"]')
    (folder / "answer_vocabulary.json").write_text('["red"]')


@pytest.mark.parametrize("shape", [(3, 2), (2,)])
@pytest.mark.parametrize(("key", "load"), [("tfidf", load_embedding_tables), ("answers", load_answer_vectors)])
def test_vectors_that_are_not_those_of_the_vocabularies_are_refused(tmp_path, key, load, shape):
    write_vocabularies(tmp_path)
    np.savez(tmp_path / "word_vectors.npz", **{"glove": np.ones((2, 3), np.float32), key: np.ones(shape, np.float32)})
    with pytest.raises(InputError, match=r"word_vectors\.npz: .*; prepare it again.* bua prepare-vqa"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["authors", "seed"])
def test_tables_of_version_0_1_0_are_read(tmp_path, name):
    """That version called the table of the authors' weighting "seed"."""
    tables = {key: np.full((2, 3), number, np.float32) for number, key in enumerate(("glove", name, "tfidf"))}
    write_vocabularies(tmp_path)
    np.savez(tmp_path / "word_vectors.npz", **tables)
    assert load_embedding_tables(tmp_path, "authors")[1].unique().tolist() == [1]
    assert load_embedding_tables(tmp_path, "tfidf")[1].unique().tolist() == [2]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def test_glove(tmp_path):
    path = write(tmp_path / "glove.txt", "the 1 2.5 -3\n. . 9 9 9\ncafé 4e-1 5 6\ncat 7 8 9\n")
    found = load_glove(path, ["cat", "unheard", ".", "café"], dim=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[7, 8, 9], [0, 0, 0], [0, 0, 0], [0.4, 5, 6]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2\n", "has 2 numbers in line 1, not 3"),
        ("400000 300\n", "has 1 numbers in line 1, not 3"),
        ("", "has none of the vocabulary's 1 words"),
        ("the 1 2 3\ncat 1 2", "line 2 has 2 numbers, not 3; the file is truncated"),
        ("the 1 2 3\ncat 1 2 x\n", "line 2: could not convert"),
        ("the 1 2 3\n", "has none of the vocabulary's 1 words"),
    ],
)
def test_glove_that_cannot_be_used(tmp_path, text, message):
    path = write(tmp_path / "glove.txt", text)
    with pytest.raises(InputError) as error:
        load_glove(path, ["cat"], dim=3)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_glove(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_glove(tmp_path / "none.txt", ["cat"])
