"""ResNet up to res4, and its fifth stage, which runs on regions ("C4"), under Detectron2's parameter names.

Version 1 is the network of He et al. (2015). Version 2 (He et al. 2016), which MILVLG's ResNet-152 has, normalises and
rectifies the input of each convolution, including the pixels.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops.misc
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STRIDE = 16
VERSION_2_EPSILON = 2e-5


class FrozenBatchNorm2d(torchvision.ops.misc.FrozenBatchNorm2d):
    """Batch normalisation with fixed statistics, weight and bias, which keeps the dtype of its input.

    torchvision's own module computes its factors at every call, and turns bfloat16 and float16 into float32, so that
    in mixed precision all that follows is float32 too.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps)
        self._computed = _Computed()

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (values[:, None, None].to(x.dtype) for values in self.scale_and_shift())
        return torch.addcmul(shift, x, scale)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Returns the factor and the summand of each channel, [C]."""
        return self._computed.get(self._scale_and_shift, (self.weight, self.bias, self.running_mean, self.running_var))

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvNorm(nn.Conv2d):
    """A convolution without bias, followed by its normalisation, ``norm``.

    A frozen normalisation is multiplied into the weight, because the weight has far fewer elements than the output. The
    parameter is still the convolution's own weight, and so is what its gradient is for.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: str, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, bias=False, **kwargs)
        self.norm = make_norm(norm, out_channels)
        self._computed = _Computed()
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.norm, FrozenBatchNorm2d):
            return self.norm(super().forward(x))
        scale, shift = self.norm.scale_and_shift()
        if self.weight.requires_grad:
            return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        # Autocast would convert a weight that does not learn again at every call.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        weight, shift = self._computed.get(
            lambda: ((self.weight * scale[:, None, None, None]).to(dtype), shift.to(dtype)), (self.weight, scale), dtype
        )
        return self._conv_forward(x, weight, shift)


class Stem(nn.Module):
    """A 7x7 convolution and 3x3 max pooling, both of stride 2.

    The "caffe" pooling has no padding and includes a last partial window, so its grid differs from Detectron2's.
    """

    def __init__(self, out_channels: int, norm: str, pool: str, version: int = 1):
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        self.conv1 = ConvNorm(3, out_channels, 7, norm, stride=2, padding=3)
        if version == 2:
            self.norm = make_norm(norm, 3, VERSION_2_EPSILON)
            self.conv1.norm = make_norm(norm, out_channels, VERSION_2_EPSILON)
        if norm == "FrozenBN":
            # Pixels are not normalised, and frozen statistics do not follow random weights. This factor keeps the
            # activations of a network with random weights at the scale of a trained one.
            _set_weight(self.conv1.norm, 0.01)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if pool == "caffe" else nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu_(self.conv1(self.norm(x))))


@dataclass(frozen=True)
class BlockShape:
    """The shape of a residual block of 1x1, 3x3 and 1x1 convolutions.

    Attributes:
        in_channels, out_channels: Number of channels of the block's input and output.
        bottleneck_channels: Number of channels between its convolutions.
        norm: Normalisation, as for ``make_norm``.
        stride: Stride of the block.
        dilation: Dilation of the 3x3 convolution.
        groups: Number of groups of the 3x3 convolution.
        stride_in_1x1: Whether the first 1x1 convolution has the stride instead of the 3x3 convolution.
    """

    in_channels: int
    out_channels: int
    bottleneck_channels: int
    norm: str
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    stride_in_1x1: bool = True

    @property
    def stride_1x1(self) -> int:
        return self.stride if self.stride_in_1x1 else 1

    def make_conv3x3(self, kind: type["ConvNorm"] | type["NormConv"]) -> "ConvNorm | NormConv":
        """Returns the block's 3x3 convolution."""
        return kind(
            self.bottleneck_channels,
            self.bottleneck_channels,
            3,
            self.norm,
            stride=1 if self.stride_in_1x1 else self.stride,
            padding=self.dilation,
            dilation=self.dilation,
            groups=self.groups,
        )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        in_channels, bottleneck_channels, norm = shape.in_channels, shape.bottleneck_channels, shape.norm
        self.shortcut = None
        if in_channels != shape.out_channels:
            self.shortcut = ConvNorm(in_channels, shape.out_channels, 1, norm, stride=shape.stride)
        self.conv1 = ConvNorm(in_channels, bottleneck_channels, 1, norm, stride=shape.stride_1x1)
        self.add_conv2(shape)
        self.conv3 = ConvNorm(bottleneck_channels, shape.out_channels, 1, norm)
        # A block starts as its shortcut (Goyal et al. 2017, section 5.1), which learns faster from scratch. With frozen
        # statistics the factor could not leave 0; there, as in the stem, the scale must not double with every block.
        _set_weight(self.conv3.norm, 0.25 if norm == "FrozenBN" else 0.0)

    def add_conv2(self, shape: BlockShape) -> None:
        """Adds ``conv2``, the 3x3 convolution."""
        self.conv2 = shape.make_conv3x3(ConvNorm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.after_conv2(self.conv2(F.relu_(self.conv1(x))), shortcut)

    def after_conv2(self, out: Tensor, shortcut: Tensor) -> Tensor:
        """Returns the block's output from the output of ``conv2`` and of the shortcut."""
        return F.relu_(self.conv3(F.relu_(out)).add_(shortcut))


class DeformableConvNorm(ConvNorm):
    """A deformable convolution without bias (Dai et al. 2017, "Deformable Convolutional Networks"), followed by its
    normalisation, ``norm``."""

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:  # type: ignore[override]
        """Returns the output for features [N, C, H, W].

        Args:
            offsets: [N, 18, h, w] for an output of h x w cells: by how many cells, in y and in x, each of the nine
                samples of the kernel is moved.
        """
        # torchvision's operator has no bfloat16 form.
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        out = deform_conv2d(x.float(), offsets.float(), weight, bias, self.stride, self.padding, self.dilation)
        return self.norm(out.to(x.dtype))


class DeformableBottleneck(Bottleneck):
    """``Bottleneck`` whose 3x3 convolution is deformable. ``conv2_offset`` predicts its offsets from the same input."""

    def add_conv2(self, shape: BlockShape) -> None:
        stride = 1 if shape.stride_in_1x1 else shape.stride
        dilation = shape.dilation
        self.conv2_offset = nn.Conv2d(
            shape.bottleneck_channels, 18, 3, stride=stride, padding=dilation, dilation=dilation
        )
        # The convolution starts as an ordinary one.
        for parameter in self.conv2_offset.parameters():
            nn.init.zeros_(parameter)
        self.conv2 = shape.make_conv3x3(DeformableConvNorm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = F.relu_(self.conv1(x))
        return self.after_conv2(self.conv2(out, self.conv2_offset(out)), shortcut)


class NormConv(nn.Conv2d):
    """Normalisation, ``norm``, and ReLU, followed by a convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: str, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, bias=False, **kwargs)
        self.norm = make_norm(norm, in_channels, VERSION_2_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu_(self.norm(x)))


class PreActivationBottleneck(nn.Module):
    """``Bottleneck`` of version 2. ``norm`` is None where the input is already normalised and rectified."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        in_channels, bottleneck_channels = shape.in_channels, shape.bottleneck_channels
        self.norm: nn.Module | None = make_norm(shape.norm, in_channels, VERSION_2_EPSILON)
        self.shortcut = None
        if in_channels != shape.out_channels:
            self.shortcut = nn.Conv2d(in_channels, shape.out_channels, 1, stride=shape.stride, bias=False)
        self.conv1 = nn.Conv2d(in_channels, bottleneck_channels, 1, stride=shape.stride_1x1, bias=False)
        self.conv2 = shape.make_conv3x3(NormConv)
        self.conv3 = NormConv(bottleneck_channels, shape.out_channels, 1, shape.norm)
        nn.init.zeros_(self.conv3.weight)  # a block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        active = x if self.norm is None else F.relu(self.norm(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.after_conv2(self.conv2(self.conv1(active)), shortcut)

    def after_conv2(self, out: Tensor, shortcut: Tensor) -> Tensor:
        """Returns the block's output from the output of ``conv2`` and of the shortcut."""
        return self.conv3(out).add_(shortcut)


class ResNetC4(nn.Module):
    """Turns images [N, 3, H, W] into the res4 feature map [N, out_channels, ~H/16, ~W/16].

    Attributes:
        stride: Number of pixels per cell of the feature map.
    """

    stride = STRIDE

    def __init__(self, cfg):
        super().__init__()
        resnets = cfg.MODEL.RESNETS
        version = cfg.MODEL.BUA.RESNET_VERSION
        self.stem = Stem(resnets.STEM_OUT_CHANNELS, resnets.NORM, cfg.MODEL.BUA.STEM_POOL, version)
        self.res2 = make_stage(cfg, 2)
        self.res3 = make_stage(cfg, 3)
        self.res4 = make_stage(cfg, 4)
        self.out_channels = stage_channels(cfg, 4)
        self.norm = make_norm(resnets.NORM, self.out_channels, VERSION_2_EPSILON) if version == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.res4(self.res3(self.res2(self.stem(x))))
        return x if self.norm is None else F.relu_(self.norm(x))

    def freeze(self, stages: int) -> None:
        """Freezes the first ``stages`` of stem, res2, res3, res4, including their normalisation."""
        for module in [self.stem, self.res2, self.res3, self.res4][:stages]:
            for name, child in module.named_modules():
                if isinstance(child, nn.BatchNorm2d):
                    parent = module.get_submodule(name.rpartition(".")[0])
                    parent.norm = _frozen(child)
            module.requires_grad_(False)


def make_stage(cfg, stage: int) -> nn.Sequential:
    """Returns the blocks of res2, res3, res4 or res5, with widths, strides and dilation from ``cfg``.

    res5 has stride 2, or stride 1 where MODEL.RESNETS.RES5_DILATION is 2. In that case each of its 3x3 convolutions is
    dilated, which keeps the 14x14 cells of the pooled region (test.prototxt, res5a to res5c). The 3x3 convolutions of
    the stages that MODEL.RESNETS.DEFORM_ON_PER_STAGE names are deformable.
    """
    resnets = cfg.MODEL.RESNETS
    dilation = resnets.RES5_DILATION if stage == 5 else 1
    stride = 1 if stage == 2 or dilation > 1 else 2
    out_channels = stage_channels(cfg, stage)
    bottleneck_channels = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2 ** (stage - 2)
    in_channels = resnets.STEM_OUT_CHANNELS if stage == 2 else stage_channels(cfg, stage - 1)
    version = cfg.MODEL.BUA.RESNET_VERSION
    block: type[Bottleneck | PreActivationBottleneck] = Bottleneck if version == 1 else PreActivationBottleneck
    if resnets.DEFORM_ON_PER_STAGE[stage - 2]:
        block = DeformableBottleneck
    blocks = [
        block(
            BlockShape(
                in_channels if i == 0 else out_channels,
                out_channels,
                bottleneck_channels,
                resnets.NORM,
                stride=stride if i == 0 else 1,
                dilation=dilation,
                groups=resnets.NUM_GROUPS,
                stride_in_1x1=resnets.STRIDE_IN_1X1,
            )
        )
        for i in range(BLOCKS[resnets.DEPTH][stage - 2])
    ]
    layers = nn.Sequential(*blocks)
    if version == 2 and stage == 5:
        blocks[0].norm = None  # the backbone ends with this normalisation
        layers.add_module("norm", make_norm(resnets.NORM, out_channels, VERSION_2_EPSILON))
        layers.add_module("relu", nn.ReLU(inplace=True))
    return layers


def stage_channels(cfg, stage: int) -> int:
    """Returns the number of output channels of a stage, 2 to 5."""
    return cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2 ** (stage - 2)


def make_norm(norm: str, channels: int, eps: float = 1e-5) -> nn.Module:
    """Returns FrozenBN (fixed statistics and scale), BN, or GN over 32 groups, or fewer if there are fewer
    channels."""
    if norm == "GN":
        return nn.GroupNorm(min(32, channels), channels, eps)
    return {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d}[norm](channels, eps)


def freeze_parameters(model: nn.Module, prefixes: list[str]) -> None:
    """Freezes the parameters whose names begin with one of ``prefixes``."""
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)


class _Computed:
    """Keeps what is computed from tensors until one of them changes. A copy or pickle of it is empty.

    Changes through ``tensor.data`` are not noticed, because PyTorch does not count them.
    """

    def __init__(self):
        self._key: tuple = ()
        self._sources: tuple[Tensor, ...] = ()  # kept, so that no other tensor gets their id
        self._value: Any = None

    def __reduce__(self):
        return _Computed, ()

    def get(self, compute: Callable[[], Any], sources: tuple[Tensor, ...], *more: Hashable) -> Any:
        """Returns ``compute()``, which computes a value without gradients from ``sources`` and ``more``, or what it
        returned before."""
        if any(source.is_inference() for source in sources):
            return compute()  # PyTorch does not count the changes of these
        key = (*more, *((id(source), source.data_ptr(), source.dtype, source._version) for source in sources))
        if key != self._key:
            # What is computed in inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                self._key, self._sources, self._value = key, sources, compute()
        return self._value


def _set_weight(norm: nn.Module, value: float) -> None:
    assert isinstance(norm.weight, Tensor)
    nn.init.constant_(norm.weight, value)


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"})
    return frozen
