"""The classifier of answers that the question answering models share."""

from torch import Tensor, nn

from bua.tasks.layers import Projection, in_float32


class AnswerClassifier(nn.Module):
    """Two layers that compute a logit for each answer (classifier.py in hengyuan-hu's code and ban-vqa).

    Args:
        in_features: Dimension of the joint representation of image and question.
        num_answers: Size of the answer vocabulary.
        activation: Non-linearity of the hidden layer, see ``Projection``.
        dropout: Probability of dropout of the hidden layer's output.
        norm_whole_matrix: See ``WeightNormLinear``.
    """

    def __init__(
        self,
        in_features: int,
        num_answers: int,
        *,
        activation: str = "relu",
        dropout: float = 0.5,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        hidden = 2 * in_features
        self.hidden = Projection(in_features, hidden, activation=activation, norm_whole_matrix=norm_whole_matrix)
        self.answers = Projection(
            hidden, num_answers, activation=None, dropout=dropout, norm_whole_matrix=norm_whole_matrix
        )

    def forward(self, joint: Tensor) -> Tensor:
        """Returns logits [B, num_answers] of joint representations [B, in_features]; float32, in autocast too."""
        return in_float32(self.answers, self.hidden(joint))
