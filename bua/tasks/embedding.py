"""Words as vectors."""

import torch
from torch import Tensor, nn


class WordEmbedding(nn.Module):
    """A vector for each word; zeros for padding, whose id is ``num_words``.

    BAN's option "c" has a second table beside it, which the seed fills with words mixed from the words that they
    occur with, times their vectors (ban-vqa, language_model.py). A word's two vectors are concatenated.

    Args:
        num_words: of the question vocabulary.
        dim: of one table's vectors.
        second: whether there is the second table.
        train_second: whether it learns. The seed's does where it was filled with co-occurrences, and does not where
            it is a copy of the first.
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

    def forward(self, question: Tensor) -> Tensor:
        """Ids [B, L] int64, 0 to ``num_words``, to vectors [B, L, out_features]."""
        vectors = self.words(question)
        if self.second is None:
            return vectors
        return torch.cat([vectors, self.second(question)], dim=-1)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, second: Tensor | None = None) -> None:
        """Fills the tables.

        Args:
            vectors: [num_words, dim], such as ``bua.vqa.cooccurrence.load_glove``'s.
            second: of the same shape, for the second table; ``vectors`` by default, as in the seed.
        """
        self.words.weight[: self.num_words].copy_(_checked(vectors, self.words))
        if self.second is not None:
            second = vectors if second is None else second
            self.second.weight[: self.num_words].copy_(_checked(second, self.second))


def _checked(vectors: Tensor, table: nn.Embedding) -> Tensor:
    expected = (table.num_embeddings - 1, table.embedding_dim)
    if tuple(vectors.shape) != expected:
        raise ValueError(f"word vectors {tuple(vectors.shape)}: the embedding needs {expected}")
    return vectors
