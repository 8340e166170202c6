"""Up-Down, a model for visual question answering: a vector of the question attends to the regions of the image once
(Anderson et al. 2018, section 3.2).

By default the model is ``baseline0_newatt`` of hengyuan-hu/bottom-up-attention-vqa (base_model.py, attention.py), which
is simpler than the paper's: its attention multiplies what the paper concatenates, its non-linearity is ReLU, and its
classifier has one stream. The paper's choices are arguments of ``UpDown``.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bua.tasks.embedding import WordEmbedding
from bua.tasks.layers import Projection, Standardize, in_float32, linear_map, masked_softmax
from bua.vqa.classifier import AnswerClassifier, TwoStreamClassifier

# The values of the argument ``attention``.
ATTENTIONS = ("product", "concatenation")


class UpDown(nn.Module):
    """Predicts the answer to a question about an image from the image's regions, with one attention over them.

    Args:
        num_words: Size of the question vocabulary; the id of padding is ``num_words``.
        num_answers: Size of the answer vocabulary.
        embedding_dim: Dimension of a word's vector.
        hidden_dim: Dimension of the question vector and of all layers after it.
        feature_dim: D, the feature dimension of the regions.
        attention_dropout: Dropout probability of the layer that the attention's logits are computed from.
        classifier_dropout: Dropout probability of the classifier's hidden layer, or of its two streams.
        attention: "product", as in hengyuan-hu's ``baseline0_newatt``, or "concatenation", as in its ``baseline0`` and
            the paper; see ``ProductAttention`` and ``ConcatenationAttention``.
        activation: The non-linearity of all layers: "relu", as in hengyuan-hu's code, "gated_tanh", as in the paper, or
            "glu", which its README mentions as slightly better than ReLU.
        two_streams: Whether the classifier is a ``TwoStreamClassifier``, as in Teney et al. 2018; its streams have the
            dimensions ``embedding_dim`` and ``feature_dim``.
        weight_norm: Whether the layers have weight normalisation, as in hengyuan-hu's code. The paper's do not.
        norm_whole_matrix: Whether weight normalisation has one norm per matrix, as in hengyuan-hu's code, or one per
            row.
        glimpses: Number of attentions over the regions, computed in parallel. hengyuan-hu's code and the paper have
            one, which cannot tell apart two things that a question relates to each other.
        standardize: Whether features are standardised first, see ``Standardize``, so that training needs fewer steps.
            hengyuan-hu's code does not do this.
    """

    # The question vector is the state after the last step, which must read a word and not padding.
    word_padding = "front"

    def __init__(
        self,
        num_words: int,
        num_answers: int,
        *,
        embedding_dim: int = 300,
        hidden_dim: int = 1024,
        feature_dim: int = 2048,
        attention_dropout: float = 0.2,
        classifier_dropout: float = 0.5,
        attention: str = "product",
        activation: str = "relu",
        two_streams: bool = False,
        weight_norm: bool = True,
        norm_whole_matrix: bool = True,
        glimpses: int = 1,
        standardize: bool = False,
    ):
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r}: use {' or '.join(ATTENTIONS)}")
        self.feature_dim = feature_dim
        self.standardize = Standardize(feature_dim) if standardize else nn.Identity()
        self.embedding = WordEmbedding(num_words, embedding_dim)
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        layers: dict[str, Any] = {
            "activation": activation,
            "weight_norm": weight_norm,
            "norm_whole_matrix": norm_whole_matrix,
        }
        self.attention = RegionAttention(
            feature_dim,
            hidden_dim,
            concatenate=attention == "concatenation",
            glimpses=glimpses,
            dropout=attention_dropout,
            **layers,
        )
        self.image = Projection(glimpses * feature_dim, hidden_dim, **layers)
        self.question = Projection(hidden_dim, hidden_dim, **layers)
        self.classifier: AnswerClassifier | TwoStreamClassifier
        if two_streams:
            self.classifier = TwoStreamClassifier(
                hidden_dim,
                num_answers,
                text_dim=embedding_dim,
                image_dim=feature_dim,
                dropout=classifier_dropout,
                **layers,
            )
        else:
            self.classifier = AnswerClassifier(hidden_dim, num_answers, dropout=classifier_dropout, **layers)

    def forward(self, features: Tensor, boxes: Tensor, mask: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the logits of the answers to B questions.

        Args:
            features: [B, n, D] float32; finite, also in padding.
            boxes: Not used, since the model does not know where regions are.
            mask: [B, n] bool, false for padding. An image may have no region.
            question: [B, L] int64, ids of the words, padded in front.

        Returns:
            Logits [B, num_answers], and attention [B, glimpses, n], which sums to 1 over the regions, or is 0 for an
            image without regions. Both are float32, in autocast too.
        """
        features = self.standardize(features)
        states, _ = in_float32(self.gru, self.embedding(question))
        vector = states[:, -1]
        attention = self.attention(features, mask, vector)
        attended = torch.bmm(attention, features).flatten(1)
        joint = self.question(vector) * self.image(attended)
        return self.classifier(joint), attention


class RegionAttention(nn.Module):
    """Weights the regions of an image by their relevance to a question.

    Args:
        concatenate: Whether the weight of a region comes from a projection of its features and the question vector
            together (``Attention`` in hengyuan-hu's code, which has no dropout there; Anderson et al. 2018), or from
            the product of a projection of each (``NewAttention``).
        dropout: Probability of dropout of what the weights are computed from.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_dim: int,
        *,
        concatenate: bool,
        glimpses: int,
        dropout: float,
        activation: str,
        weight_norm: bool,
        norm_whole_matrix: bool,
    ):
        super().__init__()
        self.concatenate = concatenate
        project = partial(
            Projection, activation=activation, weight_norm=weight_norm, norm_whole_matrix=norm_whole_matrix
        )
        if concatenate:
            self.joint = project(feature_dim + hidden_dim, hidden_dim)
        else:
            self.image = project(feature_dim, hidden_dim)
            self.question = project(hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.score = linear_map(hidden_dim, glimpses, weight_norm=weight_norm, norm_whole_matrix=norm_whole_matrix)

    def forward(self, features: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        """Maps features [B, n, D], a mask bool [B, n] and question vectors [B, hidden_dim] to attention over the
        regions, [B, glimpses, n] float32."""
        if self.concatenate:
            repeated = vector.unsqueeze(1).expand(-1, features.shape[1], -1)
            joint = self.joint(torch.cat([features, repeated.to(features.dtype)], dim=2))
        else:
            joint = self.image(features) * self.question(vector).unsqueeze(1)
        logits = in_float32(self.score, self.dropout(joint)).transpose(1, 2)
        return masked_softmax(logits, mask.unsqueeze(1).expand_as(logits))
