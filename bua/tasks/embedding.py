"""Embedding of words as vectors."""

import torch
from torch import Tensor, nn

from bua.errors import InputError


class WordEmbedding(nn.Module):
    """Embeds each word as a vector. Padding, whose id is ``num_words``, becomes zeros.

    BAN's option "c" adds a second table. ban-vqa (language_model.py) initialises it with the mean of the vectors of the
    words that a word occurs with. The vectors of a word in the two tables are concatenated.

    Args:
        num_words: Number of words of the vocabulary.
        dim: Dimension of the vectors of one table.
        second: Whether there is a second table.
        train_second: Whether the second table is trained. In ban-vqa, it is trained if it was initialised from
            co-occurrences, and is not trained if it is a copy of the first.
    """

    def __init__(self, num_words: int, dim: int = 300, *, second: bool = False, train_second: bool = True):
        super().__init__()
        self.num_words = num_words
        self.words = nn.Embedding(num_words + 1, dim, padding_idx=num_words)
        self.second = None
        if second:
            self.second = nn.Embedding(num_words + 1, dim, padding_idx=num_words)
            self.second.weight.requires_grad_(train_second)
        self.out_features = dim * (1 + second)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns vectors [B, L, out_features] of ids [B, L] int64, from 0 to ``num_words``."""
        vectors: Tensor = self.words(ids)
        if self.second is None:
            return vectors
        return torch.cat([vectors, self.second(ids)], dim=-1)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, second: Tensor | None = None, *, source: str = "word vectors") -> None:
        """Copies word vectors into the tables.

        Args:
            vectors: [num_words, dim], such as ``bua.tasks.glove.load_glove`` gives.
            second: [num_words, dim] for the second table; ``vectors`` by default, as in ban-vqa.
            source: The file or folder that the vectors are from, for the message.

        Raises:
            InputError: The vectors have another dimension.
            ValueError: There are not as many vectors as words.
        """
        second = vectors if second is None else second
        for table, values in ((self.words, vectors), (self.second, second)):
            if table is None:
                continue
            if len(values) != self.num_words:
                raise ValueError(f"{source}: {len(values)} word vectors for a vocabulary of {self.num_words} words")
            if values.shape[1] != table.embedding_dim:
                raise InputError(
                    f"{source}: the word vectors have {values.shape[1]} dimensions, but EMBEDDING_DIM is "
                    f"{table.embedding_dim}; set it to {values.shape[1]}, or prepare the folder with other vectors"
                )
            table.weight[: self.num_words].copy_(values)
