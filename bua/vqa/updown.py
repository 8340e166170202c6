"""Up-Down: one question vector attends to the regions once (Anderson et al. 2018, section 3.2).

The model is ``baseline0_newatt`` of hengyuan-hu/bottom-up-attention-vqa (base_model.py, attention.py), which simplifies
the paper's: the attention multiplies where the paper concatenates, and its non-linearity is ReLU.
"""

import torch
from torch import Tensor, nn

from bua.tasks.embedding import WordEmbedding
from bua.tasks.layers import (
    Projection,
    Standardize,
    WeightNormLinear,
    at_least_float32,
    masked_softmax,
)
from bua.vqa.classifier import AnswerClassifier


class UpDown(nn.Module):
    """Answers a question about an image's regions with one attention over them.

    Args:
        num_words: size of the question vocabulary; the id of padding is ``num_words``.
        num_answers: size of the answer vocabulary.
        feature_dim: D of the region features.
        embedding_dim: of a word.
        hidden_dim: of the question vector and everything after it.
        attention_dropout: of what the attention's logits are read from.
        classifier_dropout: of the classifier's hidden layer.
        activation: "relu", as the seed, or "gated_tanh", as the paper.
        norm_whole_matrix: weight normalisation with one length for a whole matrix, as the seed; else one a row.
        glimpses: attentions over the regions, side by side; the seed and the paper have one, which cannot hold two
            things apart that a question relates.
        standardize: features are standardised first, see ``Standardize``, which takes less training. The seed does not.
    """

    # Where a question is padded: the question vector is the state after the last word.
    word_padding = "front"

    def __init__(
        self,
        num_words: int,
        num_answers: int,
        *,
        feature_dim: int = 2048,
        embedding_dim: int = 300,
        hidden_dim: int = 1024,
        attention_dropout: float = 0.2,
        classifier_dropout: float = 0.5,
        activation: str = "relu",
        norm_whole_matrix: bool = True,
        glimpses: int = 1,
        standardize: bool = False,
    ):
        super().__init__()
        self.feature_dim = feature_dim
        self.standardize = Standardize(feature_dim) if standardize else nn.Identity()
        style = {"activation": activation, "norm_whole_matrix": norm_whole_matrix}
        self.embedding = WordEmbedding(num_words, embedding_dim)
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.attention = RegionAttention(feature_dim, hidden_dim, glimpses=glimpses, dropout=attention_dropout, **style)
        self.image = Projection(glimpses * feature_dim, hidden_dim, **style)
        self.question = Projection(hidden_dim, hidden_dim, **style)
        self.classifier = AnswerClassifier(hidden_dim, num_answers, dropout=classifier_dropout, **style)

    def forward(self, features: Tensor, boxes: Tensor, mask: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: [B, n, D] float32; finite, also in padding.
            boxes: not used; the model does not see where regions are.
            mask: [B, n] bool, false for padding. An image may have no box at all.
            question: [B, L] int64 ids of words, padded in front.

        Returns:
            Logits [B, num_answers] and attention [B, glimpses, n], which sums to 1 over the regions, or is 0 for an
            image without boxes; both float32, in autocast too.
        """
        features = self.standardize(features)
        states, _ = self.gru(self.embedding(question))
        vector = states[:, -1]
        attention = self.attention(features, mask, vector)
        attended = torch.bmm(attention, features).flatten(1)
        joint = self.question(vector) * self.image(attended)
        return at_least_float32(self.classifier(joint)), attention


class RegionAttention(nn.Module):
    """How much each region matters to a question (the seed's ``NewAttention``)."""

    def __init__(
        self,
        feature_dim: int,
        hidden_dim: int,
        *,
        glimpses: int,
        dropout: float,
        activation: str,
        norm_whole_matrix: bool,
    ):
        super().__init__()
        style = {"activation": activation, "norm_whole_matrix": norm_whole_matrix}
        self.image = Projection(feature_dim, hidden_dim, **style)
        self.question = Projection(hidden_dim, hidden_dim, **style)
        self.dropout = nn.Dropout(dropout)
        self.score = WeightNormLinear(hidden_dim, glimpses, norm_whole_matrix=norm_whole_matrix)

    def forward(self, features: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        """[B, n, D], bool [B, n] and [B, hidden_dim] to softmaxes over the regions, [B, glimpses, n] float32."""
        joint = self.dropout(self.image(features) * self.question(vector).unsqueeze(1))
        logits = at_least_float32(self.score(joint)).transpose(1, 2)
        return masked_softmax(logits, mask.unsqueeze(1).expand_as(logits))
