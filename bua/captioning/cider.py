"""CIDEr-D, the similarity of a caption to the references of its image (Vedantam et al. 2015; pycocoevalcap's "CIDEr").

Words and n-grams are represented by hashes of 64 bits, so that everything is computed on arrays. The probability that
any two of ten million n-grams have the same hash is 3 in a million.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from bua.errors import InputError
from bua.tasks.prepared import check_arrays, offsets_of, read_arrays, write_arrays

# A caption: its words as strings, or as ids.
Caption = Sequence[str] | Sequence[int]
# The id of an image. It is a type variable, since a mapping from int is not a mapping from Hashable to a type checker.
ImageId = TypeVar("ImageId", bound=Hashable)

PROGRAM = "count-caption-ngrams"

# The largest n of the n-grams that are compared.
LONGEST = 4
# Standard deviation, in words, of the Gaussian penalty for the difference in length from the reference.
SIGMA = 6.0
# Any odd number. It makes the hash of a pair depend on the order of the two.
ORDER = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class DocumentFrequencies:
    """The number of images in whose references each n-gram occurs, for n from 1 to 4.

    Frequencies of words given as strings cannot be used for words given as ids, and vice versa.

    Attributes:
        hashes: [M] uint64, the hashes of the n-grams in ascending order.
        images: [M] int32, the number of images whose references have the n-gram.
        num_images: Number of all images.
    """

    hashes: np.ndarray
    images: np.ndarray
    num_images: int

    @classmethod
    def from_references(cls, references: Mapping[ImageId, Iterable[Caption]]) -> "DocumentFrequencies":
        """Counts the n-grams of references.

        Args:
            references: Captions by the id of their image. For scores as in the COCO evaluation they are the references
                that captions are compared with; for rewards they are those of the training images. Where the end of a
                caption counts as a word, the captions must have it.
        """
        images, found = list(references.values()), [np.empty(0, np.uint64)]
        # The images are processed in parts, so that the n-grams before counting take little memory.
        for start in range(0, len(images), 10_000):
            captions, rows = _flatten(images[start : start + 10_000])
            found.append(_once_per_image(_NGrams.of(captions), rows))
        return cls._count(np.concatenate(found), len(images))

    @classmethod
    def _count(cls, hashes: np.ndarray, num_images: int) -> "DocumentFrequencies":
        hashes, counts = np.unique(hashes, return_counts=True)
        return cls(hashes, counts.astype(np.int32), num_images)

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequencies":
        """Reads a file that ``save`` wrote.

        Raises:
            InputError: There is no such file, it is of another kind, or it is damaged.
        """
        if not Path(path).exists():
            raise InputError(f"{path}: no such file; write it with bua {PROGRAM}")
        # Version 0.1.0 called the last two "pictures" and "num_pictures".
        arrays = {
            name.replace("pictures", "images"): array for name, array in read_arrays(path, ("hashes",), PROGRAM).items()
        }
        check_arrays(str(path), arrays, {"hashes": "u1", "images": "i1"}, PROGRAM)
        check_arrays(str(path), arrays, {"num_images": "i0"}, PROGRAM)
        hashes, images, num_images = arrays["hashes"], arrays["images"], int(arrays["num_images"])
        if not (hashes[1:] > hashes[:-1]).all():
            raise InputError(f"{path}: damaged (hashes are not in ascending order); write it again with bua {PROGRAM}")
        if len(images) and not 1 <= int(images.min()) <= int(images.max()) <= num_images:
            raise InputError(
                f"{path}: damaged (images has numbers that are not from 1 to num_images, {num_images}); write it again "
                f"with bua {PROGRAM}"
            )
        return cls(hashes, images, num_images)

    def save(self, path: str | Path) -> None:
        """Writes an npz file with exactly this name. A write that fails leaves no file."""
        arrays = {"hashes": self.hashes, "images": self.images, "num_images": np.asarray(self.num_images)}
        write_arrays(path, arrays)

    def has_all(self, captions: Sequence[Caption]) -> bool:
        """Returns whether all n-grams of ``captions`` were counted."""
        return bool(np.isin(_NGrams.of(captions).hashes, self.hashes).all())

    def idf(self, hashes: np.ndarray) -> np.ndarray:
        """Returns [K] float64, the logarithm of the number of all images over the number of images that have the
        n-gram. An n-gram that no image has counts as one that a single image has."""
        if not len(self.hashes):
            return np.full(len(hashes), np.log(max(1, self.num_images)))
        # Looking up sorted hashes is three times as fast, since successive accesses are near each other in memory.
        at, order = np.empty(len(hashes), np.int64), np.argsort(hashes)
        at[order] = np.searchsorted(self.hashes, hashes[order])
        at[at == len(self.hashes)] = 0
        return np.log(self.num_images / np.where(self.hashes[at] == hashes, self.images[at], 1))


class CiderD:
    """Scores captions against references. The part that does not depend on the captions is computed once.

    Args:
        references: Captions by the id of their image, at least one per image.
        frequencies: Document frequencies of the n-grams; by default those of ``references``, with which the scores are
            0 if there is only one image.

    Raises:
        InputError: An image has no references.
    """

    def __init__(self, references: Mapping[ImageId, Sequence[Caption]], frequencies: DocumentFrequencies | None = None):
        empty = [image_id for image_id, captions in references.items() if not len(captions)]
        if empty:
            raise InputError(f"image {empty[0]}: has no reference captions; leave it out")
        self.rows: dict[Hashable, int] = {image_id: row for row, image_id in enumerate(references)}
        captions, images = _flatten(references.values())
        grams = _NGrams.of(captions)
        self.frequencies = frequencies or DocumentFrequencies._count(_once_per_image(grams, images), len(references))
        order = np.argsort(images[grams.captions], kind="stable")
        self.captions, self.hashes = grams.captions[order].astype(np.int32), grams.hashes[order]
        self.counts = grams.counts[order].astype(np.int32)
        self.weights = grams.weights(self.frequencies)[order]
        self.words = grams.words
        self.num_references = np.bincount(images, minlength=len(self.rows))
        sizes = np.bincount(images[self.captions], minlength=len(self.rows))
        self.starts = offsets_of(sizes)

    def score(self, candidates: Sequence[Caption], image_ids: Sequence[Hashable]) -> np.ndarray:
        """Scores captions.

        Args:
            candidates: N captions, whose words are strings or ids as those of the references.
            image_ids: N ids of the images of the captions; an image may occur several times.

        Returns:
            [N] float64 from 0 to 10; 10 is the score of a caption that is the same as all references.

        Raises:
            InputError: An image has no references.
        """
        unknown = [image_id for image_id in image_ids if image_id not in self.rows]
        if unknown:
            raise InputError(f"image {unknown[0]}: has no reference captions; score only images that have")
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

        # Counts of the candidate are clipped to those of the reference. The weights are divided by the norms already.
        common = np.minimum(grams.counts[gram], self.counts[entry]) / grams.counts[gram]
        # pycocoevalcap measures lengths in bigrams, of which an empty caption has as many as one with a single word.
        difference = np.maximum(grams.words[candidate], 1) - np.maximum(self.words[reference], 1)
        products = common * weights[gram] * self.weights[entry] * np.exp(-(difference**2) / (2 * SIGMA**2))
        sums = np.bincount(candidate, weights=products, minlength=len(candidates))
        return 10 / LONGEST * sums / self.num_references[images][local]


@dataclass(frozen=True)
class _NGrams:
    """The different n-grams of each caption.

    Attributes:
        captions: [K] int64, the index of the n-gram's caption.
        lengths: [K] int64, n - 1.
        hashes: [K] uint64.
        counts: [K] int64, how often the n-gram occurs in its caption.
        words: [number of captions] int64, the number of words of each caption.
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
        # For each word the number of words up to the end of its caption, itself included.
        left = np.repeat(words, words) - _ranges(np.zeros_like(words), words)
        hashes, grams, starts = tokens, [], []
        for n in range(LONGEST):
            if n:
                # An n-gram is an (n - 1)-gram and the next word.
                hashes = _pair(hashes[:-1], tokens[n:])
            fits = np.flatnonzero(left[: len(hashes)] > n)
            starts.append(fits)
            grams.append(hashes[fits])
        lengths = np.repeat(np.arange(LONGEST), [len(part) for part in grams])
        captions_of, hashes = rows[np.concatenate(starts)], np.concatenate(grams)
        one, counts = _groups(hashes, captions_of)
        return cls(captions_of[one], lengths[one], hashes[one], counts, words)

    def weights(self, frequencies: DocumentFrequencies) -> np.ndarray:
        """Returns [K] float64, the tf-idf of each n-gram, divided by the norm of the vector of all n-grams of the same
        caption with the same n."""
        values = self.counts * frequencies.idf(self.hashes)
        vector = self.captions * LONGEST + self.lengths
        norms = np.sqrt(np.bincount(vector, weights=values**2, minlength=len(self.words) * LONGEST))[vector]
        return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def _hash_words(captions: Sequence[Caption]) -> np.ndarray:
    """Returns [words of all captions] uint64."""
    if len(captions) and isinstance(captions[0], str):
        raise ValueError(f"caption {captions[0]!r}: a caption is a list of words, not a string")
    words = list(chain.from_iterable(captions))
    if words and isinstance(words[0], str):
        return np.fromiter(map(_hash_word, words), np.uint64, len(words))
    return _mix(np.array(words, dtype=np.int64))


@lru_cache(maxsize=1 << 20)
def _hash_word(word: str) -> int:
    """Returns a hash that is the same in every process, unlike that of ``hash``."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Maps integers one-to-one to uint64 that look random (the last steps of splitmix64)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the hashes of pairs of hashes."""
    return _mix(first * ORDER + second)


def _groups(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each different pair of a hash and a row the index of one occurrence and the number of all."""
    keys = _pair(hashes, _mix(rows))
    order = np.argsort(keys)
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    return order[starts], np.diff(starts, append=len(keys))


def _once_per_image(grams: _NGrams, images: np.ndarray) -> np.ndarray:
    """Returns the hashes of the n-grams of each image's captions, each once per image, in any order."""
    return grams.hashes[_groups(grams.hashes, images[grams.captions])[0]]


def _flatten(images: Iterable[Iterable[Caption]]) -> tuple[list[Caption], np.ndarray]:
    """Returns all captions in one list, and [captions] int64, the index of the image of each."""
    lists = [list(captions) for captions in images]
    return list(chain.from_iterable(lists)), np.repeat(np.arange(len(lists)), list(map(len, lists)))


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Returns the numbers start, ..., stop - 1 of each pair of a start and a stop, one pair after the other."""
    sizes = stops - starts
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)
