"""Layers that the models of several tasks have in common."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OutputT = TypeVar("OutputT")

# The non-linearities of ``Projection``.
ACTIVATIONS = ("relu", "glu", "gated_tanh")


class WeightNormLinear(nn.Module):
    """A linear map with weight normalisation (Salimans and Kingma 2016).

    The weight is ``weight_g * weight_v / |weight_v|``. hengyuan-hu's code and ban-vqa normalise the whole matrix with
    one norm (``weight_norm(..., dim=None)``). The usual layer, with one norm for each row, is a different model.

    Args:
        norm_whole_matrix: Whether there is one norm for the whole matrix; otherwise there is one for each row.

    Attributes:
        weight_v: [out_features, in_features], initialised like the weight of ``nn.Linear``.
        weight_g: [] or [out_features, 1], initialised to the norm of ``weight_v``.
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
        """Draws weight and bias from a normal distribution of mean 0 and standard deviation 1."""
        nn.init.normal_(self.weight_v)
        nn.init.normal_(self.bias)
        self.reset_norm()

    @torch.no_grad()
    def reset_norm(self) -> None:
        """Sets ``weight_g`` to the norm of ``weight_v``, so that the weight is ``weight_v``."""
        self.weight_g.copy_(self._norm())

    def weight(self) -> Tensor:
        """Returns the normalised weight [out_features, in_features] in the parameters' precision, in autocast too."""
        return self.weight_v * (self.weight_g / self._norm())

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight(), self.bias)

    def _norm(self) -> Tensor:
        dim = None if self.norm_whole_matrix else 1
        norm: Tensor = torch.linalg.vector_norm(self.weight_v, dim=dim, keepdim=not self.norm_whole_matrix)
        return norm


def linear_map(
    in_features: int, out_features: int, *, weight_norm: bool = True, norm_whole_matrix: bool = True
) -> WeightNormLinear | nn.Linear:
    """Returns a linear map with or without weight normalisation; see ``Projection``."""
    if weight_norm:
        return WeightNormLinear(in_features, out_features, norm_whole_matrix=norm_whole_matrix)
    return nn.Linear(in_features, out_features)


class Projection(nn.Module):
    """Dropout, a linear map, and a non-linearity.

    Args:
        activation: "relu", as in hengyuan-hu's code and ban-vqa; "glu", the gated linear unit
            (Wx + b) * sigmoid(W'x + b') (Dauphin et al. 2017); "gated_tanh", tanh(Wx + b) * sigmoid(W'x + b') (Anderson
            et al. 2018, equations 1 to 3); or None. The gate W', b' of the second and third has weights of its own.
        dropout: Probability of dropout of the input.
        weight_norm: Whether the linear map is a ``WeightNormLinear``, as in hengyuan-hu's code and ban-vqa, or an
            ``nn.Linear``.
        norm_whole_matrix: See ``WeightNormLinear``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str | None = "relu",
        dropout: float = 0.0,
        weight_norm: bool = True,
        norm_whole_matrix: bool = True,
    ):
        super().__init__()
        if activation not in (*ACTIVATIONS, None):
            raise ValueError(f"activation {activation!r}: use {', '.join(ACTIVATIONS)} or None")
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        normalization = {"weight_norm": weight_norm, "norm_whole_matrix": norm_whole_matrix}
        self.linear = linear_map(in_features, out_features, **normalization)
        if activation in ("glu", "gated_tanh"):
            self.gate = linear_map(in_features, out_features, **normalization)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        x = self.dropout(x)
        projected: Tensor = self.linear(x)
        if self.activation == "relu":
            return F.relu(projected)
        if self.activation == "glu":
            return projected * torch.sigmoid(self.gate(x))
        if self.activation == "gated_tanh":
            return torch.tanh(projected) * torch.sigmoid(self.gate(x))
        return projected


class Standardize(nn.Module):
    """Standardises features: each component has mean 0 and standard deviation 1 over the regions given to ``fit``.

    Before ``fit``, features stay as they are. Mean and deviation are buffers, which a model's checkpoints hold.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, feature_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))

    def fit(self, features: Tensor, factors: Tensor | float = 1.0) -> None:
        """Computes mean and deviation of features [N, feature_dim].

        A deviation of less than a tenth of the mean one is raised to that, so that components that hardly vary are not
        scaled up.

        Args:
            factors: The standard deviation that standardised components shall have, [feature_dim] or one for all.
        """
        deviation, mean = torch.std_mean(features.float(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=0.1 * float(deviation.mean()) or 1.0) / factors)

    def forward(self, features: Tensor) -> Tensor:
        """Standardises features [..., feature_dim]."""
        return (features - self.mean) / self.deviation


def in_float32(layer: Callable[..., OutputT], *inputs: Tensor) -> OutputT:
    """Returns ``layer(*inputs)``, computed in float32 in autocast too, of inputs in any floating-point dtype.

    Logits are computed so, because bfloat16 rounds them by up to 0.4%. So are recurrent layers, since torch's autocast
    computes those of cuDNN in float16, whatever its dtype is, and gradients may vanish there.
    """
    with torch.autocast(inputs[0].device.type, enabled=False):
        return layer(*map(at_least_float32, inputs))


def at_least_float32(x: Tensor) -> Tensor:
    """Returns a tensor of float16 or bfloat16 as float32, and others as they are, for computations that low precision
    would make inaccurate."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Returns logits with the lowest finite value where ``mask`` is false.

    With minus infinity, the softmax of an image without boxes, and its gradient, would be NaN.

    Args:
        mask: bool, of a shape that broadcasts to that of ``logits``.
    """
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Returns the softmax over the last dimension among the elements where ``mask`` is true, and 0 elsewhere.

    Rows where it is true nowhere are all zeros, and have no gradient.

    Args:
        mask: bool, of the shape of ``logits``.
    """
    return mask_logits(logits, mask).softmax(dim=-1).masked_fill(~mask, 0)
