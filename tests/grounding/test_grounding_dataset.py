"""Flickr30k Entities: its official files, the prepared folder, phrases of sentences without marks, and batches."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bua.errors import InputError
from bua.features import open_writer
from bua.grounding.batches import GroundingLoader, evaluation_batches, region_boxes, right_regions
from bua.grounding.dataset import (
    GroundingDataset,
    load_phrase_tags,
    load_vocabulary,
    load_word_vectors,
    prepare_flickr30k,
)
from bua.grounding.official import TYPES, authors_span, load_boxes, parse_sentence
from bua.grounding.phrases import find_phrases, phrase_tags
from bua.structures import Regions
from bua.tasks.region_batches import RegionReader
from bua.tasks.words import WordVocabulary, tokenize

# Two images for training, and one for each other split.
SENTENCES = {
    11: [
        "[/EN#1/people A man] , wearing [/EN#2/clothing a hat] , holds [/EN#3/animals a dog] .",
        "[/EN#1/people A man] looks at [/EN#4/people a man] in [/EN#9/scene a park] , [/EN#0/notvisual which] is big .",
        "It rains .",
    ],
    12: ["[/EN#5/people Two people] and [/EN#6/bodyparts/people a woman 's hand] .", "[/EN#7/other A bench] ."],
    21: ["[/EN#8/people A man] holds [/EN#10/other a red , striped hat] ."],
    31: ["[/EN#12/people The woman] ."],
}
BOXES = {
    11: {1: [(10, 10, 50, 90)], 2: [(20, 1, 40, 15)], 3: [(60, 60, 90, 90)], 4: [(70, 5, 95, 50)]},
    12: {5: [(1, 1, 30, 60), (40, 1, 70, 60)], 6: [(80, 40, 90, 50)]},
    21: {8: [(5, 5, 40, 60)], 10: [(10, 2, 30, 12)]},
    31: {12: [(5, 5, 40, 60)]},
}
SPLITS = {"train": [11, 12], "val": [21], "test": [31]}
WIDTH, HEIGHT = 100, 95


def write_files(root: Path) -> Path:
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True)
    for split, ids in SPLITS.items():
        (root / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    for image_id, lines in SENTENCES.items():
        (root / f"Sentences/{image_id}.txt").write_text("".join(f"{line} \n" for line in [*lines, ""]))
        objects = "".join(
            f"<object><name>{chain}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for chain, boxes in BOXES[image_id].items()
            for x1, y1, x2, y2 in boxes
        )
        objects += "<object><name>9</name><scene>1</scene><nobox>0</nobox></object>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("flickr30k") / "official")


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_flickr30k(root, folder)
    return folder


def phrases_of(dataset: GroundingDataset) -> list[tuple]:
    """Returns the image, the words, the types and the boxes of each phrase."""
    found = []
    for phrase, sentence in enumerate(dataset.sentence_of):
        ids = dataset.words[sentence, slice(*dataset.spans[phrase])]
        text = " ".join(dataset.vocabulary.words[i] if i < len(dataset.vocabulary) else "-" for i in ids)
        types = [kind for kind, is_one in zip(TYPES, dataset.types[phrase]) if is_one]
        found.append((int(dataset.image_ids[sentence]), text, types, dataset.boxes_of(phrase).tolist()))
    return found


# Sentences


def test_places_are_counted_in_words():
    sentence = parse_sentence(SENTENCES[11][0])
    assert sentence.text == "A man , wearing a hat , holds a dog ."
    assert sentence.words == ["a", "man", "wearing", "a", "hat", "holds", "a", "dog", "."]
    assert [sentence.words[p.start : p.end] for p in sentence.phrases] == [["a", "man"], ["a", "hat"], ["a", "dog"]]
    assert [(p.chain, p.types) for p in sentence.phrases] == [(1, ("people",)), (2, ("clothing",)), (3, ("animals",))]


def test_authors_positions_have_the_two_errors_of_ban_vqa():
    """Commas count as words, and a phrase that occurs twice is found at its first place."""
    sentence = parse_sentence(SENTENCES[11][0])
    last = [authors_span(sentence.text, phrase.text)[1] - 1 for phrase in sentence.phrases]
    assert [sentence.words[place] for place in last[:2]] == ["man", "holds"]
    assert last[2] >= len(sentence.words)
    twice = parse_sentence("[/EN#1/people a man] and [/EN#2/people a man]")
    assert [authors_span(twice.text, phrase.text) for phrase in twice.phrases] == [(0, 2), (0, 2)]
    assert [(phrase.start, phrase.end) for phrase in twice.phrases] == [(0, 2), (3, 5)]


TEXT = st.lists(st.sampled_from(["A", "man", ",", "dog's", "'s", "red", "t-shirt", "?", ".", "1,000"]), max_size=4)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_every_phrase_is_found_again(parts):
    """It does not matter which commas and genitives stand around it."""
    line = " ".join(
        f"{' '.join(before)} [/EN#{number}/other {' '.join(inside)}]" for number, (before, inside) in enumerate(parts)
    )
    sentence = parse_sentence(line)
    assert sentence.words == tokenize(re.sub(r"\[[^ ]+ |\]", "", line))
    assert [phrase.chain for phrase in sentence.phrases] == list(range(len(parts)))
    end = 0
    for phrase, (before, inside) in zip(sentence.phrases, parts):
        assert sentence.words[phrase.start : phrase.end] == tokenize(" ".join(inside))
        assert phrase.start == end + len(tokenize(" ".join(before)))
        end = phrase.end


def test_punctuation_at_the_brackets():
    sentence = parse_sentence("([/EN#1/people a man]), -[/EN#2/people his boss]'s [/EN#3/clothing hat].")
    assert sentence.words == ["(a", "man)", "-his", "boss", "'s", "hat."]
    assert [(phrase.start, phrase.end) for phrase in sentence.phrases] == [(0, 2), (2, 4), (5, 6)]


# The prepared folder


def test_prepared_phrases(prepared):
    train = GroundingDataset.load(prepared, "train")
    man, other, hat, dog = (list(map(list, BOXES[11][chain])) for chain in (1, 4, 2, 3))
    assert phrases_of(train) == [
        (11, "a man", ["people"], man),
        (11, "a hat", ["clothing"], hat),
        (11, "a dog", ["animals"], dog),
        (11, "a man", ["people"], man),
        (11, "a man", ["people"], other),
        (12, "two people", ["people"], [[1, 1, 30, 60], [40, 1, 70, 60]]),
        (12, "a woman 's hand", ["people", "bodyparts"], [[80, 40, 90, 50]]),
    ]
    assert train.phrase_offsets.tolist() == [0, 3, 5, 7]
    assert train.sizes.tolist() == [[WIDTH, HEIGHT]] * 3
    assert phrases_of(GroundingDataset.load(prepared, "val"))[1][1] == "a red striped hat"


def test_what_is_left_out_is_counted(prepared):
    about = json.loads((prepared / "flickr30k.json").read_text())
    assert about["splits"]["train"] == {
        "sentences": 3,
        "phrases": 7,
        "sentences_left_out": 2,
        "phrases_left_out": {"scene": 1, "notvisual": 1, "other": 1},
    }
    assert about["splits"]["val"]["phrases_left_out"] == {}
    assert not about["zero_based"]
    assert not any(path.suffix in (".pkl", ".pickle") for path in prepared.iterdir())


def test_the_vocabulary_is_of_all_sentences_in_order(prepared):
    words = GroundingDataset.load(prepared, "train").vocabulary.words
    texts = (parse_sentence(line).text for ids in SPLITS.values() for i in ids for line in SENTENCES[i])
    assert words == list(dict.fromkeys(word for text in texts for word in tokenize(text)))
    assert "rains" in words


def test_zero_based(root, tmp_path):
    datasets, _ = prepare_flickr30k(root, tmp_path, zero_based=True)
    assert datasets["train"].boxes[0].tolist() == [9, 9, 49, 89]
    assert load_boxes(root / "Annotations/11.xml").of_chain[1].tolist() == [[10, 10, 50, 90]]


def test_datasets_with_authors_positions(root, tmp_path):
    """They differ from the right places, and the words are padded up to a place behind the sentence."""
    datasets, _ = prepare_flickr30k(root, tmp_path, authors_positions=True)
    found = [words for _, words, _, _ in phrases_of(datasets["train"])]
    assert found == ["a man", "hat holds", ". -", "a man", "a man", "two people", "a woman 's hand"]
    assert [words for _, words, _, _ in phrases_of(datasets["val"])] == ["a man", "a red striped hat ."]


def test_a_vocabulary_that_is_given(root, tmp_path):
    (tmp_path / "words.json").write_text(json.dumps(["dog", "hat", "man", "a", "bebe"]))
    datasets, _ = prepare_flickr30k(root, tmp_path / "out", vocabulary=tmp_path / "words.json")
    assert datasets["train"].words[0].tolist()[:9] == [3, 2, 4, 3, 1, 4, 3, 0, 4]


def test_word_vectors(root, prepared, tmp_path):
    (tmp_path / "glove.txt").write_text("man 1 2\ndog 3 4\nwolf 5 6\n")
    datasets, _ = prepare_flickr30k(root, tmp_path / "out", glove=tmp_path / "glove.txt", glove_dim=2)
    vectors = load_word_vectors(tmp_path / "out")
    words = datasets["train"].vocabulary
    assert vectors.shape == (len(words), 2)
    assert vectors[words.id_of("dog")].tolist() == [3, 4]
    assert vectors.count_nonzero() == 4
    with pytest.raises(
        InputError, match=r"word_vectors.npz: no such file; prepare it with bua prepare-flickr30k --glove"
    ):
        load_word_vectors(prepared)


def test_concatenated_and_in_another_vocabulary(prepared):
    parts = [GroundingDataset.load(prepared, split) for split in ("train", "val")]
    both = GroundingDataset.concatenate(parts)
    assert len(both) == 4
    assert phrases_of(both) == phrases_of(parts[0]) + phrases_of(parts[1])
    other = both.in_vocabulary(WordVocabulary([*reversed(both.vocabulary.words), "more"]))
    assert phrases_of(other) == phrases_of(both)
    few = both.in_vocabulary(WordVocabulary(["a", "man", "rare"]))
    assert phrases_of(few)[1][1] == "a rare"
    assert ((few.words == 3) == (both.words == len(both.vocabulary))).all()


@pytest.mark.parametrize("given", ["root", "vocabulary", "glove"])
def test_bad_input_leaves_a_prepared_folder_as_it_was(root, prepared, tmp_path, given):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    (tmp_path / "words.json").write_text('{"a": 0}')
    bad = {"vocabulary": tmp_path / "words.json", "glove": tmp_path / "none.txt", "root": tmp_path / "none"}
    with pytest.raises(InputError):
        prepare_flickr30k(**{"root": root, "output": prepared, given: bad[given]})
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_errors_in_files_are_reported(root, prepared, tmp_path):
    def assert_error(name: str, content: str | None, message: str):
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root, folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content)
        with pytest.raises(InputError, match=message) as error:
            prepare_flickr30k(folder, tmp_path / "out")
        assert name in str(error.value)
        assert "\n" not in str(error.value)

    annotation = (root / "Annotations/11.xml").read_text()
    assert_error("val.txt", None, "bad: has no val.txt; name the folder .* --root, or fetch it with `bua download fl")
    assert_error("val.txt", "21\nx\n", "must have one number per line")
    assert_error("val.txt", "21\n21\n", "an image twice")
    assert_error("Sentences/21.txt", None, "cannot be read")
    assert_error("Sentences/21.txt", "fine\n[/E#3/people a man]", "line 2: .*no mark")
    assert_error("Annotations/11.xml", annotation[:100], "cannot be read")
    assert_error("Annotations/11.xml", annotation.replace("<xmin>10<", "<xmin>left<"), "bndbox/xmin is 'left'")
    assert_error("Annotations/11.xml", annotation.replace("width", "w"), "size/width is None")
    write_files(tmp_path / "empty")
    (tmp_path / "empty/Sentences/21.txt").write_text("no phrase\n")
    with pytest.raises(InputError, match=r"val\.npz: no phrase of the split has a box"):
        prepare_flickr30k(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty/Sentences/21.txt").write_text("[/EN#8/men a man]\n")
    with pytest.raises(InputError, match=r"val\.npz: \[a man\] has a box and the type 'men'"):
        prepare_flickr30k(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty/Sentences/21.txt").write_text("[/EN#8/people a man]-like\n")
    with pytest.raises(InputError, match=r"Sentences/21.txt: \[a man\]: no blanks around it"):
        prepare_flickr30k(tmp_path / "empty", tmp_path / "out", authors_positions=True)
    with pytest.raises(InputError, match=r"no such split; .* has test, train, val"):
        GroundingDataset.load(prepared, "dev")
    with pytest.raises(InputError, match=r"prepare it with bua prepare-flickr30k"):
        GroundingDataset.load(root, "train")


@pytest.mark.parametrize(
    ("key", "index", "value", "says"),
    [
        ("spans", (1, 1), 500, r"damaged \(spans\[1\] is \[3, 500\], no place in a sentence of 13 words\)"),
        ("spans", (1, 1), -3, r"damaged \(spans\[1\] is \[3, -3\]"),
        ("spans", (0, 0), -1, r"damaged \(spans\[0\] is \[-1, 2\]"),
        ("spans", (0, 0), 2, r"damaged \(spans\[0\] is \[2, 2\]"),
        ("phrase_offsets", 1, 0, "damaged"),
        ("box_offsets", 1, 0, "damaged"),
    ],
)
def test_places_outside_of_the_arrays_are_refused(prepared, tmp_path, key, index, value, says):
    folder = shutil.copytree(prepared, tmp_path / "damaged")
    with np.load(folder / "train.npz") as file:
        arrays = dict(file)
    arrays[key][index] = value
    np.savez(folder / "train.npz", **arrays)
    with pytest.raises(InputError, match=rf"train\.npz: {says}.*; prepare it again with bua prepare-flickr30k$"):
        GroundingDataset.load(folder, "train")


@pytest.mark.parametrize("tags", [["B"], ["X"] * 100])
def test_tags_that_are_not_those_of_the_vocabulary_are_refused(prepared, tmp_path, tags):
    folder = shutil.copytree(prepared, tmp_path / "damaged")
    words = load_vocabulary(folder).words
    (folder / "phrase_tags.json").write_text(json.dumps(tags[: len(words)]))
    with pytest.raises(InputError, match=r"phrase_tags\.json: damaged \(phrase_tags are not B, I or O for each of"):
        load_phrase_tags(folder)


@pytest.mark.parametrize("shape", [(3, 2), (2,)])
def test_word_vectors_that_are_not_those_of_the_vocabulary_are_refused(prepared, tmp_path, shape):
    folder = shutil.copytree(prepared, tmp_path / "damaged")
    np.savez(folder / "word_vectors.npz", glove=np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"word_vectors\.npz: .*; prepare it again.* bua prepare-flickr30k"):
        load_word_vectors(folder)


# Phrases without marks


def test_tags(prepared):
    words = GroundingDataset.load(prepared, "train").vocabulary.words
    tags = dict(zip(words, load_phrase_tags(prepared)))
    assert {word for word, tag in tags.items() if tag == "B"} >= {"a", "two"}
    assert {"man", "hat", "people", "'s"} <= {word for word, tag in tags.items() if tag == "I"}
    assert {"wearing", "holds", ".", "and", "in", "it"} <= {word for word, tag in tags.items() if tag == "O"}
    # This word occurs only in val, and is taken for a noun.
    assert tags["striped"] == "I"


@pytest.mark.parametrize(
    ("sentence", "phrases"),
    [
        ("A man in a hat holds a dog.", ["a man", "a hat", "a dog"]),
        ("a man, a woman's hand and people", ["a man", "a woman 's hand", "people"]),
        ("a dog, hat", ["a dog", "hat"]),
        ("a zebra holds a blue hat", ["a zebra", "a blue hat"]),
        ("a man in a hat holds a wearing a dog", ["a man", "a hat", "a dog"]),
        ("[man] in a [hat], wearing [a dog].", ["man", "hat", "a dog"]),
        ("a [man]'s [hat , a dog]", ["man", "hat a dog"]),
    ],
)
def test_phrases_of_a_free_sentence(prepared, sentence, phrases):
    vocabulary = GroundingDataset.load(prepared, "train").vocabulary
    words, spans = find_phrases(sentence, vocabulary, load_phrase_tags(prepared))
    assert [" ".join(words[start:end]) for start, end in spans] == phrases


@pytest.mark.parametrize(
    ("sentence", "phrases"),
    [
        ("a man in a red hat clutches a dog", ["a man", "a red hat", "a dog"]),
        ("a woman carries two dogs", ["a woman", "two dogs"]),
        ("people clutch a dog", ["people", "a dog"]),
        ("a man, clutching a dog", ["a man", "a dog"]),
        # Nouns that the vocabulary lacks stay in their phrase.
        ("a zebra, a giraffe and a polar bear in a park", ["a zebra", "a giraffe", "a polar bear", "a park"]),
        ("a man holds a yellow umbrella", ["a man", "a yellow umbrella"]),
    ],
)
def test_an_unknown_word_between_two_phrases_is_in_neither(prepared, sentence, phrases):
    vocabulary = GroundingDataset.load(prepared, "train").vocabulary
    words, spans = find_phrases(sentence, vocabulary, load_phrase_tags(prepared))
    assert [" ".join(words[start:end]) for start, end in spans] == phrases


@pytest.mark.parametrize("sentence", ["", "it rains .", "[]", "[ , ]", "[a man", "a man]", "[[a man]]"])
def test_sentences_without_phrases(prepared, sentence):
    vocabulary = GroundingDataset.load(prepared, "train").vocabulary
    with pytest.raises(InputError, match="sentence"):
        find_phrases(sentence, vocabulary, load_phrase_tags(prepared))


@pytest.mark.parametrize("text", ["a red circle ", "[a] ", "["])
def test_a_text_that_is_no_sentence_is_refused_at_once(prepared, text):
    vocabulary = GroundingDataset.load(prepared, "train").vocabulary
    with pytest.raises(InputError, match="200000 characters, more than 5000; give one sentence") as error:
        find_phrases((text * 200_000)[:200_000], vocabulary, load_phrase_tags(prepared))
    assert len(str(error.value)) < 200


def test_tags_are_where_a_word_stands_most_often():
    words = WordVocabulary(["the", "people", "walk", "new"])
    sentences = [
        (["people", "walk", "the", "walk"], [(0, 1), (2, 4)]),
        (["the", "people", "walk"], [(0, 2)]),
    ]
    assert phrase_tags(sentences, words) == ["B", "I", "O", "I"]


# Batches


def regions_of(image_id: int, boxes: list, size=(WIDTH, HEIGHT)) -> Regions:
    rng = np.random.default_rng(image_id)
    return Regions(image_id, *size, np.array(boxes, np.float32).reshape(-1, 4), rng.random((len(boxes), 3), np.float32))


def write_features(path: Path, format: str, size=(WIDTH, HEIGHT)) -> Path:
    with open_writer(path, format) as writer:
        writer.append(regions_of(12, [(0, 0, 9, 9), (41, 2, 70, 60), (1, 1, 31, 61), (80, 41, 90, 50)], size))
        writer.append(regions_of(11, [(10, 10, 50, 90), (60, 60, 90, 88), (60, 55, 90, 92)], size))
        writer.append(regions_of(21, [(0, 0, 90, 90)], size))
        writer.append(regions_of(31, [], size))
        writer.finish()
    return path


@pytest.fixture(scope="module", params=["flat", "tsv"])
def reader(request, tmp_path_factory) -> RegionReader:
    path = tmp_path_factory.mktemp("features") / f"f.{request.param}"
    return RegionReader.open([write_features(path, request.param)])


def load(folder: Path, reader: RegionReader, split: str) -> tuple:
    dataset = GroundingDataset.load(folder, split)
    return dataset, right_regions(dataset, region_boxes(dataset, reader, progress=False), progress=False)


def test_right_regions(prepared, reader):
    dataset, right = load(prepared, reader, "train")
    found = [right.regions[right.offsets[i] : right.offsets[i + 1]].tolist() for i in range(len(dataset.spans))]
    assert found == [[0], [], [1, 2], [0], [], [1, 2], [3]]
    merged = right_regions(dataset, region_boxes(dataset, reader, progress=False), protocol="merged", progress=False)
    assert np.diff(merged.offsets).tolist() == [1, 0, 2, 1, 0, 0, 1]


def test_batches(prepared, reader):
    dataset, right = load(prepared, reader, "train")
    loader = GroundingLoader(dataset, reader, right, 3, seed=0, threads=1)
    batch = next(iter(loader)).to("cpu")
    assert len(batch) == 3
    assert batch.features.shape == (3, 4, 3)
    assert batch.targets().shape == (3, 3, 4)
    for row, sentence in enumerate(batch.sentences.tolist()):
        image_id = int(dataset.image_ids[sentence])
        regions = reader.stores[0][image_id]
        assert torch.equal(batch.features[row, : len(regions)], torch.from_numpy(regions.features))
        assert batch.mask[row].tolist() == [i < len(regions) for i in range(4)]
        numbers = range(*dataset.phrase_offsets[sentence : sentence + 2].tolist())
        assert batch.phrase_mask[row].tolist() == [i < len(numbers) for i in range(3)]
        for column, phrase in enumerate(numbers):
            expected = right.regions[right.offsets[phrase] : right.offsets[phrase + 1]].tolist()
            assert batch.targets()[row, column].nonzero().flatten().tolist() == expected
            last = dataset.words[sentence, dataset.spans[phrase, 1] - 1]
            assert batch.words[row, batch.positions[row, column]] == last
    assert batch.words.shape[1] == 13
    assert batch.targets().sum() == len(right.regions)


def test_an_order_that_is_taken_up_again(prepared, reader):
    dataset, right = load(prepared, reader, "train")
    first, second = (GroundingLoader(dataset, reader, right, 2, seed=4, threads=threads) for threads in (0, 2))
    batches = [batch for batch, _ in zip(iter(first), range(5))]
    stream = iter(second)
    next(stream), next(stream)
    third = GroundingLoader(dataset, reader, right, 2, seed=0)
    third.load_state_dict(second.state_dict())
    for expected, found in zip(batches[2:], third):
        assert expected.sentences.tolist() == found.sentences.tolist()
        assert torch.equal(expected.targets(), found.targets())


def test_evaluation_has_every_sentence_once(prepared, reader):
    dataset = GroundingDataset.load(prepared, "train")
    batches = list(evaluation_batches(dataset, reader, 2))
    assert sorted(np.concatenate([batch.sentences for batch in batches]).tolist()) == [0, 1, 2]
    assert all(batch.targets().sum() == 0 for batch in batches)


def test_batches_have_the_authors_positions_behind_the_sentence(root, tmp_path, reader):
    datasets, _ = prepare_flickr30k(root, tmp_path, authors_positions=True)
    (batch,) = evaluation_batches(datasets["val"], reader, 4)
    assert batch.positions.max() < batch.words.shape[1]


def test_an_image_without_regions(prepared, reader):
    dataset, right = load(prepared, reader, "test")
    assert len(right.regions) == 0
    batch = next(iter(GroundingLoader(dataset, reader, right, 1, seed=0)))
    assert not batch.mask.any()


def test_features_of_other_images(prepared, tmp_path, caplog):
    dataset = GroundingDataset.load(prepared, "train")
    other = RegionReader.open([write_features(tmp_path / "f.flat", "flat", size=(WIDTH // 2, HEIGHT))])
    with caplog.at_level(logging.WARNING):
        region_boxes(dataset, other, progress=False)
    assert "2 of the 2 images" in caplog.text
    with open_writer(tmp_path / "few.flat", "flat") as writer:
        writer.append(regions_of(11, [(0, 0, 1, 1)]))
    with pytest.raises(InputError, match="1 of the 2 images"):
        region_boxes(dataset, RegionReader.open([tmp_path / "few.flat"]), progress=False)
