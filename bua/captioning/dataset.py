"""Captions prepared for training: writes a folder of a vocabulary and arrays, and reads it.

``prepare_captions`` writes::

    vocabulary.json                   ``CaptionVocabulary``
    train.npz, val.npz, test.npz      the captions of a split as ids of words (``CaptionDataset``)
    captions_{train,val,test}.json    the same captions as people wrote them, in COCO's format, for computing scores
    captions.json                     what the folder was made from; written last
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bua.captioning.official import SPLIT_OF, Captions
from bua.captioning.vocabulary import CaptionVocabulary
from bua.errors import InputError, first_of
from bua.tasks import prepared
from bua.tasks.prepared import PreparedDataset

ABOUT = "captions.json"
PROGRAM = "prepare-captions"
VOCABULARY = "vocabulary.json"

logger = logging.getLogger(__name__)


class CaptionItem(NamedTuple):
    """An image and its captions.

    Attributes:
        captions: For each caption the int32 ids of its words, without begin and end.
    """

    image_id: int
    captions: list[np.ndarray]


@dataclass
class CaptionDataset(PreparedDataset):
    """N images with M captions of T words in total; ``dataset[i]`` is a ``CaptionItem``.

    Attributes:
        name: Path of the file, for messages.
        image_ids: [N] int64.
        caption_offsets: [N + 1] int64; image i has the captions from ``caption_offsets[i]`` to
            ``caption_offsets[i + 1]`` - 1.
        word_offsets: [M + 1] int64, the same for the words of the captions.
        words: [T] int32, ids.
        vocabulary: The vocabulary that the ids belong to.
    """

    ARRAYS = ("image_ids", "caption_offsets", "word_offsets", "words")

    name: str
    image_ids: np.ndarray
    caption_offsets: np.ndarray
    word_offsets: np.ndarray
    words: np.ndarray
    vocabulary: CaptionVocabulary

    def __getitem__(self, index: int) -> CaptionItem:
        captions = range(self.caption_offsets[index], self.caption_offsets[index + 1])
        return CaptionItem(
            int(self.image_ids[index]),
            [self.words[self.word_offsets[caption] : self.word_offsets[caption + 1]] for caption in captions],
        )

    @property
    def num_captions(self) -> int:
        return len(self.word_offsets) - 1

    def references(self, *, end: bool = False) -> dict[int, list[list[int]]]:
        """Returns the captions of each image by image id, as ids of words.

        Args:
            end: Appends the end of a caption to its words.
        """
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
            InputError: There is no such folder or split, or it is damaged.
        """
        folder = prepared.prepared_folder(folder, ABOUT, PROGRAM)
        vocabulary = CaptionVocabulary.load(folder / VOCABULARY)
        parts = [prepared.read_split(folder, split, cls.ARRAYS, PROGRAM) for split in splits]
        for name, arrays in parts:
            for key in cls.ARRAYS:
                prepared.check_arrays(name, arrays, {key: "i1"}, PROGRAM)
            prepared.check_ids(name, arrays["words"], len(vocabulary), PROGRAM)
            captions = len(arrays["word_offsets"]) - 1
            prepared.check_offsets(name, arrays["word_offsets"], len(arrays["words"]), PROGRAM, least=1)
            images = len(arrays["image_ids"])
            prepared.check_offsets(name, arrays["caption_offsets"], captions, PROGRAM, images, least=1)
        datasets = [
            cls(name, **{key: arrays[key] for key in cls.ARRAYS}, vocabulary=vocabulary) for name, arrays in parts
        ]
        name, arrays = prepared.concatenate(datasets, offsets=["caption_offsets", "word_offsets"])
        return cls(name, **arrays, vocabulary=vocabulary)


def prepare_captions(
    captions: Mapping[str, Captions],
    output: str | Path,
    *,
    tokenizer: str = "anderson",
    vocabulary: str | Path | None = None,
    vocabulary_splits: Sequence[str] | None = None,
    min_count: int | None = None,
) -> dict[str, CaptionDataset]:
    """Makes a vocabulary and arrays from captions and writes them to a folder.

    A caption without words is not used for training, but stays among the references that scores are computed with.

    Args:
        captions: The captions of each split, as the functions of ``bua.captioning.official`` return them.
        output: The folder to write; it is created if it does not exist.
        tokenizer: "anderson", "karpathy" (which uses the tokens of Karpathy's file where the captions come from it) or
            "wordpiece".
        vocabulary: A text file with one word per line, which is used instead of counting words; "wordpiece" needs it.
        vocabulary_splits: The splits whose words are counted. The default is train alone, as in Anderson's code, and
            all splits for "karpathy", as in ruotianluo's code.
        min_count: Number of times that a word must occur to be in the vocabulary; ``MIN_COUNT`` by default.

    Returns:
        The data sets by split.

    Raises:
        InputError: An unknown split or tokenizer, a bad vocabulary, images of which no caption has words, or an
            argument without effect. The folder is then as it was.
    """
    if vocabulary is not None and (min_count is not None or vocabulary_splits is not None):
        option = "--vocabulary-splits" if min_count is None else "--min-count"
        raise InputError(f"{option}: has no effect with --vocabulary, for which no words are counted; leave it out")
    if vocabulary is None:
        words = CaptionVocabulary.build(
            (text for part in _counted(captions, tokenizer, vocabulary_splits) for text in _flat(part, tokenizer)),
            tokenizer,
            min_count,
        )
    else:
        words = CaptionVocabulary.read(vocabulary, tokenizer)
    datasets = {split: _dataset(split, part, words) for split, part in captions.items()}

    output = prepared.begin_folder(output, ABOUT, (f"{split}.npz" for split in {*SPLIT_OF.values(), *captions}))
    words.save(output / VOCABULARY)
    for split, dataset in datasets.items():
        dataset.save(output / f"{split}.npz")
        prepared.write_json(output / f"captions_{split}.json", _coco_format(captions[split]), indent=False)
    about = {
        "captions": {split: part.name for split, part in captions.items()},
        "tokenizer": tokenizer,
        "vocabulary": None if vocabulary is None else str(vocabulary),
        "vocabulary_splits": vocabulary_splits,
        "min_count": min_count,
        "images": {split: len(dataset) for split, dataset in datasets.items()},
    }
    prepared.write_json(output / ABOUT, about, indent=False)
    return datasets


def _counted(captions: Mapping[str, Captions], tokenizer: str, splits: Sequence[str] | None) -> list[Captions]:
    if splits is None:
        splits = list(captions) if tokenizer == "karpathy" else ["train"]
    unknown = [split for split in splits if split not in captions]
    if unknown:
        raise InputError(
            f"split {unknown[0]!r}: there are no captions of it to count words of; use some of {', '.join(captions)}"
        )
    return [captions[split] for split in splits]


def _flat(captions: Captions, tokenizer: str) -> list[str]:
    """Returns all captions in order, in the form that ``tokenizer`` reads."""
    texts = captions.texts
    if tokenizer == "karpathy" and captions.tokens is not None:
        texts = captions.tokens
    return list(chain.from_iterable(texts))


def _dataset(split: str, captions: Captions, vocabulary: CaptionVocabulary) -> CaptionDataset:
    words, offsets = vocabulary.encode_all(_flat(captions, vocabulary.tokenizer))
    counts = np.array([len(texts) for texts in captions.texts])
    lengths = np.diff(offsets)
    kept = lengths > 0
    if not kept.all():
        logger.warning("%s: %d captions of %s have no words; they are left out", captions.name, (~kept).sum(), split)
        counts = np.add.reduceat(kept, np.cumsum(counts) - counts, dtype=np.int64)
        wordless = captions.image_ids[counts == 0].tolist()
        if wordless:
            raise InputError(
                f"{captions.name}: no caption of {len(wordless)} of the {len(counts)} images of {split} has words: "
                f"{first_of(wordless)}; leave the images out"
            )
    return CaptionDataset(
        f"{captions.name} ({split})",
        captions.image_ids,
        prepared.offsets_of(counts),
        prepared.offsets_of(lengths[kept]),
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
