"""Captions ready for training: a folder of a vocabulary and arrays, and what is read from it.

``prepare_captions`` writes::

    vocabulary.json                          ``CaptionVocabulary``
    train.npz, val.npz, test.npz             the captions of a split as ids of words (``CaptionDataset``)
    captions_{train,val,test}.json           the same as people wrote them, in COCO's format: to score captions by
    captions.json                            what it was made from, written last
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from bua.captioning.official import Captions
from bua.captioning.vocabulary import CaptionVocabulary
from bua.errors import InputError, first_of, make_folder
from bua.io.files import whole_file
from bua.tasks.prepared import prepared_folder, read_split

ABOUT = "captions.json"
PROGRAM = "prepare_captions.py"
VOCABULARY = "vocabulary.json"
_ARRAYS = ("image_ids", "caption_offsets", "word_offsets", "words")

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """An image and its captions: int32 ids of words each, without begin and end."""

    image_id: int
    captions: list[np.ndarray]


@dataclass
class CaptionDataset:
    """N images with M captions of T words in all; ``dataset[i]`` is an ``Item``.

    Attributes:
        name: the file, for messages.
        image_ids: [N] int64.
        caption_offsets: [N + 1] int64: image i has the captions from caption_offsets[i] to caption_offsets[i + 1].
        word_offsets: [M + 1] int64, likewise the words of captions.
        words: [T] int32.
        vocabulary: that ``words`` are ids of.
    """

    name: str
    image_ids: np.ndarray
    caption_offsets: np.ndarray
    word_offsets: np.ndarray
    words: np.ndarray
    vocabulary: CaptionVocabulary

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Item:
        captions = range(self.caption_offsets[index], self.caption_offsets[index + 1])
        return Item(
            int(self.image_ids[index]),
            [self.words[self.word_offsets[caption] : self.word_offsets[caption + 1]] for caption in captions],
        )

    @property
    def num_captions(self) -> int:
        return len(self.word_offsets) - 1

    def references(self, *, end: bool = False) -> dict[int, list[list[int]]]:
        """All captions as ids of words by image id, each with its end as a last word where ``end``."""
        words, last = self.words.tolist(), [self.vocabulary.end] if end else []
        captions = [words[start:stop] + last for start, stop in zip(self.word_offsets[:-1], self.word_offsets[1:])]
        return {
            image_id: captions[start:stop]
            for image_id, start, stop in zip(
                self.image_ids.tolist(), self.caption_offsets[:-1], self.caption_offsets[1:]
            )
        }

    @classmethod
    def load(cls, folder: str | Path, *splits: str) -> "CaptionDataset":
        """Reads splits of a folder that ``prepare_captions`` wrote, such as "train", as one data set.

        Raises:
            InputError: no such folder or split, or a damaged one.
        """
        folder = prepared_folder(folder, ABOUT, PROGRAM)
        vocabulary = CaptionVocabulary.load(folder / VOCABULARY)
        parts = [read_split(folder, split, _ARRAYS, PROGRAM) for split in splits]
        return _concatenate([cls(name, *(arrays[key] for key in _ARRAYS), vocabulary) for name, arrays in parts])

    def save(self, path: str | Path) -> None:
        """Writes the arrays, without the vocabulary."""
        with whole_file(Path(path)) as file:
            np.savez(file, **{name: getattr(self, name) for name in _ARRAYS})


def prepare_captions(
    captions: Mapping[str, Captions],
    output: str | Path,
    *,
    tokenizer: str = "anderson",
    vocabulary: str | Path | None = None,
    vocabulary_splits: Sequence[str] | None = None,
    min_count: int | None = None,
) -> dict[str, CaptionDataset]:
    """Makes a vocabulary and arrays of captions, and writes them to ``output``.

    A caption in which no word is left is not trained on; it stays among those that captions are scored by.

    Args:
        captions: by split, from ``bua.captioning.official``.
        output: folder; made where it does not exist.
        tokenizer: "anderson", "karpathy" (which takes the tokens of Karpathy's file, where it was read from one) or
            "wordpiece".
        vocabulary: a file with a word a line to take instead of counting words; "wordpiece" needs it.
        vocabulary_splits: those whose words are counted: by default train alone, as Anderson does, for "karpathy" all,
            as ruotianluo does.
        min_count: how often a word must occur; ``MIN_COUNT`` by default.

    Returns:
        the data sets by split.

    Raises:
        InputError: an unknown split or tokenizer, a bad vocabulary, or images that are left without captions.
    """
    output = make_folder(output)
    (output / ABOUT).unlink(missing_ok=True)
    if vocabulary is None:
        words = CaptionVocabulary.build(
            (text for part in _counted(captions, tokenizer, vocabulary_splits) for text in _flat(part, tokenizer)),
            tokenizer,
            min_count,
        )
    else:
        words = CaptionVocabulary.read(vocabulary, tokenizer)
    datasets = {split: _dataset(split, part, words) for split, part in captions.items()}

    words.save(output / VOCABULARY)
    for split, dataset in datasets.items():
        dataset.save(output / f"{split}.npz")
        _write_json(output / f"captions_{split}.json", _coco_format(captions[split]))
    about = {
        "captions": {split: part.name for split, part in captions.items()},
        "tokenizer": tokenizer,
        "vocabulary": None if vocabulary is None else str(vocabulary),
        "vocabulary_splits": vocabulary_splits,
        "min_count": min_count,
        "images": {split: len(dataset) for split, dataset in datasets.items()},
    }
    _write_json(output / ABOUT, about)
    return datasets


def _concatenate(datasets: Sequence[CaptionDataset]) -> CaptionDataset:
    if len(datasets) == 1:
        return datasets[0]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(dataset, name) for dataset in datasets])

    def joined_offsets(name: str) -> np.ndarray:
        counts = np.concatenate([np.diff(getattr(dataset, name)) for dataset in datasets])
        return np.concatenate([[0], counts.cumsum()])

    return CaptionDataset(
        " + ".join(dataset.name for dataset in datasets),
        joined("image_ids"),
        joined_offsets("caption_offsets"),
        joined_offsets("word_offsets"),
        joined("words"),
        datasets[0].vocabulary,
    )


def _counted(captions: Mapping[str, Captions], tokenizer: str, splits: Sequence[str] | None) -> list[Captions]:
    if splits is None:
        splits = list(captions) if tokenizer == "karpathy" else ["train"]
    unknown = [split for split in splits if split not in captions]
    if unknown:
        raise InputError(
            f"split {unknown[0]!r}: there are no captions of it to count words of; there are {', '.join(captions)}"
        )
    return [captions[split] for split in splits]


def _flat(captions: Captions, tokenizer: str) -> list[str]:
    """All captions in order, as ``tokenizer`` is to read them."""
    take_tokens = tokenizer == "karpathy" and captions.tokens is not None
    return [text for texts in (captions.tokens if take_tokens else captions.texts) for text in texts]


def _dataset(split: str, captions: Captions, vocabulary: CaptionVocabulary) -> CaptionDataset:
    words, offsets = vocabulary.encode_all(_flat(captions, vocabulary.tokenizer))
    counts = np.array([len(texts) for texts in captions.texts])
    lengths = np.diff(offsets)
    kept = lengths > 0
    if not kept.all():
        logger.warning("%s: %d captions of %s have no words; left out", captions.name, (~kept).sum(), split)
        counts = np.add.reduceat(kept, np.cumsum(counts) - counts, dtype=np.int64)
        silent = captions.image_ids[counts == 0].tolist()
        if silent:
            raise InputError(
                f"{captions.name}: no caption of {len(silent)} of the {len(counts)} images of {split} has words: "
                f"{first_of(silent)}; leave the images out"
            )
    return CaptionDataset(
        f"{captions.name} ({split})",
        captions.image_ids,
        np.concatenate([[0], counts.cumsum()]),
        np.concatenate([[0], lengths[kept].cumsum()]),
        words,
        vocabulary,
    )


def _coco_format(captions: Captions) -> dict:
    ids = captions.image_ids.tolist()
    pairs = [(image_id, text) for image_id, texts in zip(ids, captions.texts) for text in texts]
    return {
        "images": [{"id": image_id} for image_id in ids],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": text} for number, (image_id, text) in enumerate(pairs)
        ],
    }


def _write_json(path: Path, content: dict) -> None:
    with whole_file(path) as file:
        file.write(orjson.dumps(content))
