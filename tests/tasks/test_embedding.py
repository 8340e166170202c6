"""Word tables and GloVe's file."""

import pytest
import torch

from bua.errors import InputError
from bua.tasks.embedding import WordEmbedding


def test_two_tables_side_by_side():
    embedding = WordEmbedding(4, 3, second=True)
    vectors, second = torch.randn(4, 3), torch.randn(4, 3)
    embedding.initialize(vectors, second)
    found = embedding(torch.tensor([[2, 4, 0]]))
    expected = [torch.cat([vectors[2], second[2]]), torch.zeros(6), torch.cat([vectors[0], second[0]])]
    assert torch.equal(found, torch.stack(expected).unsqueeze(0))
    assert embedding.out_features == 6
    embedding.initialize(vectors)
    assert torch.equal(embedding.words.weight, embedding.second.weight)


def test_what_learns():
    embedding = WordEmbedding(4, 3, second=True, train_second=False)
    embedding(torch.tensor([[0, 4]])).sum().backward()
    assert embedding.second.weight.grad is None
    assert embedding.words.weight.grad.sum(dim=1).tolist() == [3, 0, 0, 0, 0]
    trained = WordEmbedding(4, 3, second=True)
    assert trained.second.weight.requires_grad


def test_vectors_of_another_shape():
    with pytest.raises(ValueError, match="5 word vectors for a vocabulary of 4 words"):
        WordEmbedding(4, 3).initialize(torch.zeros(5, 3))
    with pytest.raises(
        InputError, match="folder: the word vectors have 2 dimensions, but EMBEDDING_DIM is 3; set it to 2"
    ):
        WordEmbedding(4, 3).initialize(torch.zeros(4, 2), source="folder")
