"""Bilinear attention networks for question answering (Kim, Jun and Zhang, NeurIPS 2018; ban-vqa, base_model.py)."""

from functools import partial

import torch
from torch import Tensor, nn

from bua.tasks.bilinear import BilinearAttention
from bua.tasks.embedding import WordEmbedding
from bua.tasks.layers import Projection, Standardize, in_float32, mask_logits, masked_softmax
from bua.vqa.classifier import AnswerClassifier
from bua.vqa.counter import Counter


class BAN(nn.Module):
    """Answers a question about an image's regions with attention over all pairs of a region and a word.

    Args:
        num_words: Size of the question vocabulary; the id of padding is ``num_words``.
        num_answers: Size of the answer vocabulary.
        feature_dim: D of the region features.
        embedding_dim: Dimension of the word vectors of each embedding table.
        hidden_dim: Dimension of a word's state and of everything after it.
        glimpses: G, the number of attention maps.
        rank: Rank of the attention's bilinear forms, in multiples of ``hidden_dim``.
        second_embedding: Whether there is a second embedding table, ban-vqa's option "c", see ``WordEmbedding``.
        train_second_embedding: Whether the second table is trained.
        counted_objects: The largest number that the ``Counter`` counts; 0 for a model without it, as in the paper's
            tables.
        dropout: Probability of dropout of the projections' inputs.
        attention_dropout: Probability of dropout of the projected regions in the bilinear attention.
        classifier_dropout: Probability of dropout of the classifier's hidden layer.
        attend_padded_words: Whether padding is treated like words, as in ban-vqa: the model attends to it, uses it in
            the counter, and adds its states to those of the words. An answer then depends on the length that a question
            is padded to, which is 14 in ban-vqa.
        norm_whole_matrix: Whether weight normalisation has one norm for a whole matrix, as in ban-vqa, or one for each
            row.
        standardize: Whether features are standardised first, see ``Standardize``, which shortens training. ban-vqa
            does not do so.
    """

    # Questions are padded at the end, so that the states of their words do not depend on the padding.
    word_padding = "end"

    def __init__(
        self,
        num_words: int,
        num_answers: int,
        *,
        feature_dim: int = 2048,
        embedding_dim: int = 300,
        hidden_dim: int = 1280,
        glimpses: int = 8,
        rank: int = 3,
        second_embedding: bool = True,
        train_second_embedding: bool = True,
        counted_objects: int = 10,
        dropout: float = 0.2,
        attention_dropout: float = 0.5,
        classifier_dropout: float = 0.5,
        attend_padded_words: bool = True,
        norm_whole_matrix: bool = True,
        standardize: bool = False,
    ):
        super().__init__()
        self.feature_dim = feature_dim
        self.standardize = Standardize(feature_dim) if standardize else nn.Identity()
        self.attend_padded_words = attend_padded_words
        self.embedding = WordEmbedding(
            num_words, embedding_dim, second=second_embedding, train_second=train_second_embedding
        )
        self.gru = nn.GRU(self.embedding.out_features, hidden_dim, batch_first=True)
        self.attention = BilinearAttention(
            feature_dim,
            hidden_dim,
            glimpses=glimpses,
            rank=rank,
            dropout=dropout,
            attention_dropout=attention_dropout,
            norm_whole_matrix=norm_whole_matrix,
        )
        self.counter = Counter(counted_objects) if counted_objects else None
        self.glimpses = nn.ModuleList(
            Glimpse(
                feature_dim,
                hidden_dim,
                counted_objects=counted_objects,
                dropout=dropout,
                norm_whole_matrix=norm_whole_matrix,
            )
            for _ in range(glimpses)
        )
        self.classifier = AnswerClassifier(
            hidden_dim, num_answers, dropout=classifier_dropout, norm_whole_matrix=norm_whole_matrix
        )

    def forward(self, features: Tensor, boxes: Tensor, mask: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the logits of the answers to B questions.

        Args:
            features: [B, n, D] float32; finite, also in padding.
            boxes: [B, n, 4 or more] float32; the first four columns are x1y1x2y2 in fractions, 0 to 1, of the
                image's width and height.
            mask: [B, n] bool, false for padding. An image may have no boxes.
            question: [B, L] int64 ids of words, padded at the end.

        Returns:
            Logits [B, num_answers] and attention [B, G, n, L], a softmax over all pairs of a region and a word for
            each glimpse, or 0 for an image without boxes; both float32, in autocast too.
        """
        features = self.standardize(features)
        # The glimpses are summed in the states, which needs more precision than bfloat16 has.
        states, _ = in_float32(self.gru, self.embedding(question))
        words = torch.ones_like(question, dtype=torch.bool)
        if not self.attend_padded_words:
            words = question != self.embedding.num_words
        pairs = mask[:, None, :, None] & words[:, None, None, :]

        logits = self.attention(features, states)
        attention = masked_softmax(logits.flatten(2), pairs.flatten(2)).unflatten(2, pairs.shape[2:])
        counts = self._counts(boxes, mask, mask_logits(logits, pairs))
        for g, glimpse in enumerate(self.glimpses):
            states = glimpse(features, states, attention[:, g], None if counts is None else counts[:, g])
        joint = (states * words.unsqueeze(-1)).sum(dim=1)
        return self.classifier(joint), attention

    def _counts(self, boxes: Tensor, mask: Tensor, logits: Tensor) -> Tensor | None:
        """Returns the counter's output [B, G, counted_objects + 1] for each glimpse, of masked logits [B, G, n, L]."""
        if self.counter is None:
            return None
        boxes = boxes[..., :4].masked_fill(~mask.unsqueeze(-1), 0)
        batch, glimpses = logits.shape[:2]
        boxes = boxes.unsqueeze(1).expand(-1, glimpses, -1, -1).flatten(0, 1)
        return self.counter(boxes, logits.amax(dim=3).flatten(0, 1)).unflatten(0, (batch, glimpses))


class Glimpse(nn.Module):
    """Adds the features that one attention map selects to the state of every word."""

    def __init__(
        self, feature_dim: int, hidden_dim: int, *, counted_objects: int, dropout: float, norm_whole_matrix: bool
    ):
        super().__init__()
        projection = partial(Projection, norm_whole_matrix=norm_whole_matrix)
        self.image = projection(feature_dim, hidden_dim, dropout=dropout)
        self.words = projection(hidden_dim, hidden_dim, dropout=dropout)
        self.residual = projection(hidden_dim, hidden_dim, activation=None, dropout=dropout)
        if counted_objects:
            self.count = projection(counted_objects + 1, hidden_dim)

    def forward(self, features: Tensor, states: Tensor, attention: Tensor, counts: Tensor | None) -> Tensor:
        """Returns new states [B, L, hidden_dim].

        Args:
            features: [B, n, feature_dim].
            states: [B, L, hidden_dim].
            attention: [B, n, L].
            counts: [B, counted_objects + 1], or None without a counter.
        """
        attended = torch.bmm(attention.transpose(1, 2), self.image(features))
        joint = (attended * self.words(states)).sum(dim=1)
        states = states + self.residual(joint).unsqueeze(1)
        if counts is None:
            return states
        return states + self.count(counts).unsqueeze(1)
