"""The detector made fast for inference: the same results with fewer and larger operations."""

import copy
import logging
import os
import shutil

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from bua.errors import InputError
from bua.modeling.backbone import ConvNorm, PreActivationBottleneck
from bua.modeling.detector import Detector
from bua.modeling.roi_heads import AttributeRes5ROIHeads, pool_regions
from bua.modeling.windows import distinct_windows, roi_windows, window_maxima

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Regions a step of res5. On a CPU its activations then stay in the cache; on a GPU this bounds their memory.
REGIONS_A_STEP = {"cpu": 10, "cuda": 600}

logger = logging.getLogger(__name__)


def optimize_for_inference(detector: Detector, *, precision: str = "fp32", compile: bool = False) -> Detector:
    """A copy of a detector that can only infer, on the same device. ``detector`` stays as it is.

    - Normalisation by fixed statistics is folded into the convolutions (FrozenBN, and BN as it is in evaluation;
      GN stays). The copy's ``state_dict`` is therefore no checkpoint, and training it is of no use.
    - Convolutions and what lies between them are channels-last.
    - With RoIPool, the first layers of res5 are computed once for each distinct window, and not once for each bin of
      each region (``bua.modeling.windows``): a fourth less to multiply.
    - "bf16": weights and activations of the convolutions are bfloat16. What decides stays float32: the last layers of
      the RPN, box coding, suppression, the mean over res5's output, the classifiers, and all that is returned.

    In "fp32" the results are those of ``detector`` but for the order of summation, 1e-5 of the largest.

    Args:
        precision: "fp32" or "bf16". On a CPU without bfloat16 arithmetic (avx512_bf16, amx_bf16) "bf16" gives the same
            results slower than "fp32", and a warning says so.
        compile: whether to compile res5 with torch.compile, at the first image; it takes about a minute.

    Raises:
        InputError: no such precision, or ``compile`` on a CPU without a C++ compiler.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: unknown; use one of {', '.join(PRECISIONS)}")
    device = detector.device.type
    if compile:
        _check_compiler(device)
    if precision == "bf16" and device == "cpu" and not _has_bf16():
        logger.warning("precision bf16: this CPU has no bfloat16 arithmetic; fp32 is faster here")
    fast = copy.deepcopy(detector).eval().requires_grad_(False)
    fold_norms(fast)
    for module in (fast.backbone, fast.proposal_generator.rpn_head.conv, fast.roi_heads.res5):
        module.to(PRECISIONS[precision])
    fast.to(memory_format=torch.channels_last)
    fast.roi_heads.fast_features = RegionFeatures(fast.roi_heads, REGIONS_A_STEP.get(device, 600), compile)
    return fast


def fold_norms(module: nn.Module) -> None:
    """Folds normalisation by fixed statistics into the convolution before it, and where there is none into one
    multiplication and one addition, in place. The arithmetic is done in double precision."""
    for child in list(module.modules()):
        if isinstance(child, ConvNorm):
            child.norm = _fold(child, child.norm)
        elif isinstance(child, PreActivationBottleneck):
            child.conv2.norm = _fold(child.conv1, child.conv2.norm)
            child.conv3.norm = _fold(child.conv2, child.conv3.norm)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (FrozenBatchNorm2d, nn.BatchNorm2d)):
                setattr(parent, name, ScaleAndShift(child))


class ScaleAndShift(nn.Module):
    """A normalisation by fixed statistics as a factor and a summand a channel."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        scale, shift = _scale_and_shift(norm)
        self.register_buffer("scale", scale.float().view(-1, 1, 1))
        self.register_buffer("shift", shift.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class RegionFeatures:
    """What ``AttributeRes5ROIHeads.features`` computes, in steps of equally many regions.

    Args:
        heads: with norms folded.
        step: regions at a time.
        compile: whether to compile what follows the second convolution of res5.
    """

    def __init__(self, heads: AttributeRes5ROIHeads, step: int, compile: bool):
        pooling = heads.box_head
        self.pooler, self.sampling_ratio = pooling.POOLER_TYPE, pooling.POOLER_SAMPLING_RATIO
        self.resolution = pooling.POOLER_RESOLUTION
        self.step = step
        self.first = heads.res5[0]
        self.dtype = self.first.conv1.weight.dtype
        self.channels = heads.feature_dim
        self.mean_of_res5 = _MeanOfRes5(heads.res5)
        if compile:
            options = {"freezing": True} if self.first.conv1.weight.device.type == "cpu" else None
            self.mean_of_res5 = torch.compile(self.mean_of_res5, dynamic=False, options=options)
        # Statistics over a region's bins, as GN's, are not those over the windows.
        by_window = not any(isinstance(module, nn.GroupNorm) for module in heads.res5.modules())
        if self.pooler == "ROIPool" and by_window and self.first.conv2.groups == 1:
            self.begin = self._begin_with_windows
            self.taps = self.first.conv2.weight.permute(2, 3, 0, 1).flatten(0, 2)[:, :, None, None].contiguous()
        else:
            self.begin = self._begin_with_bins

    def __call__(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        """As ``AttributeRes5ROIHeads.features``; float32."""
        number = sum(map(len, boxes))
        if number == 0:
            return feature_map.new_zeros(0, self.channels, dtype=torch.float32)
        steps = self.begin(feature_map, boxes, 1.0 / stride)
        return torch.cat([self.mean_of_res5(out, shortcut) for out, shortcut in steps])[:number]

    def _begin_with_windows(self, feature_map, boxes, scale):
        """conv2's output and the shortcut for each step, [step, C, n, n], put together from what each window gives.

        The output of a 3x3 convolution is a sum of nine products, a window's with the weights of a tap: they too are
        computed once a window, and only their sums for each bin of each region.
        """
        windows = roi_windows(boxes, self.resolution, scale, *feature_map.shape[-2:])
        windows, index = distinct_windows(windows)
        maxima = window_maxima(feature_map, windows)
        conv1, conv2, shortcut = self.first.conv1, self.first.conv2, self.first.shortcut
        reduced = nn.functional.relu_(_pointwise(maxima, conv1.weight, conv1.bias))
        # The last row is the padding around a region.
        products = _pointwise(nn.functional.pad(reduced, (0, 0, 0, 1)), self.taps)
        products = products.reshape(-1, conv2.out_channels)
        shortcuts = _pointwise(maxima, shortcut.weight, shortcut.bias)
        for rows in self._steps(index):
            taps = _taps(rows[:, :: conv1.stride[0], :: conv1.stride[1]], conv2, padding=len(reduced))
            out = nn.functional.embedding_bag(taps.flatten(0, 2), products, mode="sum").add_(conv2.bias)
            shortcut_rows = rows[:, :: shortcut.stride[0], :: shortcut.stride[1]]
            yield out.view(*taps.shape[:3], -1).permute(0, 3, 1, 2), shortcuts[shortcut_rows].permute(0, 3, 1, 2)

    def _begin_with_bins(self, feature_map, boxes, scale):
        # torchvision's operators have no bf16 form.
        pooled = pool_regions(feature_map.float(), boxes, self.resolution, scale, self.pooler, self.sampling_ratio)
        for regions in self._steps(pooled):
            regions = regions.to(self.dtype, memory_format=torch.channels_last)
            yield self.first.conv2(nn.functional.relu_(self.first.conv1(regions))), self.first.shortcut(regions)

    def _steps(self, values: Tensor):
        """Parts of ``step`` rows; the last is filled up with its last row, for a compiled function has one shape."""
        for part in values.split(self.step):
            lacking = min(self.step, len(values)) - len(part)
            yield torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part


class _MeanOfRes5(nn.Module):
    """res5 from the output of its second convolution and its shortcut to the mean, [R, D] float32."""

    def __init__(self, res5: nn.Sequential):
        super().__init__()
        self.res5 = res5

    def forward(self, out: Tensor, shortcut: Tensor) -> Tensor:
        x = self.res5[0].after_conv2(out, shortcut)
        for module in self.res5[1:]:
            x = module(x)
        return x.mean(dim=(2, 3), dtype=torch.float32)


def _pointwise(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows [K, C] times a weight [D, C, 1, 1], [K, D]. On a CPU oneDNN's convolution is up to twice as fast as the BLAS
    behind torch's matrix product."""
    return nn.functional.conv2d(rows.T[None, :, :, None], weight, bias)[0, :, :, 0].T


def _taps(rows: Tensor, conv: nn.Conv2d, padding: int) -> Tensor:
    """Which products a square convolution adds up for each output.

    Args:
        rows: [R, n, n] int64 the row of each of its inputs.
        padding: the row for inputs around these.

    Returns:
        [R, m, m, taps] int64: row times the number of taps, plus the tap.
    """
    size, dilation, stride, width = conv.kernel_size[0], conv.dilation[0], conv.stride[0], conv.padding[0]
    extent = (size - 1) * dilation + 1
    padded = nn.functional.pad(rows, (width, width, width, width), value=padding)
    inputs = padded.unfold(1, extent, stride)[..., ::dilation].unfold(2, extent, stride)[..., ::dilation].flatten(-2)
    return inputs * size**2 + torch.arange(size**2, device=rows.device)


def _fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Puts ``norm`` into the convolution before it; returns what remains of it."""
    if not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
        return norm
    scale, shift = _scale_and_shift(norm)
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    return nn.Identity()


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _has_bf16() -> bool:
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_compiler(device: str) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        raise InputError(f"compile: there is no C++ compiler {compiler!r}; install one, name it in CXX, or do without")
