import io
import math
import os
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.captioning.cider import CiderD, DocumentFrequencies
from bua.errors import InputError

captions = st.lists(st.sampled_from(["a", "the", "cat", "dog", "sat", "on", "mat", "red", ".", ","]), max_size=9)
corpora = st.dictionaries(
    st.integers(0, 99), st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=6
)


def ngrams(caption: list) -> Counter:
    return Counter(tuple(caption[start : start + n]) for n in range(1, 5) for start in range(len(caption) - n + 1))


def slow_cider_d(candidate: list, references: list[list], frequencies: Counter, images: int) -> float:
    """Computes CIDEr-D of one caption in loops; ``frequencies`` are by n-gram."""

    def vector(caption: list, n: int) -> dict:
        return {
            gram: count * (math.log(images) - math.log(max(1, frequencies[gram])))
            for gram, count in ngrams(caption).items()
            if len(gram) == n
        }

    total = 0.0
    for reference in references:
        difference = max(1, len(candidate)) - max(1, len(reference))
        for n in range(1, 5):
            h, r = vector(candidate, n), vector(reference, n)
            lengths = math.hypot(*h.values()) * math.hypot(*r.values())
            product = sum(min(h[gram], r[gram]) * r[gram] for gram in h if gram in r)
            total += product / lengths * math.exp(-(difference**2) / 72) if lengths else 0
    return 10 * total / 4 / len(references)


def count(references: dict) -> Counter:
    return Counter(gram for captions in references.values() for gram in set().union(*map(ngrams, captions)))


@settings(max_examples=100, deadline=None)
@given(corpora)
def test_equals_a_slow_implementation(corpus):
    references = {image_id: captions for image_id, (_, captions) in corpus.items()}
    frequencies = count(references)
    scores = CiderD(references).score([candidate for candidate, _ in corpus.values()], list(corpus))
    for score, (candidate, captions) in zip(scores, corpus.values()):
        assert score == pytest.approx(slow_cider_d(candidate, captions, frequencies, len(corpus)), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(corpora)
def test_equals_pycocoevalcap(corpus):
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    references = {image_id: [" ".join(caption) for caption in captions] for image_id, (_, captions) in corpus.items()}
    if not any(any(captions) for captions in references.values()):
        return  # it has no largest document frequency then
    results = {image_id: [" ".join(candidate)] for image_id, (candidate, _) in corpus.items()}
    mean, expected = cider.Cider().compute_score(references, results)
    scorer = CiderD({image_id: captions for image_id, (_, captions) in corpus.items()})
    scores = scorer.score([candidate for candidate, _ in corpus.values()], list(corpus))
    np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=0)
    assert scores.mean() == pytest.approx(mean, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(corpora, corpora)
def test_frequencies_of_another_corpus(corpus, other):
    """Rewards use the frequencies of all training images, and score several captions of each image of a batch."""
    references = {image_id: captions for image_id, (_, captions) in corpus.items()}
    counted = {image_id: captions for image_id, (_, captions) in other.items()}
    scorer = CiderD(references, DocumentFrequencies.from_references(counted))
    ids = [image_id for image_id in corpus for _ in other]
    candidates = [candidate for _ in corpus for candidate, _ in other.values()]
    frequencies = count(counted)
    for score, image_id, candidate in zip(scorer.score(candidates, ids), ids, candidates):
        expected = slow_cider_d(candidate, references[image_id], frequencies, len(other))
        assert score == pytest.approx(expected, abs=1e-9)


REFERENCES = {
    "one": [["a", "cat", "sat", "on", "a", "mat"], ["the", "red", "cat"]],
    "two": [["a", "dog", "ran", "to", "the", "sea"]],
    "three": [["two", "men", "talk"], ["men", "who", "talk", "a", "lot"]],
}


def test_ids_score_as_strings():
    words = sorted({word for captions in REFERENCES.values() for caption in captions for word in caption})
    ids = {word: number for number, word in enumerate(words)}
    as_ids = {key: [[ids[word] for word in caption] for caption in captions] for key, captions in REFERENCES.items()}
    candidates = [["a", "red", "cat", "sat", "a", "cat"], ["the", "dog"], ["men", "talk", "a", "lot"], []]
    image_ids = ["one", "two", "three", "one"]
    expected = CiderD(REFERENCES).score(candidates, image_ids)
    scores = CiderD(as_ids).score([[ids[word] for word in caption] for caption in candidates], image_ids)
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert (expected[:3] > 0).all()
    assert expected[3] == 0


def test_best_score_is_10_and_order_counts():
    scorer = CiderD(REFERENCES)
    caption = REFERENCES["two"][0]
    same, turned, other = scorer.score([caption, caption[::-1], ["zebra"] * 6], ["two"] * 3)
    assert same == pytest.approx(10)
    assert turned == pytest.approx(2.5)
    assert other == 0


def test_frequencies_are_saved(tmp_path):
    frequencies = DocumentFrequencies.from_references(REFERENCES)
    assert frequencies.num_images == 3
    assert frequencies.images.sum() == sum(count(REFERENCES).values())
    frequencies.save(tmp_path / "frequencies")
    read = DocumentFrequencies.load(tmp_path / "frequencies")
    candidates = [["a", "cat", "sat"], ["the", "dog", "ran"]]
    expected = CiderD(REFERENCES).score(candidates, ["one", "two"])
    np.testing.assert_array_equal(CiderD(REFERENCES, read).score(candidates, ["one", "two"]), expected)


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04 cut"])
def test_other_files_are_reported_in_one_line(tmp_path, content):
    path = tmp_path / "frequencies.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"frequencies\.npz: .*; (write it|prepare it again) with bua count-"):
        DocumentFrequencies.load(path)


def test_other_archives_are_reported_in_one_line(tmp_path):
    np.savez(tmp_path / "other.npz", features=np.zeros(3))
    with pytest.raises(InputError, match=r"other\.npz: lacks hashes; prepare it again with bua count-caption-ngrams"):
        DocumentFrequencies.load(tmp_path / "other.npz")


def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match=r"pipe\.npz: cannot be read: it is a named pipe"):
        DocumentFrequencies.load(tmp_path / "pipe.npz")


def test_the_names_of_version_0_1_0_are_read(tmp_path):
    path = tmp_path / "old.npz"
    np.savez(path, hashes=np.array([2, 7], np.uint64), pictures=np.array([1, 3], np.int32), num_pictures=3)
    read = DocumentFrequencies.load(path)
    assert (read.hashes.tolist(), read.images.tolist(), read.num_images) == ([2, 7], [1, 3], 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hashes": np.array([7, 2], np.uint64)}, "hashes are not in ascending order"),
        ({"hashes": np.array([2, 2], np.uint64)}, "hashes are not in ascending order"),
        ({"hashes": np.array([2, 7])}, "hashes is missing, or no such array"),
        ({"images": np.array([1], np.int32)}, "hashes, images differ in length"),
        ({"images": np.array([1, 0], np.int32)}, "images has numbers that are not from 1 to num_images, 3"),
        ({"images": np.array([1, 4], np.int32)}, "images has numbers that are not from 1 to num_images, 3"),
        ({"num_images": np.array([3])}, "num_images is missing, or no such array"),
        ({"num_images": 3.0}, "num_images is missing, or no such array"),
    ],
)
def test_damaged_frequencies_are_refused(tmp_path, change, says):
    path = tmp_path / "f.npz"
    good = {"hashes": np.array([2, 7], np.uint64), "images": np.array([1, 3], np.int32), "num_images": 3}
    np.savez(path, **{**good, **change})
    with pytest.raises(InputError, match=rf"^\S*f\.npz: damaged \({says}\)"):
        DocumentFrequencies.load(path)


def test_frequencies_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "f.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u8", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hashes.npy", header.getvalue())
    with pytest.raises(InputError, match=r"f\.npz: damaged .*claims the shape"):
        DocumentFrequencies.load(path)


def test_images_without_references():
    with pytest.raises(InputError, match="image four: has no reference captions"):
        CiderD(REFERENCES).score([["a"]], ["four"])
    with pytest.raises(InputError, match="image four: has no reference captions"):
        CiderD(REFERENCES | {"four": []})


def test_nothing_to_score():
    assert CiderD(REFERENCES).score([], []).shape == (0,)


def test_captions_are_lists():
    with pytest.raises(ValueError, match="not a string"):
        CiderD({1: ["a cat", "a dog"]})
