"""Flickr30k Entities ready for training: a folder of a vocabulary and arrays, and what is read from it.

``prepare_flickr30k`` writes::

    vocabulary.json                 JSON list of words, in the order of ids
    phrase_tags.json                for each word, where in phrases it stands (``bua.grounding.phrases``)
    train.npz, val.npz, test.npz    sentences, phrases and boxes of a split (``GroundingDataset``)
    word_vectors.npz                GloVe's, where they were given
    flickr30k.json                  what it was made from, and what was left out; written last
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import torch
from tqdm import tqdm

from bua.errors import InputError, make_folder
from bua.grounding.official import (
    TYPES,
    Boxes,
    Phrase,
    Sentence,
    load_boxes,
    load_sentences,
    load_split,
    seed_span,
)
from bua.grounding.phrases import phrase_tags
from bua.io.files import whole_file
from bua.tasks.glove import load_glove
from bua.tasks.prepared import VECTORS, prepared_folder, read_arrays, read_split
from bua.tasks.words import QuestionVocabulary, read_strings, write_strings

SPLITS = ("train", "val", "test")
ABOUT = "flickr30k.json"
PROGRAM = "prepare_flickr30k.py"

ARRAYS = ("image_ids", "sizes", "words", "phrase_offsets", "spans", "chains", "types", "box_offsets", "boxes")

logger = logging.getLogger(__name__)


@dataclass
class GroundingDataset:
    """N sentences about images, their P phrases and these phrases' boxes, as arrays.

    Attributes:
        name: the file, for messages.
        image_ids: [N] int64.
        sizes: [N, 2] int32, width and height of the image in pixels.
        words: [N, L] int32 ids, padded at the end with ``len(vocabulary)``.
        phrase_offsets: [N + 1] int64; the phrases of sentence i are those from ``phrase_offsets[i]`` to the next. A
            sentence has at least one.
        spans: [P, 2] int32, the phrase's first word and the one behind its last.
        chains: [P] int64, the phrases with the same number in one image mean the same.
        types: [P, 8] bool, which of ``TYPES`` it is.
        box_offsets: [P + 1] int64, likewise of boxes. A phrase has at least one.
        boxes: [G, 4] float32 x1y1x2y2 in pixels of the image.
        vocabulary: that the ids are of.
    """

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
    vocabulary: QuestionVocabulary

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def sentence_of(self) -> np.ndarray:
        """[P] int64, the sentence of each phrase."""
        return np.repeat(np.arange(len(self)), np.diff(self.phrase_offsets))

    def boxes_of(self, phrase: int) -> np.ndarray:
        """[g, 4] float32, the boxes of a phrase."""
        return self.boxes[self.box_offsets[phrase] : self.box_offsets[phrase + 1]]

    @classmethod
    def load(cls, folder: str | Path, split: str) -> "GroundingDataset":
        """Reads a split of a folder that ``prepare_flickr30k`` wrote: "train", "val" or "test".

        Raises:
            InputError: no such folder or split, or a damaged one.
        """
        vocabulary = load_vocabulary(folder)
        name, arrays = read_split(Path(folder), split, ARRAYS, PROGRAM)
        return cls(name, *(arrays[name] for name in ARRAYS), vocabulary=vocabulary)

    def save(self, path: str | Path) -> None:
        """Writes the arrays, without the vocabulary."""
        with whole_file(Path(path)) as file:
            np.savez(file, **{name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def concatenate(cls, datasets: Sequence["GroundingDataset"]) -> "GroundingDataset":
        """One data set of several from one folder, such as train and val."""
        longest = max(dataset.words.shape[1] for dataset in datasets)
        arrays = {name: [getattr(dataset, name) for dataset in datasets] for name in ARRAYS}
        padding = len(datasets[0].vocabulary)
        arrays["words"] = [
            np.pad(words, ((0, 0), (0, longest - words.shape[1])), constant_values=padding) for words in arrays["words"]
        ]
        for name in ("phrase_offsets", "box_offsets"):
            arrays[name] = [_offsets(np.concatenate([np.diff(offsets) for offsets in arrays[name]]))]
        joined = (np.concatenate(parts) for parts in arrays.values())
        return cls(" + ".join(dataset.name for dataset in datasets), *joined, vocabulary=datasets[0].vocabulary)

    def in_vocabulary(self, vocabulary: QuestionVocabulary) -> "GroundingDataset":
        """The same sentences in another vocabulary, such as a checkpoint's; unknown words become its last one."""
        new_ids = np.array([*map(vocabulary.id_of, self.vocabulary.words), len(vocabulary)], np.int32)
        arrays = {name: getattr(self, name) for name in ARRAYS} | {"words": new_ids[self.words]}
        return GroundingDataset(self.name, **arrays, vocabulary=vocabulary)


def load_vocabulary(folder: str | Path) -> QuestionVocabulary:
    """The vocabulary of a folder that ``prepare_flickr30k`` wrote."""
    return QuestionVocabulary.load(_prepared(folder) / "vocabulary.json")


def load_phrase_tags(folder: str | Path) -> list[str]:
    """For each word of the vocabulary, a tag of ``bua.grounding.phrases``."""
    return read_strings(_prepared(folder) / "phrase_tags.json")


def load_word_vectors(folder: str | Path) -> torch.Tensor:
    """[V, dim] float32, GloVe's vectors of the vocabulary, zeros for words without one.

    Raises:
        InputError: they are not there, or damaged.
    """
    path = _prepared(folder) / VECTORS
    if not path.is_file():
        raise InputError(f"{path}: no such file; prepare_flickr30k.py --glove makes it")
    return torch.from_numpy(read_arrays(path, ("glove",), PROGRAM)["glove"])


def prepare_flickr30k(
    root: str | Path,
    output: str | Path,
    *,
    zero_based: bool = False,
    seed_positions: bool = False,
    vocabulary: str | Path | None = None,
    glove: str | Path | None = None,
    glove_dim: int = 300,
) -> tuple[dict[str, GroundingDataset], dict[str, dict]]:
    """Makes a vocabulary and arrays of the official files, as the seed does, and writes them to ``output``.

    The words are those of all sentences of train, val and test, in the order of the splits' files. Phrases without a
    box (scenes, things that are not there, chain 0) are left out, as are the sentences that then have none.

    Args:
        root: folder with ``Annotations``, ``Sentences``, ``train.txt``, ``val.txt`` and ``test.txt``.
        output: folder; made where it does not exist.
        zero_based: takes 1 from the boxes' corners, as the data set's own program does, because its pixels count from
            1 and the detector's from 0. The seed takes them as they are.
        seed_positions: takes a phrase to be where the seed does, see ``seed_span``.
        vocabulary: JSON list of words in the order of their ids, such as ``idx2word`` of the seed's
            ``dictionary.pkl``, for its checkpoints: the seed goes through images in the order of a Python set.
        glove: text file of ``glove_dim`` numbers a word, such as ``glove.6B.300d.txt``.

    Returns:
        the data sets; and counts of what is in them ("sentences", "phrases") and of what was left out
        ("sentences_left_out", and "phrases_left_out" by their first type); both by split.

    Raises:
        InputError: a file that is not there, or damaged.
    """
    root, output = Path(root), make_folder(output)
    # What an earlier run left is of another vocabulary.
    for name in (ABOUT, VECTORS, *(f"{split}.npz" for split in SPLITS)):
        (output / name).unlink(missing_ok=True)
    ids = {split: load_split(root / f"{split}.txt") for split in SPLITS}
    sentences, boxes = {}, {}
    for image_id in tqdm([image_id for split in SPLITS for image_id in ids[split]], unit=" images"):
        sentences[image_id] = load_sentences(root / "Sentences" / f"{image_id}.txt")
        boxes[image_id] = load_boxes(root / "Annotations" / f"{image_id}.xml")
    words = QuestionVocabulary.load(vocabulary) if vocabulary else _all_words(sentences.values())
    words.save(output / "vocabulary.json")
    marked = (sentence for image_id in ids["train"] for sentence in sentences[image_id])
    tags = phrase_tags(((said.words, [phrase[-2:] for phrase in said.phrases]) for said in marked), words)
    write_strings(output / "phrase_tags.json", tags)

    datasets, counts = {}, {}
    for split in SPLITS:
        images = [(image_id, sentences[image_id], boxes[image_id]) for image_id in ids[split]]
        path = output / f"{split}.npz"
        datasets[split], counts[split] = _dataset(str(path), images, words, zero_based, seed_positions)
        datasets[split].save(path)
    if glove is not None:
        with whole_file(output / VECTORS) as file:
            np.savez(file, glove=load_glove(glove, words.words, glove_dim).numpy())
    about = {
        "root": str(root.absolute()),
        "zero_based": zero_based,
        "seed_positions": seed_positions,
        "splits": counts,
    }
    with whole_file(output / ABOUT) as file:
        file.write(orjson.dumps(about, option=orjson.OPT_INDENT_2))
    return datasets, counts


def _prepared(folder: str | Path) -> Path:
    return prepared_folder(folder, ABOUT, PROGRAM)


def _all_words(images: Iterable[list[Sentence]]) -> QuestionVocabulary:
    return QuestionVocabulary(
        list(dict.fromkeys(word for sentences in images for sentence in sentences for word in sentence.words))
    )


def _dataset(
    name: str,
    images: list[tuple[int, list[Sentence], Boxes]],
    words: QuestionVocabulary,
    zero_based: bool,
    seed_positions: bool,
) -> tuple[GroundingDataset, dict]:
    left_out: Counter[str] = Counter()
    image_ids, sizes, said, phrase_counts, spans, phrases, found = [], [], [], [], [], [], []
    for image_id, sentences, boxes in images:
        for sentence in sentences:
            kept = [phrase for phrase in sentence.phrases if _is_boxed(phrase, boxes)]
            left_out.update(_first_type(phrase) for phrase in sentence.phrases if not _is_boxed(phrase, boxes))
            if not kept:
                continue
            image_ids.append(image_id)
            sizes.append((boxes.width, boxes.height))
            said.append(sentence.words)
            phrase_counts.append(len(kept))
            phrases += kept
            found += [boxes.of_chain[phrase.chain] for phrase in kept]
            spans += [_seed_span(image_id, sentence, p) if seed_positions else (p.start, p.end) for p in kept]
    if not phrases:
        raise InputError(f"{name}: no phrase of the split has a box; unpack annotations.zip again")
    length = max(end for _, end in spans + [(0, len(sentence)) for sentence in said])
    ids = np.full((len(said), length), len(words), np.int32)
    for row, sentence in enumerate(said):
        ids[row, : len(sentence)] = [words.id_of(word) for word in sentence]
    dataset = GroundingDataset(
        name,
        image_ids=np.array(image_ids, np.int64),
        sizes=np.array(sizes, np.int32),
        words=ids,
        phrase_offsets=_offsets(phrase_counts),
        spans=np.array(spans, np.int32),
        chains=np.array([phrase.chain for phrase in phrases], np.int64),
        types=np.array([_one_hot(name, phrase) for phrase in phrases]),
        box_offsets=_offsets([len(boxes) for boxes in found]),
        boxes=np.concatenate(found) - np.float32(zero_based),
        vocabulary=words,
    )
    counts = {
        "sentences": len(said),
        "phrases": len(phrases),
        "sentences_left_out": sum(len(sentences) for _, sentences, _ in images) - len(said),
        "phrases_left_out": dict(left_out.most_common()),
    }
    return dataset, counts


def _is_boxed(phrase: Phrase, boxes: Boxes) -> bool:
    return phrase.chain in boxes.of_chain and phrase.start < phrase.end


def _first_type(phrase: Phrase) -> str:
    return phrase.types[0] if phrase.types else "without type"


def _seed_span(image_id: int, sentence: Sentence, phrase: Phrase) -> tuple[int, int]:
    try:
        return seed_span(sentence.text, phrase.text)
    except InputError as error:
        raise InputError(f"Sentences/{image_id}.txt: {error}") from error


def _one_hot(name: str, phrase: Phrase) -> list[bool]:
    if not phrase.types or not set(phrase.types) <= set(TYPES):
        raise InputError(
            f"{name}: [{phrase.text}] has a box and the type {'/'.join(phrase.types)!r}; use some of {', '.join(TYPES)}"
        )
    return [kind in phrase.types for kind in TYPES]


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
