"""Computes the initial word vectors: those of GloVe, and those of BAN's second table (its option "c").

In the second table, the vector of a word is a weighted mean of the vectors of the words that it occurs with (ban-vqa,
dataset.py, tfidf_from_questions, and language_model.py, init_embedding).
"""

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from pathlib import Path

import numpy as np
import torch

from bua.errors import InputError
from bua.io.json_records import iter_records, read_records
from bua.tasks.glove import load_glove
from bua.tasks.prepared import VECTORS, check_vectors, read_word_vectors, write_arrays
from bua.tasks.words import WordVocabulary, tokenize
from bua.vqa.dataset import PROGRAM, SUBSETS, load_vocabularies, question_file
from bua.vqa.official import load_questions

WEIGHTINGS = ("authors", "tfidf")
# The name of "authors" in a word_vectors.npz of version 0.1.0.
_OLD_NAME = "seed"

# Number of pairs that are held in memory before equal ones are counted together: an eighth of a gigabyte.
_PAIRS_HELD = 2**24

logger = logging.getLogger(__name__)


@dataclass
class Pairs:
    """The pairs of words of many sentences.

    Every two words of a sentence make a pair in both directions. The first word of a pair (its row) is always in the
    vocabulary.

    Attributes:
        words: M words: the N words of the vocabulary, then the other words of the sentences.
        num_rows: N.
        rows, columns, counts: [P] int64, the ids of the different pairs and how often each pair occurs.
        occurrences: [M] int64, how often each word occurs.
        sentences: [M] int64, the number of sentences that each word occurs in.
        first: The first M pairs (row, column) in the order in which they occur.
    """

    words: list[str]
    num_rows: int
    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray
    occurrences: np.ndarray
    sentences: np.ndarray
    first: list[tuple[int, int]]


def count_pairs(sentences: Iterable[str], vocabulary: WordVocabulary) -> Pairs:
    """Counts the pairs of words of sentences. The memory in use grows with the number of words, not of pairs."""
    ids = {word: number for number, word in enumerate(vocabulary.words)}
    all_words, all_lengths = array("i"), array("i")
    for sentence in sentences:
        words = [ids.setdefault(word, len(ids)) for word in tokenize(sentence)]
        all_words.extend(words)
        all_lengths.append(len(words))
    flat, lengths = np.array(all_words, np.int64), np.array(all_lengths, np.int64)
    sentence_of = np.repeat(np.arange(len(lengths)), lengths)
    keys, counts = _count_alike(_pair_keys(flat, lengths, len(vocabulary)))
    return Pairs(
        words=list(ids),
        num_rows=len(vocabulary),
        rows=keys >> 32,
        columns=keys & 0xFFFFFFFF,
        counts=counts,
        occurrences=np.bincount(flat, minlength=len(ids)),
        sentences=np.bincount(np.unique(sentence_of << 32 | flat) & 0xFFFFFFFF, minlength=len(ids)),
        first=list(islice(_pairs_in_order(flat, lengths, len(vocabulary)), len(ids))),
    )


def cooccurrence(pairs: Pairs, weighting: str = "tfidf") -> torch.Tensor:
    """Returns the weights of the words whose mean is the vector of each word of the vocabulary.

    Args:
        weighting: "tfidf" weights a pair by its count over the number of sentences that the column's word occurs in,
            which is what the authors of BAN describe. "authors" is what their code (ban-vqa) computes. It takes the
            column for a place in its list of pairs, and the number of occurrences for the number of sentences: of all
            pairs in the order in which they occur, pair i counts 1 over the number of occurrences of word i, to the
            power of the number of times that word i is a column; pairs from M on count 1.

    Returns:
        Sparse [N, M] float32. Rows sum to 1, or are empty for words that never occur with another word.

    Raises:
        InputError: An unknown weighting.
    """
    if weighting == "tfidf":
        values = pairs.counts / pairs.sentences[pairs.columns]
    elif weighting == "authors":
        values = _authors_values(pairs)
    else:
        raise InputError(f"weighting {weighting!r}: unknown; use one of {', '.join(WEIGHTINGS)}")
    sums = np.bincount(pairs.rows, values, minlength=pairs.num_rows)[pairs.rows]
    values = np.divide(values, sums, out=np.zeros_like(values), where=sums > 0)
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([pairs.rows, pairs.columns])),
        torch.from_numpy(values.astype(np.float32)),
        (pairs.num_rows, len(pairs.words)),
        is_coalesced=True,
        check_invariants=False,
    )


def tfidf_embedding(pairs: Pairs, vectors: torch.Tensor, weighting: str = "tfidf") -> torch.Tensor:
    """Returns BAN's second table, [N, dim] float32.

    Args:
        vectors: [M, dim] float32, the vectors of ``pairs.words``, such as ``load_glove`` returns.
        weighting: See ``cooccurrence``.
    """
    return torch.sparse.mm(cooccurrence(pairs, weighting), vectors)


def prepare_word_vectors(
    folder: str | Path,
    glove: str | Path,
    root: str | Path,
    *,
    visual_genome: str | Path | None = None,
    captions: Sequence[str | Path] = (),
    dim: int = 300,
) -> None:
    """Adds ``word_vectors.npz`` to a folder that ``prepare_vqa`` wrote.

    Its arrays are "glove" [N, dim] float32, the second table in the same shape by each weighting, "authors" and
    "tfidf", and "answers" [A, dim] float32, the mean of the vectors of each answer's words, or zeros if none has one.

    ban-vqa counts pairs in the questions of train, val and test, all questions of Visual Genome, and COCO's captions of
    2017.

    Args:
        glove: Text file of vectors, such as ``glove.6B.300d.txt``.
        root: Folder of VQA's official files.
        visual_genome: Folder with ``question_answers.json``; None leaves Visual Genome's questions out.
        captions: Files such as ``captions_train2017.json``; ban-vqa's order is train, val.
    """
    words, answers = load_vocabularies(folder)
    subsets = [question_file(root, subset) for subset in SUBSETS.values()]
    sentences: list[Iterable[str]] = [load_questions(path).texts for path in subsets if path.exists()]
    if visual_genome is not None:
        sentences.append(_visual_genome_sentences(Path(visual_genome) / "question_answers.json"))
    sentences += [load_captions(path) for path in captions]
    pairs = count_pairs(chain.from_iterable(sentences), words)
    logger.info("%d words occur with %d words in %d different pairs", len(words), len(pairs.words), len(pairs.rows))
    # The words of answers follow, so that the file is read once for all words.
    all_words = list(dict.fromkeys([*pairs.words, *chain.from_iterable(map(tokenize, answers.answers))]))
    all_vectors = load_glove(glove, all_words, dim)
    vectors = all_vectors[: len(pairs.words)]
    tables = {weighting: tfidf_embedding(pairs, vectors, weighting).numpy() for weighting in WEIGHTINGS}
    tables["answers"] = _mean_vectors(answers.answers, dict(zip(all_words, all_vectors))).numpy()
    write_arrays(Path(folder) / VECTORS, {"glove": vectors[: len(words)].numpy(), **tables})


def load_embedding_tables(folder: str | Path, weighting: str = "tfidf") -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the tables that ``prepare_word_vectors`` wrote.

    Returns:
        GloVe's vectors and BAN's second table, both [N, dim] float32.

    Raises:
        InputError: The folder has no word vectors, they are damaged, or the weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise InputError(f"weighting {weighting!r}: unknown; use one of {', '.join(WEIGHTINGS)}")
    path, arrays = read_word_vectors(Path(folder), PROGRAM)
    key = _OLD_NAME if weighting == "authors" and _OLD_NAME in arrays else weighting
    if key not in arrays:
        raise InputError(f"{path}: lacks {key}; prepare it again with bua {PROGRAM} --glove")
    words, _ = load_vocabularies(folder)
    for name in ("glove", key):
        check_vectors(path, arrays[name], len(words), PROGRAM)
    return torch.from_numpy(arrays["glove"]), torch.from_numpy(arrays[key])


def load_answer_vectors(folder: str | Path) -> torch.Tensor:
    """Reads the vectors [A, dim] float32 of the answers that ``prepare_word_vectors`` wrote.

    Raises:
        InputError: The folder has no word vectors, they are damaged, or they are of an older version.
    """
    path, arrays = read_word_vectors(Path(folder), PROGRAM)
    if "answers" not in arrays:
        raise InputError(f"{path}: lacks the vectors of answers; prepare it again with bua {PROGRAM} --glove")
    check_vectors(path, arrays["answers"], len(load_vocabularies(folder)[1]), PROGRAM)
    return torch.from_numpy(arrays["answers"])


def load_captions(path: str | Path) -> list[str]:
    """Reads the sentences of a file in the format of COCO's captions."""
    _, records = read_records(path, "annotations")
    try:
        return [record["caption"] for record in records]
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{path}: annotations: an entry has no caption; name files such as captions_train2017.json"
        ) from error


def _mean_vectors(sentences: Sequence[str], vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns [len(sentences), dim], for each sentence the mean of the vectors of those of its words that have one."""
    means = torch.zeros(len(sentences), len(next(iter(vectors.values()))))
    for row, sentence in enumerate(sentences):
        known = [vectors[word] for word in tokenize(sentence) if vectors[word].any()]
        if known:
            means[row] = torch.stack(known).mean(dim=0)
    return means


def _visual_genome_sentences(path: Path) -> Iterator[str]:
    for record in iter_records(path):
        try:
            questions = [item["question"] for item in record.get("qas", ())]
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: qas: an entry has no question; get the file again") from error
        yield from questions


def _pair_keys(flat: np.ndarray, lengths: np.ndarray, num_rows: int) -> Iterator[np.ndarray]:
    """Yields all pairs as ``row << 32 | column``, in arrays of limited size."""
    starts = lengths.cumsum() - lengths
    for length in np.unique(lengths).tolist():
        left, right = np.triu_indices(length, 1)
        if not len(left):
            continue
        begins = starts[lengths == length]
        per_piece = max(1, _PAIRS_HELD // (2 * len(left)))
        for piece in range(0, len(begins), per_piece):
            words = flat[begins[piece : piece + per_piece, None] + np.arange(length)]
            first, second = words[:, left].ravel(), words[:, right].ravel()
            for row, column in ((first, second), (second, first)):
                known = row < num_rows
                yield row[known] << 32 | column[known]


def _count_alike(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different numbers in arrays, in ascending order, and how often each occurs."""
    numbers, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for piece in pieces:
        new, new_counts = np.unique(piece, return_counts=True)
        numbers, where = np.unique(np.concatenate([numbers, new]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, new_counts]), len(numbers)).astype(np.int64)
    return numbers, counts


def _pairs_in_order(flat: np.ndarray, lengths: np.ndarray, num_rows: int) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths.tolist():
        for first, second in combinations(flat[start : start + length].tolist(), 2):
            if first < num_rows:
                yield first, second
            if second < num_rows:
                yield second, first
        start += length


def _authors_values(pairs: Pairs) -> np.ndarray:
    values = pairs.counts.astype(np.float64)
    if not pairs.first:
        return values
    number = np.arange(len(pairs.first))
    as_column = np.bincount(pairs.columns, pairs.counts, minlength=len(pairs.words))[number]
    # A word that never occurs is never a column either.
    shares = np.maximum(pairs.occurrences[number], 1.0) ** -as_column
    rows, columns = np.array(pairs.first).T
    places = np.searchsorted(pairs.rows << 32 | pairs.columns, rows << 32 | columns)
    # All ones are subtracted before the shares are added, since a share may be too small to change a count.
    np.subtract.at(values, places, 1)
    np.add.at(values, places, shares)
    return values
