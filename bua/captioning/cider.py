"""CIDEr-D: how much a caption is like the references of its image (Vedantam et al. 2015; pycocoevalcap's "CIDEr").

Words and n-grams are hashes of 64 bits, so that all of it is arithmetic on arrays. Of ten million n-grams, two have
the same hash with a probability of 3 in a million.
"""

import hashlib
import zipfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from bua.errors import InputError
from bua.io.files import whole_file

# A caption: words as strings, or as ids.
Caption = Sequence[str] | Sequence[int]

LONGEST = 4
# Deviation, in words, of the penalty for another length than the reference's.
SIGMA = 6.0
# Any odd number: what tells a pair of hashes from the same pair turned round.
ORDER = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs, for n from 1 to 4.

    They go with one kind of words: those of strings do not know ids.

    Attributes:
        hashes: [M] uint64, of the n-grams, ascending.
        images: [M] int32, how many images have it.
        num_images: of how many.
    """

    hashes: np.ndarray
    images: np.ndarray
    num_images: int

    @classmethod
    def from_references(cls, references: Mapping[Hashable, Iterable[Caption]]) -> "DocumentFrequencies":
        """Counts the n-grams of references, captions by the id of their image.

        For scores as the COCO evaluation's, the references that are scored against; as rewards, those of the training
        images. Where the end of a sentence is to be a word, it is in the captions.
        """
        images, found = list(references.values()), [np.empty(0, np.uint64)]
        # So many at a time that the n-grams before counting stay small.
        for start in range(0, len(images), 10_000):
            captions, rows = _flatten(images[start : start + 10_000])
            found.append(_once_an_image(_NGrams.of(captions), rows))
        return cls._count(np.concatenate(found), len(images))

    @classmethod
    def _count(cls, hashes: np.ndarray, num_images: int) -> "DocumentFrequencies":
        hashes, counts = np.unique(hashes, return_counts=True)
        return cls(hashes, counts.astype(np.int32), num_images)

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequencies":
        """Reads what ``save`` wrote.

        Raises:
            InputError: no such file, or another file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                # Version 0.1.0 called the last two "pictures" and "num_pictures".
                old = "pictures" in file
                images = file["pictures" if old else "images"]
                return cls(file["hashes"], images, int(file["num_pictures" if old else "num_images"]))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; write it with datasets/count_caption_ngrams.py") from error
        except (KeyError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{path}: not a file of document frequencies; write it again") from error

    def save(self, path: str | Path) -> None:
        """Writes an npz file, whole or not at all, by exactly this name."""
        with whole_file(Path(path)) as file:
            np.savez(file, hashes=self.hashes, images=self.images, num_images=self.num_images)

    def has_all(self, captions: Sequence[Caption]) -> bool:
        """Whether each n-gram of ``captions`` is among those that were counted."""
        return bool(np.isin(_NGrams.of(captions).hashes, self.hashes).all())

    def idf(self, hashes: np.ndarray) -> np.ndarray:
        """[K] float64, the logarithm of the images there are for each that has the n-gram; one that none has counts
        as one that one has."""
        if not len(self.hashes):
            return np.full(len(hashes), np.log(max(1, self.num_images)))
        # In order, so that what is looked up next is near in memory: three times as fast.
        at, order = np.empty(len(hashes), np.int64), np.argsort(hashes)
        at[order] = np.searchsorted(self.hashes, hashes[order])
        at[at == len(self.hashes)] = 0
        return np.log(self.num_images / np.where(self.hashes[at] == hashes, self.images[at], 1))


class CiderD:
    """Scores captions against references; what does not depend on the captions is computed once.

    Args:
        references: captions by the id of their image; one at least of each.
        frequencies: by default those of ``references``. An image alone scores 0 with them.

    Raises:
        InputError: an image without references.
    """

    def __init__(
        self, references: Mapping[Hashable, Sequence[Caption]], frequencies: DocumentFrequencies | None = None
    ):
        empty = [image_id for image_id, captions in references.items() if not len(captions)]
        if empty:
            raise InputError(f"image {empty[0]}: has no reference captions; leave it out")
        self.rows = {image_id: row for row, image_id in enumerate(references)}
        captions, images = _flatten(references.values())
        grams = _NGrams.of(captions)
        self.frequencies = frequencies or DocumentFrequencies._count(_once_an_image(grams, images), len(references))
        order = np.argsort(images[grams.captions], kind="stable")
        self.captions, self.hashes = grams.captions[order].astype(np.int32), grams.hashes[order]
        self.counts = grams.counts[order].astype(np.int32)
        self.weights = grams.weights(self.frequencies)[order]
        self.words = grams.words
        self.num_references = np.bincount(images, minlength=len(self.rows))
        sizes = np.bincount(images[self.captions], minlength=len(self.rows))
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def score(self, candidates: Sequence[Caption], image_ids: Sequence[Hashable]) -> np.ndarray:
        """
        Args:
            candidates: [N] captions, of the references' kind of words.
            image_ids: [N], the image of each; images may come several times.

        Returns:
            [N] float64, 0 to 10; 10 for a caption that is like all references.

        Raises:
            InputError: an image that has no references.
        """
        unknown = [image_id for image_id in image_ids if image_id not in self.rows]
        if unknown:
            raise InputError(f"image {unknown[0]}: has no reference captions")
        if not len(candidates):
            return np.zeros(0)
        images, local = np.unique([self.rows[image_id] for image_id in image_ids], return_inverse=True)
        grams = _NGrams.of(candidates)
        weights = grams.weights(self.frequencies)

        entries = _ranges(self.starts[images], self.starts[images + 1])
        sizes = self.starts[images + 1] - self.starts[images]
        keys = _pair(self.hashes[entries], _mix(np.repeat(np.arange(len(images)), sizes)))
        order = np.argsort(keys)
        keys, entries = keys[order], entries[order]

        wanted = _pair(grams.hashes, _mix(local[grams.captions]))
        first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        gram = np.repeat(np.arange(len(wanted)), last - first)
        entry = entries[_ranges(first, last)]
        candidate, reference = grams.captions[gram], self.captions[entry]

        # The candidate's part of the product is clipped to the reference's; weights are over the vectors' lengths.
        common = np.minimum(grams.counts[gram], self.counts[entry]) / grams.counts[gram]
        # Lengths are counted in pairs of words, of which an empty caption has as many as one of a single word.
        difference = np.maximum(grams.words[candidate], 1) - np.maximum(self.words[reference], 1)
        products = common * weights[gram] * self.weights[entry] * np.exp(-(difference**2) / (2 * SIGMA**2))
        sums = np.bincount(candidate, weights=products, minlength=len(candidates))
        return 10 / LONGEST * sums / self.num_references[images][local]


@dataclass(frozen=True)
class _NGrams:
    """The n-grams of captions, each once a caption.

    Attributes:
        captions: [K] int64, the row of the caption that it is in.
        lengths: [K] int64, n - 1.
        hashes: [K] uint64.
        counts: [K] int64, how often it is there.
        words: [captions] int64, their numbers of words.
    """

    captions: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    counts: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, captions: Sequence[Caption]) -> "_NGrams":
        words = np.fromiter(map(len, captions), np.int64, len(captions))
        tokens = _hash_words(captions)
        rows = np.repeat(np.arange(len(captions)), words)
        # Words from each to its caption's end, itself included.
        left = np.repeat(words, words) - _ranges(np.zeros_like(words), words)
        hashes, grams, starts = tokens, [], []
        for n in range(LONGEST):
            if n:
                # Each is one that is shorter by a word, and the next word.
                hashes = _pair(hashes[:-1], tokens[n:])
            fits = np.flatnonzero(left[: len(hashes)] > n)
            starts.append(fits)
            grams.append(hashes[fits])
        lengths = np.repeat(np.arange(LONGEST), [len(part) for part in grams])
        captions_of, hashes = rows[np.concatenate(starts)], np.concatenate(grams)
        one, counts = _groups(hashes, captions_of)
        return cls(captions_of[one], lengths[one], hashes[one], counts, words)

    def weights(self, frequencies: DocumentFrequencies) -> np.ndarray:
        """[K] float64, the n-grams' tf-idf over the length of the vector of all of the caption's of that n."""
        values = self.counts * frequencies.idf(self.hashes)
        vector = self.captions * LONGEST + self.lengths
        norms = np.sqrt(np.bincount(vector, weights=values**2, minlength=len(self.words) * LONGEST))[vector]
        return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def _hash_words(captions: Sequence[Caption]) -> np.ndarray:
    """[words of all captions] uint64."""
    if len(captions) and isinstance(captions[0], str):
        raise ValueError(f"caption {captions[0]!r}: a caption is a list of words, not a string")
    words = list(chain.from_iterable(captions))
    if words and isinstance(words[0], str):
        return np.fromiter(map(_hash_word, words), np.uint64, len(words))
    return _mix(np.array(words, dtype=np.int64))


@lru_cache(maxsize=1 << 20)
def _hash_word(word: str) -> int:
    """The same in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Integers to uint64 that look drawn at random, and differ where the integers do (splitmix64's last steps)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairs of hashes to their own hashes."""
    return _mix(first * ORDER + second)


def _groups(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where one of each pair of a hash and a row is, and how often the pair is there."""
    keys = _pair(hashes, _mix(rows))
    order = np.argsort(keys)
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    return order[starts], np.diff(starts, append=len(keys))


def _once_an_image(grams: _NGrams, images: np.ndarray) -> np.ndarray:
    """The hashes of the n-grams of each image's captions, each once an image, in any order."""
    return grams.hashes[_groups(grams.hashes, images[grams.captions])[0]]


def _flatten(images: Iterable[Iterable[Caption]]) -> tuple[list[Caption], np.ndarray]:
    """All captions, and the row of the image of each."""
    images = [list(captions) for captions in images]
    return list(chain.from_iterable(images)), np.repeat(np.arange(len(images)), list(map(len, images)))


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """[start, ..., stop - 1] of each pair, one after the other."""
    sizes = stops - starts
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)
