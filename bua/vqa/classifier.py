"""The classifiers of answers of the question answering models."""

from functools import partial

import torch
from torch import Tensor, nn

from bua.errors import InputError
from bua.tasks.layers import Projection, WeightNormLinear, in_float32


class AnswerClassifier(nn.Module):
    """Two layers that compute a logit for each answer (classifier.py in hengyuan-hu's code and ban-vqa).

    Args:
        in_features: Dimension of the joint representation of image and question.
        num_answers: Size of the answer vocabulary.
        activation: Non-linearity of the hidden layer, see ``Projection``.
        dropout: Probability of dropout of the hidden layer's output.
        weight_norm, norm_whole_matrix: See ``Projection``.
    """

    def __init__(
        self,
        in_features: int,
        num_answers: int,
        *,
        activation: str = "relu",
        dropout: float = 0.5,
        weight_norm: bool = True,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        hidden = 2 * in_features
        project = partial(Projection, weight_norm=weight_norm, norm_whole_matrix=norm_whole_matrix)
        self.hidden = project(in_features, hidden, activation=activation)
        self.answers = project(hidden, num_answers, activation=None, dropout=dropout)

    def forward(self, joint: Tensor) -> Tensor:
        """Returns logits [B, num_answers] of joint representations [B, in_features]; float32, in autocast too."""
        return in_float32(self.answers, self.hidden(joint))


class TwoStreamClassifier(nn.Module):
    """The sum of two classifiers: one compares the question and image with the words of each answer, the other with the
    looks of what the answer names (Teney et al. 2018).

    The logits are ``W_text f_text(h) + W_image f_image(h)`` for a joint representation h. A row of ``W_text`` can start
    as the word vector of its answer, see ``initialize_text``. In the paper, a row of ``W_image`` starts as the mean
    feature of images that a web search finds for its answer. These features were not published, so that ``W_image``
    always starts at random here.

    Args:
        in_features, num_answers, activation, weight_norm, norm_whole_matrix: As for ``AnswerClassifier``.
        text_dim: Dimension of ``f_text(h)``, that of word vectors.
        image_dim: Dimension of ``f_image(h)``, that of what the model reads of a region.
        dropout: Probability of dropout of ``f_text(h)`` and of ``f_image(h)``.
    """

    def __init__(
        self,
        in_features: int,
        num_answers: int,
        *,
        text_dim: int = 300,
        image_dim: int = 2048,
        activation: str = "gated_tanh",
        dropout: float = 0.0,
        weight_norm: bool = True,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        project = partial(Projection, weight_norm=weight_norm, norm_whole_matrix=norm_whole_matrix)
        self.text = project(in_features, text_dim, activation=activation)
        self.image = project(in_features, image_dim, activation=activation)
        self.text_answers = project(text_dim, num_answers, activation=None, dropout=dropout)
        self.image_answers = project(image_dim, num_answers, activation=None, dropout=dropout)

    def forward(self, joint: Tensor) -> Tensor:
        """Returns logits [B, num_answers] of joint representations [B, in_features]; float32, in autocast too."""
        return in_float32(self.text_answers, self.text(joint)) + in_float32(self.image_answers, self.image(joint))

    @torch.no_grad()
    def initialize_text(self, vectors: Tensor, *, source: str = "answer vectors") -> None:
        """Copies the word vectors of the answers into ``W_text``.

        Args:
            vectors: [num_answers, text_dim], such as ``bua.vqa.cooccurrence.load_answer_vectors`` gives. Where a row is
                all zeros, because no word of the answer has a vector, the weights stay random.
            source: The file or folder that the vectors are from, for the message.

        Raises:
            InputError: The vectors have another dimension.
            ValueError: There are not as many vectors as answers.
        """
        layer = self.text_answers.linear
        weight = layer.weight_v if isinstance(layer, WeightNormLinear) else layer.weight
        if len(vectors) != len(weight):
            raise ValueError(f"{source}: {len(vectors)} answer vectors for a vocabulary of {len(weight)} answers")
        if vectors.shape[1] != weight.shape[1]:
            raise InputError(
                f"{source}: the word vectors have {vectors.shape[1]} dimensions, but EMBEDDING_DIM is "
                f"{weight.shape[1]}; set it to {vectors.shape[1]}, or prepare the folder with other vectors"
            )
        weight.copy_(torch.where(vectors.any(dim=1, keepdim=True), vectors, weight))
        if isinstance(layer, WeightNormLinear):
            layer.reset_norm()
