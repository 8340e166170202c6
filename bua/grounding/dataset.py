"""Flickr30k Entities prepared for training: writes a folder of a vocabulary and arrays, and reads it.

``prepare_flickr30k`` writes::

    vocabulary.json                 JSON list of words, in the order of the ids
    phrase_tags.json                for each word, where in phrases it usually stands (``bua.grounding.phrases``)
    train.npz, val.npz, test.npz    sentences, phrases and boxes of a split (``GroundingDataset``)
    word_vectors.npz                GloVe's vectors of the words, where GloVe's file was given
    flickr30k.json                  what the folder was made from, and what was left out; written last
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bua.errors import InputError
from bua.grounding.official import (
    TYPES,
    Boxes,
    Phrase,
    Sentence,
    authors_span,
    load_boxes,
    load_sentences,
    load_split,
)
from bua.grounding.phrases import check_tags, phrase_tags
from bua.tasks import prepared
from bua.tasks.glove import load_glove
from bua.tasks.prepared import PreparedDataset
from bua.tasks.words import WordVocabulary, read_strings, write_strings

SPLITS = ("train", "val", "test")
ABOUT = "flickr30k.json"
PROGRAM = "prepare-flickr30k"

logger = logging.getLogger(__name__)


@dataclass
class GroundingDataset(PreparedDataset):
    """N sentences about images, with P phrases in total and the boxes of the phrases, as arrays.

    Attributes:
        name: Path of the file, for messages.
        image_ids: [N] int64.
        sizes: [N, 2] int32, width and height of the image in pixels.
        words: [N, L] int32, ids of the words, padded at the end with ``len(vocabulary)``.
        phrase_offsets: [N + 1] int64; sentence i has the phrases from ``phrase_offsets[i]`` to
            ``phrase_offsets[i + 1]`` - 1, at least one.
        spans: [P, 2] int32, the place of the phrase's first word in the sentence, and the place behind its last word.
        chains: [P] int64; phrases of one image with the same number mean the same thing.
        types: [P, 8] bool, which of ``TYPES`` the phrase has.
        box_offsets: [P + 1] int64, the same for the boxes of the phrases. A phrase has at least one box.
        boxes: [G, 4] float32 x1y1x2y2 in pixels of the image.
        vocabulary: The vocabulary that the ids belong to.
    """

    ARRAYS = ("image_ids", "sizes", "words", "phrase_offsets", "spans", "chains", "types", "box_offsets", "boxes")

    name: str
    image_ids: np.ndarray
    sizes: np.ndarray
    words: np.ndarray
    phrase_offsets: np.ndarray
    spans: np.ndarray
    chains: np.ndarray
    types: np.ndarray
    box_offsets: np.ndarray
    boxes: np.ndarray
    vocabulary: WordVocabulary

    @property
    def sentence_of(self) -> np.ndarray:
        """[P] int64, the sentence of each phrase."""
        return np.repeat(np.arange(len(self)), np.diff(self.phrase_offsets))

    def boxes_of(self, phrase: int) -> np.ndarray:
        """Returns [g, 4] float32, the boxes of a phrase."""
        return self.boxes[self.box_offsets[phrase] : self.box_offsets[phrase + 1]]

    @classmethod
    def load(cls, folder: str | Path, split: str) -> "GroundingDataset":
        """Reads a split of a folder that ``prepare_flickr30k`` wrote: "train", "val" or "test".

        Raises:
            InputError: There is no such folder or split, or it is damaged.
        """
        vocabulary = load_vocabulary(folder)
        name, arrays = prepared.read_split(Path(folder), split, cls.ARRAYS, PROGRAM)
        for forms in (
            {"image_ids": "i1", "sizes": "i2x2", "words": "i2"},
            {"spans": "i2x2", "chains": "i1", "types": f"b2x{len(TYPES)}"},
            {"phrase_offsets": "i1"},
            {"box_offsets": "i1"},
            {"boxes": "f2x4"},
        ):
            prepared.check_arrays(name, arrays, forms, PROGRAM)
        prepared.check_ids(name, arrays["words"], len(vocabulary) + 1, PROGRAM)
        phrases = len(arrays["spans"])
        prepared.check_offsets(name, arrays["phrase_offsets"], phrases, PROGRAM, len(arrays["image_ids"]), least=1)
        prepared.check_offsets(name, arrays["box_offsets"], len(arrays["boxes"]), PROGRAM, phrases, least=1)
        _check_spans(name, arrays["spans"], arrays["words"].shape[1])
        return cls(name, **{key: arrays[key] for key in cls.ARRAYS}, vocabulary=vocabulary)

    @classmethod
    def concatenate(cls, datasets: Sequence["GroundingDataset"]) -> "GroundingDataset":
        """Joins data sets of one folder, such as train and val."""
        vocabulary = datasets[0].vocabulary
        longest = max(dataset.words.shape[1] for dataset in datasets)
        padded = [
            replace(dataset, words=_pad_columns(dataset.words, longest, padding=len(vocabulary)))
            for dataset in datasets
        ]
        name, arrays = prepared.concatenate(padded, offsets=["phrase_offsets", "box_offsets"])
        return cls(name, **arrays, vocabulary=vocabulary)

    def in_vocabulary(self, vocabulary: WordVocabulary) -> "GroundingDataset":
        """Returns the same sentences in another vocabulary, such as that of a checkpoint. Words that are not in it
        become its last word."""
        return replace(self, words=vocabulary.recode(self.words, self.vocabulary), vocabulary=vocabulary)


def load_vocabulary(folder: str | Path) -> WordVocabulary:
    """Reads the vocabulary of a folder that ``prepare_flickr30k`` wrote."""
    return WordVocabulary.load(_prepared(folder) / "vocabulary.json")


def load_phrase_tags(folder: str | Path) -> list[str]:
    """Reads the tag of each word of the vocabulary, see ``bua.grounding.phrases``.

    Raises:
        InputError: There is no such folder, or the tags are damaged, or not those of the vocabulary.
    """
    path = _prepared(folder) / "phrase_tags.json"
    tags = read_strings(path)
    check_tags(tags, load_vocabulary(folder), path)
    return tags


def load_word_vectors(folder: str | Path) -> torch.Tensor:
    """Reads GloVe's vectors of the vocabulary.

    Returns:
        [V, dim] float32; zeros for words that GloVe's file does not have.

    Raises:
        InputError: The folder has no word vectors, or they are damaged.
    """
    path, arrays = prepared.read_word_vectors(_prepared(folder), PROGRAM)
    prepared.check_vectors(path, arrays["glove"], len(load_vocabulary(folder)), PROGRAM)
    return torch.from_numpy(arrays["glove"])


def prepare_flickr30k(
    root: str | Path,
    output: str | Path,
    *,
    zero_based: bool = False,
    authors_positions: bool = False,
    vocabulary: str | Path | None = None,
    glove: str | Path | None = None,
    glove_dim: int = 300,
) -> tuple[dict[str, GroundingDataset], dict[str, dict]]:
    """Makes a vocabulary and arrays from the official files, as ban-vqa does, and writes them to a folder.

    The words are those of all sentences of train, val and test, in the order of the files that list the splits.
    Phrases without a box (scenes, things that are not in the image, chain 0) are left out, and so are sentences in
    which no phrase remains.

    Args:
        root: Folder with ``Annotations``, ``Sentences``, ``train.txt``, ``val.txt`` and ``test.txt``.
        output: The folder to write; it is created if it does not exist.
        zero_based: Whether 1 is subtracted from the corners of the boxes, as in the data set's own program, because
            pixels count from 1 in the data set and from 0 in the detector. ban-vqa uses the corners as they are.
        authors_positions: Whether a phrase gets the place that ban-vqa's code finds, see ``authors_span``.
        vocabulary: JSON list of words in the order of their ids, such as ``idx2word`` of ban-vqa's ``dictionary.pkl``.
            ban-vqa's checkpoints need it, since the code goes through the images in the order of a Python set.
        glove: Text file with a word and ``glove_dim`` numbers per line, such as ``glove.6B.300d.txt``.

    Returns:
        The data sets by split; and by split the counts of what is in them ("sentences", "phrases") and of what was
        left out ("sentences_left_out", and "phrases_left_out" by their first type).

    Raises:
        InputError: A file is missing or damaged. The folder is then as it was.
    """
    root = Path(root)
    output = Path(output)
    _check_official(root)
    ids = {split: load_split(root / f"{split}.txt") for split in SPLITS}
    sentences, boxes = {}, {}
    for image_id in tqdm([image_id for split in SPLITS for image_id in ids[split]], unit=" images"):
        sentences[image_id] = load_sentences(root / "Sentences" / f"{image_id}.txt")
        boxes[image_id] = load_boxes(root / "Annotations" / f"{image_id}.xml")
    words = WordVocabulary.load(vocabulary) if vocabulary else _all_words(sentences.values())
    marked = (sentence for image_id in ids["train"] for sentence in sentences[image_id])
    tags = phrase_tags(((sentence.words, [phrase[-2:] for phrase in sentence.phrases]) for sentence in marked), words)
    glove_vectors = None if glove is None else load_glove(glove, words.words, glove_dim)

    datasets, counts = {}, {}
    for split in SPLITS:
        images = [(image_id, sentences[image_id], boxes[image_id]) for image_id in ids[split]]
        name = str(output / f"{split}.npz")
        datasets[split], counts[split] = _dataset(name, images, words, zero_based, authors_positions)

    prepared.begin_folder(output, ABOUT, (prepared.VECTORS, *(f"{split}.npz" for split in SPLITS)))
    words.save(output / "vocabulary.json")
    write_strings(output / "phrase_tags.json", tags)
    for dataset in datasets.values():
        dataset.save(dataset.name)
    if glove_vectors is not None:
        prepared.write_arrays(output / prepared.VECTORS, {"glove": glove_vectors.numpy()})
    about = {
        "root": str(root.absolute()),
        "zero_based": zero_based,
        # The name of the option in version 0.1.0.
        "seed_positions": authors_positions,
        "splits": counts,
    }
    prepared.write_json(output / ABOUT, about)
    return datasets, counts


def _check_spans(name: str, spans: np.ndarray, length: int) -> None:
    """Checks that spans [P, 2] are places in rows of ``length`` words."""
    starts, ends = spans.T
    bad = np.flatnonzero((starts < 0) | (starts >= ends) | (ends > length))
    if len(bad):
        raise InputError(
            f"{name}: damaged (spans[{bad[0]}] is {spans[bad[0]].tolist()}, no place in a sentence of {length} words); "
            f"prepare it again with bua {PROGRAM}"
        )


def _prepared(folder: str | Path) -> Path:
    return prepared.prepared_folder(folder, ABOUT, PROGRAM)


def _check_official(root: Path) -> None:
    """Raises an error that says what to do if a list of images or a folder is missing."""
    needed = (*(f"{split}.txt" for split in SPLITS), "Annotations", "Sentences")
    missing = [name for name in needed if not (root / name).exists()]
    if missing:
        raise InputError(
            f"{root}: has no {', '.join(missing)}; name the folder of Flickr30k Entities with --root, or fetch it with "
            "`bua download flickr30k`"
        )


def _all_words(images: Iterable[list[Sentence]]) -> WordVocabulary:
    words = chain.from_iterable(sentence.words for sentence in chain.from_iterable(images))
    return WordVocabulary(list(dict.fromkeys(words)))


def _dataset(
    name: str,
    images: list[tuple[int, list[Sentence], Boxes]],
    words: WordVocabulary,
    zero_based: bool,
    authors_positions: bool,
) -> tuple[GroundingDataset, dict]:
    """Returns the data set of a split and its counts, see ``prepare_flickr30k``."""
    left_out: Counter[str] = Counter()
    image_ids, sizes, word_lists, phrase_counts, spans, phrases, found = [], [], [], [], [], [], []
    for image_id, sentences, boxes in images:
        for sentence in sentences:
            kept = [phrase for phrase in sentence.phrases if _is_boxed(phrase, boxes)]
            left_out.update(_first_type(phrase) for phrase in sentence.phrases if not _is_boxed(phrase, boxes))
            if not kept:
                continue
            image_ids.append(image_id)
            sizes.append((boxes.width, boxes.height))
            word_lists.append(sentence.words)
            phrase_counts.append(len(kept))
            phrases += kept
            found += [boxes.of_chain[phrase.chain] for phrase in kept]
            spans += [_authors_span(image_id, sentence, p) if authors_positions else (p.start, p.end) for p in kept]
    if not phrases:
        raise InputError(f"{name}: no phrase of the split has a box; unpack annotations.zip again")
    length = max(*(end for _, end in spans), *map(len, word_lists))
    dataset = GroundingDataset(
        name,
        image_ids=np.array(image_ids, np.int64),
        sizes=np.array(sizes, np.int32),
        words=words.encode_words(word_lists, length),
        phrase_offsets=prepared.offsets_of(phrase_counts),
        spans=np.array(spans, np.int32),
        chains=np.array([phrase.chain for phrase in phrases], np.int64),
        types=np.array([_one_hot(name, phrase) for phrase in phrases]),
        box_offsets=prepared.offsets_of([len(boxes) for boxes in found]),
        boxes=np.concatenate(found) - np.float32(zero_based),
        vocabulary=words,
    )
    counts = {
        "sentences": len(word_lists),
        "phrases": len(phrases),
        "sentences_left_out": sum(len(sentences) for _, sentences, _ in images) - len(word_lists),
        "phrases_left_out": dict(left_out.most_common()),
    }
    return dataset, counts


def _pad_columns(words: np.ndarray, length: int, padding: int) -> np.ndarray:
    """Returns [N, length] ids, with ``padding`` after those of [N, L]."""
    return np.pad(words, ((0, 0), (0, length - words.shape[1])), constant_values=padding)


def _is_boxed(phrase: Phrase, boxes: Boxes) -> bool:
    return phrase.chain in boxes.of_chain and phrase.start < phrase.end


def _first_type(phrase: Phrase) -> str:
    return phrase.types[0] if phrase.types else "without type"


def _authors_span(image_id: int, sentence: Sentence, phrase: Phrase) -> tuple[int, int]:
    try:
        return authors_span(sentence.text, phrase.text)
    except InputError as error:
        raise InputError(f"Sentences/{image_id}.txt: {error}") from error


def _one_hot(name: str, phrase: Phrase) -> list[bool]:
    if not phrase.types or not set(phrase.types) <= set(TYPES):
        raise InputError(
            f"{name}: [{phrase.text}] has a box and the type {'/'.join(phrase.types)!r}; use some of {', '.join(TYPES)}"
        )
    return [kind in phrase.types for kind in TYPES]
