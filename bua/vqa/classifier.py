"""From what is known of image and question to answers."""

from torch import Tensor, nn

from bua.tasks.layers import Projection


class AnswerClassifier(nn.Module):
    """Two layers from what is known of image and question to a logit an answer (both seeds' classifier.py)."""

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
        """[B, in_features] to logits [B, num_answers]."""
        return self.answers(self.hidden(joint))
