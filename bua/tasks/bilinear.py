"""The attention of bilinear attention networks (Kim, Jun and Zhang, NeurIPS 2018; ban-vqa, attention.py, bc.py)."""

import torch
from torch import Tensor, nn

from bua.tasks.layers import Projection, WeightNormLinear, at_least_float32


class BilinearAttention(nn.Module):
    """Computes a logit for each pair of a region and a word with low-rank bilinear forms, one for each glimpse.

    Args:
        feature_dim: D of the region features.
        hidden_dim: Dimension of a word's state.
        glimpses: G, the number of forms.
        rank: Rank of a form, in multiples of ``hidden_dim``.
        dropout: Probability of dropout of the projections' inputs.
        attention_dropout: Probability of dropout of the projected regions.
        norm_whole_matrix: See ``WeightNormLinear``.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_dim: int,
        *,
        glimpses: int,
        rank: int = 3,
        dropout: float = 0.2,
        attention_dropout: float = 0.5,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        joint_dim = rank * hidden_dim
        self.image = Projection(feature_dim, joint_dim, dropout=dropout, norm_whole_matrix=norm_whole_matrix)
        self.words = Projection(hidden_dim, joint_dim, dropout=dropout, norm_whole_matrix=norm_whole_matrix)
        self.attention_dropout = nn.Dropout(attention_dropout)
        # A linear map of the product of both sides: ban-vqa's h_mat and h_bias, with their initial values.
        self.forms = WeightNormLinear(joint_dim, glimpses, norm_whole_matrix=norm_whole_matrix)
        self.forms.initialize_normal()

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        """Returns logits [B, G, n, L], float32 in autocast too, of regions [B, n, feature_dim] and words
        [B, L, hidden_dim]. Padding is not masked."""
        image = at_least_float32(self.attention_dropout(self.image(features)))
        words = at_least_float32(self.words(states))
        # Logits rounded to bfloat16 would increase the answers' error by a third and more, through the counter.
        with torch.autocast(features.device.type, enabled=False):
            # The forms are multiplied into the words' side, which is smaller, so that the products of all pairs are
            # never in memory.
            weighted = (words.unsqueeze(1) * self.forms.weight().unsqueeze(1)).flatten(1, 2)
            products = torch.bmm(weighted, image.transpose(1, 2))
            bias = self.forms.bias.view(-1, 1, 1)
            return products.view(len(words), len(bias), words.shape[1], image.shape[1]).transpose(2, 3) + bias
