import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.captioning.vocabulary import CaptionVocabulary, anderson_words, karpathy_words
from bua.errors import InputError

# As BERT's vocab.txt begins and goes on.
PIECES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", ",", "'", "a", "cat", "##s", "play", "##ing", "s"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man rides a bike.", "a man rides a bike"),
        ("  Two dogs, one red .", "two dogs , one red"),
        ("A man's T-shirt", "a man ' s t - shirt"),
        ("Wow!? Yes..", "wow ! ? yes .."),
        ("He left. She stayed.", "he left . she stayed"),
        ("a caf\u00e9", "a caf \u00e9"),
        ("...", "..."),
        (".", ""),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_andersons_words(caption, words):
    assert anderson_words(caption) == words.split()


def test_marks_with_a_blank_between_are_one_word_as_in_andersons_code():
    # Line 2,601 of its train_vocab.txt.
    assert anderson_words('he said, "no') == ["he", "said", ', "', "no"]


def test_karpathys_words():
    assert karpathy_words("A man's T-shirt, (red) & 2 dogs.") == ["a", "mans", "tshirt", "red", "2", "dogs"]


CAPTIONS = st.lists(st.text(alphabet="abAB .,!-'\"\u00e9", max_size=20), max_size=20)


@given(CAPTIONS, st.integers(1, 3))
def test_a_vocabulary_has_the_frequent_words_by_count_and_alphabet(captions, least):
    vocabulary = CaptionVocabulary.build(captions, min_count=least)
    counts = Counter(word for caption in captions for word in anderson_words(caption))
    expected = [word for word, count in counts.items() if count >= least and word != "."]
    assert vocabulary.words == [".", "<unk>", *sorted(expected, key=lambda word: (-counts[word], word))]
    ids, offsets = vocabulary.encode_all(captions)
    assert len(offsets) == len(captions) + 1
    for number, caption in enumerate(captions):
        words = [vocabulary.words[i] for i in ids[offsets[number] : offsets[number + 1]]]
        assert words == [word if word in (*expected, ".") else "<unk>" for word in anderson_words(caption)]
        assert np.array_equal(vocabulary.encode(caption), ids[offsets[number] : offsets[number + 1]])


def test_default_counts():
    captions = ["five six"] * 5 + ["six"]
    assert CaptionVocabulary.build(captions).words == [".", "<unk>", "six", "five"]
    assert CaptionVocabulary.build(captions, "karpathy").words == [".", "<unk>", "six"]


@pytest.mark.parametrize(
    "caption", ["a man's t-shirt, red; two dogs", "it isn't there", 'a sign that says "stop"', "dogs on a 1/2"]
)
def test_decoding_writes_as_people_do(caption):
    vocabulary = CaptionVocabulary.build([caption], min_count=1)
    expected = caption.replace('"stop"', '" stop "').replace("1/2", "1 / 2")
    assert vocabulary.decode(vocabulary.encode(caption)) == expected


def test_word_pieces(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    vocabulary = CaptionVocabulary.read(tmp_path / "vocab.txt", "wordpiece")
    assert vocabulary.words == [*PIECES, "[pad]", "[start]", "[end]"]
    assert (vocabulary.pad, vocabulary.begin, vocabulary.end, vocabulary.unk) == (13, 14, 15, 2)
    ids = vocabulary.encode("A Cat's playing, CATS zebra").tolist()
    assert [vocabulary.words[i] for i in ids] == ["a", "cat", "'", "s", "play", "##ing", ",", "cat", "##s", "[UNK]"]
    assert vocabulary.decode(ids[:-1]) == "a cat's playing, cats"


def test_special_ids_of_words():
    vocabulary = CaptionVocabulary([".", "<unk>", "a"])
    assert (vocabulary.begin, vocabulary.end, vocabulary.unk, vocabulary.pad) == (0, 0, 1, 0)


@pytest.mark.parametrize("tokenizer", ["anderson", "karpathy"])
def test_saved_and_loaded(tmp_path, tokenizer):
    vocabulary = CaptionVocabulary.build(["a b a"], tokenizer, 1)
    vocabulary.save(tmp_path / "vocabulary.json")
    assert CaptionVocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    assert CaptionVocabulary([*vocabulary.words, "c"], tokenizer) != vocabulary


def test_bad_vocabularies_are_reported_in_one_line(tmp_path):
    path = tmp_path / "words"
    for content, message in [
        (".\n<unk>\na\nb\na\n", "has 'a' twice"),
        ("a\nb\n", "begins with .*'a', 'b'.*; it must begin with '.' and '<unk>'"),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=f"^{path}: caption vocabulary: {message}"):
            CaptionVocabulary.read(path)
    with pytest.raises(InputError, match=r"has no '\[UNK\]'; give BERT's"):
        CaptionVocabulary.read(path, "wordpiece")
    with pytest.raises(InputError, match="tokenizer 'bert'; use one of"):
        CaptionVocabulary(["."], "bert")
    with pytest.raises(InputError, match="tokenizer wordpiece: its words are not counted; give a vocabulary file"):
        CaptionVocabulary.build(["a"], "wordpiece")
    with pytest.raises(InputError, match="gone: cannot be read"):
        CaptionVocabulary.load(tmp_path / "gone")
    path.write_text(json.dumps({"words": ["a"], "tokenizer": "anderson"}))
    with pytest.raises(InputError, match=f"^{path}: caption vocabulary: begins with"):
        CaptionVocabulary.load(path)
    for content in ("{", "[]", json.dumps({"words": []})):
        path.write_text(content)
        with pytest.raises(InputError, match=f"^{path}: damaged"):
            CaptionVocabulary.load(path)
