"""Bilinear attention for grounding (Kim, Jun and Zhang, NeurIPS 2018; ban-vqa, base_model.py, BanModel_flickr)."""

import torch
from torch import Tensor, nn

from bua.tasks.bilinear import BilinearAttention
from bua.tasks.embedding import WordEmbedding
from bua.tasks.layers import in_float32

# The logit of padding, as in ban-vqa: its probability is zero in float32, and it has no gradient.
MASKED = -99.0


class BANGrounding(nn.Module):
    """Computes a logit for each pair of a phrase and a region: one map of BAN's attention, between the regions and the
    states of the phrases' last words. The positions of the regions are not used.

    Args:
        num_words: Size of the vocabulary; the id of padding is ``num_words``.
        feature_dim: D of the region features.
        embedding_dim: Dimension of the word vectors.
        hidden_dim: Dimension of a word's state.
        rank: Rank of the bilinear form, in multiples of ``hidden_dim``.
        dropout: Probability of dropout of the projections' inputs.
        attention_dropout: Probability of dropout of the projected regions in the bilinear attention.
        norm_whole_matrix: Whether weight normalisation has one norm for a whole matrix, as in ban-vqa, or one for each
            row.
    """

    def __init__(
        self,
        num_words: int,
        *,
        feature_dim: int = 2048,
        embedding_dim: int = 300,
        hidden_dim: int = 1280,
        rank: int = 3,
        dropout: float = 0.2,
        attention_dropout: float = 0.5,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        self.feature_dim = feature_dim
        self.embedding = WordEmbedding(num_words, embedding_dim)
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.attention = BilinearAttention(
            feature_dim,
            hidden_dim,
            glimpses=1,
            rank=rank,
            dropout=dropout,
            attention_dropout=attention_dropout,
            norm_whole_matrix=norm_whole_matrix,
        )

    def forward(self, features: Tensor, mask: Tensor, words: Tensor, positions: Tensor, phrase_mask: Tensor) -> Tensor:
        """Computes the logits of the regions for the phrases of B sentences.

        Args:
            features: [B, n, D] float32; finite, also in padding.
            mask: [B, n] bool, false for padding.
            words: [B, L] int64 ids of the words of whole sentences, padded at the end.
            positions: [B, E] int64, the position of each phrase's last word in its sentence, 0 to L - 1.
            phrase_mask: [B, E] bool, false for padding, where ``positions`` may have any value.

        Returns:
            Logits [B, E, n] of the probability that the region is right, float32 in autocast too; ``MASKED`` where the
            phrase or the region is padding.
        """
        states, _ = in_float32(self.gru, self.embedding(words))
        phrases = torch.gather(states, 1, positions.unsqueeze(2).expand(-1, -1, states.shape[2]))
        logits = self.attention(features, phrases).squeeze(1).transpose(1, 2)
        return logits.masked_fill(~(phrase_mask.unsqueeze(2) & mask.unsqueeze(1)), MASKED)
