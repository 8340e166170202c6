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
from bua.modeling.grid_detector import GridDetector
from bua.modeling.inference_roi_heads import InferenceROIHeads
from bua.modeling.roi_heads import AttributeRes5ROIHeads, ROIHeads
from bua.modeling.vinvl import VinVLDetector

# The type of the convolutions. "tf32" is float32 too; ``bua.precision`` lets a GPU multiply it with less precision.
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

# Numbers of regions that run through res5 at a time. On a CPU they are small enough for the activations to stay in the
# cache; on a GPU the largest limits the memory that they take, and the smaller ones are for few regions.
REGIONS_PER_STEP = {"cpu": (10,), "cuda": (75, 150, 300, 600)}
# On a CPU, ResNeXt's res5 is so wide that its weights, which each step reads again, take a larger share of the time.
GROUPED_REGIONS_PER_STEP = (30,)

logger = logging.getLogger(__name__)


class OptimizedDetector(Detector):
    """A detector that can only infer, made by ``optimize_for_inference``. Where res5 runs on regions, their features
    come from ``InferenceROIHeads``; everything else runs as in ``Detector``."""


class OptimizedGridDetector(GridDetector, OptimizedDetector):
    """A ``GridDetector`` that can only infer."""


class OptimizedVinVLDetector(VinVLDetector, OptimizedDetector):
    """A ``VinVLDetector`` made by ``optimize_for_inference``."""


def optimize_for_inference(detector: Detector, *, precision: str = "fp32", compile: bool = False) -> OptimizedDetector:
    """Returns an optimised copy of a detector, on the same device. ``detector`` is not changed.

    - Normalisation with fixed statistics is folded into the convolutions (FrozenBN, and BN as it is in evaluation; GN
      stays). The copy's ``state_dict`` is therefore no checkpoint, and the copy cannot be trained.
    - Convolutions and the tensors between them are channels-last.
    - With RoIPool, the first layers of res5 are computed once for each distinct window instead of once for each bin of
      each region (``InferenceROIHeads``), which saves a quarter of the multiplications.
    - "tf32" is "fp32" here: how a GPU multiplies float32 is a setting of the process
      (``bua.precision.set_float32_precision``).
    - With "bf16", weights and activations of the convolutions are bfloat16. These stay float32: the last
      layers of the RPN, box coding, suppression, the mean over res5's output, the classifiers, and everything that is
      returned.

    With "fp32" the results differ from those of ``detector`` only by the order of summation, about 1e-5 of the largest
    value.

    Args:
        precision: "fp32", "tf32" or "bf16". On a CPU without bfloat16 arithmetic (avx512_bf16, amx_bf16) "bf16" is
            slower than "fp32", and a warning says so.
        compile: Whether to compile res5 with torch.compile, at the first image. It takes about a minute.

    Raises:
        InputError: The precision is unknown, or ``compile`` is set on a CPU without a C++ compiler, or for a detector
            of grid-feats-vqa, whose res5 does not run on regions.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: unknown; use one of {', '.join(PRECISIONS)}")
    device = detector.device.type
    if compile:
        _check_compiler(device)
    if precision == "bf16" and device == "cpu" and not _has_bf16():
        logger.warning("precision bf16: this CPU has no bfloat16 arithmetic; fp32 is faster here")
    if compile and isinstance(detector, GridDetector):
        raise InputError("compile: this detector has no part that is compiled; omit --compile")
    copied = copy.deepcopy(detector).eval().requires_grad_(False)
    fold_norms(copied)
    roi_heads: ROIHeads = copied.roi_heads
    res5_on_regions = [roi_heads.res5] if isinstance(roi_heads, AttributeRes5ROIHeads) else []
    for module in (copied.backbone, copied.proposal_generator.rpn_head.conv, *res5_on_regions):
        module.to(PRECISIONS[precision])
    copied.to(memory_format=torch.channels_last)
    if isinstance(roi_heads, AttributeRes5ROIHeads):
        step_sizes = REGIONS_PER_STEP.get(device, REGIONS_PER_STEP["cuda"])
        if device == "cpu" and roi_heads.res5[0].conv2.groups > 1:
            step_sizes = GROUPED_REGIONS_PER_STEP
        roi_heads = InferenceROIHeads(roi_heads, step_sizes=step_sizes, compile=compile)
    kind: type[OptimizedDetector] = OptimizedDetector
    if isinstance(copied, GridDetector):
        kind = OptimizedGridDetector
    elif isinstance(copied, VinVLDetector):
        kind = OptimizedVinVLDetector
    optimized = kind(
        backbone=copied.backbone,
        proposal_generator=copied.proposal_generator,
        roi_heads=roi_heads,
        resize=copied.prepare,
        pixel_mean=copied.pixel_mean,
        pixel_std=copied.pixel_std,
        box_weights=copied.box_weights,
        convention=copied.convention,
    )
    if isinstance(optimized, VinVLDetector) and isinstance(copied, VinVLDetector):
        optimized.post_processing = copied.post_processing
    return optimized.eval()


def fold_norms(module: nn.Module) -> None:
    """Folds normalisation with fixed statistics into the convolution before it, in place. Where no convolution comes
    before it, it becomes one multiplication and one addition. The arithmetic is done in double precision."""
    for child in list(module.modules()):
        if isinstance(child, ConvNorm):
            child.norm = _fold(child, child.norm)
        elif isinstance(child, PreActivationBottleneck):
            child.conv2.norm = _fold(child.conv1, child.conv2.norm)
            child.conv3.norm = _fold(child.conv2, child.conv3.norm)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FrozenBatchNorm2d | nn.BatchNorm2d):
                setattr(parent, name, ScaleAndShift(child))


class ScaleAndShift(nn.Module):
    """Normalisation with fixed statistics as one factor and one summand per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: FrozenBatchNorm2d | nn.BatchNorm2d):
        super().__init__()
        scale, shift = _scale_and_shift(norm)
        self.register_buffer("scale", scale.float().view(-1, 1, 1))
        self.register_buffer("shift", shift.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def _fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Folds ``norm`` into the convolution before it; returns the module that takes the place of ``norm``."""
    if not isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d):
        return norm
    scale, shift = _scale_and_shift(norm)
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    return nn.Identity()


def _scale_and_shift(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.weight is not None
    assert norm.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _has_bf16() -> bool:
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_compiler(device: str) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"compile: there is no C++ compiler {compiler!r}; install one, name it in CXX, or omit --compile"
        )
