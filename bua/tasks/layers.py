"""Layers that the models on region features share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """A linear map whose weight is a direction with a length of its own (Salimans and Kingma 2016).

    The weight is ``weight_g * weight_v / |weight_v|``. Both seeds have one length for the whole matrix
    (``weight_norm(..., dim=None)``), which is another model than the usual one of a length a row.

    Args:
        norm_whole_matrix: one length for the matrix, as the seeds; else one a row.

    Attributes:
        weight_v: [out_features, in_features], initialised as ``nn.Linear``'s weight.
        weight_g: [] or [out_features, 1], the initial norm of ``weight_v``.
        bias: [out_features].
    """

    def __init__(self, in_features: int, out_features: int, *, norm_whole_matrix: bool = True):
        super().__init__()
        self.norm_whole_matrix = norm_whole_matrix
        linear = nn.Linear(in_features, out_features)
        self.weight_v = nn.Parameter(linear.weight.detach())
        self.weight_g = nn.Parameter(self._norm().detach())
        self.bias = nn.Parameter(linear.bias.detach())

    @torch.no_grad()
    def initialize_normal(self) -> None:
        """Draws weight and bias from a normal distribution of deviation 1."""
        nn.init.normal_(self.weight_v)
        nn.init.normal_(self.bias)
        self.weight_g.copy_(self._norm())

    def weight(self) -> Tensor:
        """[out_features, in_features] in the parameters' precision, in autocast too."""
        return self.weight_v * (self.weight_g / self._norm())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight(), self.bias)

    def _norm(self) -> Tensor:
        if self.norm_whole_matrix:
            return torch.linalg.vector_norm(self.weight_v)
        return torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)


class Projection(nn.Module):
    """Dropout, a weight-normalised linear map, a non-linearity.

    Args:
        activation: "relu", as both seeds; "gated_tanh", tanh(Wx + b) * sigmoid(W'x + b') with weights of its own for
            the gate (Anderson et al. 2018, equations 1 to 3); or None.
        dropout: probability, of the input.
        norm_whole_matrix: see ``WeightNormLinear``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str | None = "relu",
        dropout: float = 0.0,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        if activation not in ("relu", "gated_tanh", None):
            raise ValueError(f"activation {activation!r}: use relu, gated_tanh or None")
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.linear = WeightNormLinear(in_features, out_features, norm_whole_matrix=norm_whole_matrix)
        if activation == "gated_tanh":
            self.gate = WeightNormLinear(in_features, out_features, norm_whole_matrix=norm_whole_matrix)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x = self.dropout(x)
        if self.activation == "relu":
            return F.relu(self.linear(x))
        if self.activation == "gated_tanh":
            return torch.tanh(self.linear(x)) * torch.sigmoid(self.gate(x))
        return self.linear(x)


class Standardize(nn.Module):
    """Shifts and scales features so that each of their numbers has mean 0 and deviation 1 over the regions that
    ``fit`` was given; without it, it does nothing. The weights of a model hold both."""

    def __init__(self, feature_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))

    def fit(self, features: Tensor) -> None:
        """Takes mean and deviation of [N, feature_dim]. Numbers that hardly vary are not blown up."""
        deviation, mean = torch.std_mean(features.float(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=0.1 * float(deviation.mean()) or 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """[..., feature_dim] to the same shape."""
        return (features - self.mean) / self.deviation


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; others as they are. What must not be computed in low precision starts so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits with the lowest finite value where ``mask``, bool of a shape that broadcasts to theirs, is false.

    Not minus infinity: an image without boxes has no true cell, and its softmax, and the gradient of it, would be
    no numbers.
    """
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension among the cells where ``mask``, bool [like ``logits``], is true; 0 elsewhere.

    All zeros, and no gradient, where it is true nowhere.
    """
    return mask_logits(logits, mask).softmax(dim=-1).masked_fill(~mask, 0)
