"""GloVe's word vectors from their text file."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bua.errors import InputError


def load_glove(path: str | Path, vocabulary: Sequence[str], dim: int = 300) -> torch.Tensor:
    """Reads the vectors of words from GloVe's text file, whose lines hold a word and ``dim`` numbers each.

    Args:
        path: The unpacked file, such as ``glove.6B.300d.txt``.
        vocabulary: Words in the order of their ids.

    Returns:
        [len(vocabulary), dim] float32; zeros for words that the file does not have, as in the authors' code.

    Raises:
        InputError: There is no such file, its vectors have another dimension, a line is damaged, or the file has none
            of the words.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; unpack glove.6B.zip and name its glove.6B.{dim}d.txt")
    ids = {word.encode(): number for number, word in enumerate(vocabulary)}
    vectors = torch.zeros(len(vocabulary), dim)
    found = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.count(b" ") != dim:
                raise InputError(
                    f"{path}: has {line.count(b' ')} numbers in line 1, not {dim}; name a text file of GloVe vectors "
                    f"with {dim} dimensions"
                )
            word, _, values = line.partition(b" ")
            # A few words of glove.840B have blanks in them, which no word of a question has.
            if word not in ids or line.count(b" ") > dim:
                continue
            vectors[ids[word]] = _parse(values, dim, f"{path}: line {number}")
            found += 1
    if not found:
        raise InputError(f"{path}: has none of the vocabulary's {len(ids)} words; name a text file of GloVe vectors")
    return vectors


def _parse(values: bytes, dim: int, place: str) -> torch.Tensor:
    try:
        vector = [float(value) for value in values.split()]
    except ValueError as error:
        raise InputError(f"{place}: {error}; unpack the file again") from error
    if len(vector) != dim:
        raise InputError(f"{place} has {len(vector)} numbers, not {dim}; the file is truncated, unpack it again")
    return torch.tensor(vector)
