"""Counts the objects that the original keeps as rows of zeros (``bua.detection.evaluation.zero_rows``)."""

from array import array
from collections import Counter
from collections.abc import Iterable

from bua.visual_genome.names import clean_object_name
from bua.visual_genome.vocabulary import MAX_NAMES, ranked
from bua.vocabulary import Vocabulary

# The original's XML files hold the objects with the most frequent names, this many.
NUM_NAMES = MAX_NAMES["objects"]


class ZeroRowCounter:
    """Collects the names of the objects in all images, and counts the rows of zeros of each image."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._counts: Counter[int] = Counter()
        self._images: dict[int, array[int]] = {}

    def add(self, image_id: int, texts: Iterable[str]) -> None:
        """Adds an image of Visual Genome, also one that is in no split, with the name of each of its objects as the
        file has it."""
        ids = array("i", (self._ids.setdefault(text, len(self._ids)) for text in texts))
        self._counts.update(ids)
        self._images[image_id] = ids

    def numbers(self, objects: Vocabulary, num_names: int = NUM_NAMES) -> dict[int, int]:
        """Returns the number of rows of zeros by image id: that of objects whose cleaned name is not in the vocabulary,
        but among the most frequent ones in all images.

        Of names with the same frequency, the first ones in alphabetical order count as more frequent; in the original,
        their order is that of a Python dict. Empty names do not count.

        Args:
            objects: The vocabulary.
            num_names: How many names count as the most frequent ones.
        """
        names = {number: clean_object_name(text)[0] for text, number in self._ids.items()}
        frequencies: Counter[str] = Counter()
        for number, count in self._counts.items():
            frequencies[names[number]] += count
        frequent = {name for name, _ in ranked(frequencies)[:num_names]}
        left_out = {number for number, name in names.items() if name and name in frequent and objects.id(name) is None}
        return {image_id: sum(number in left_out for number in ids) for image_id, ids in self._images.items()}
