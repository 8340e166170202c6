"""The layouts in which detectors and backbones were released, and how each is converted to bua's.

bua's layout has Detectron2's parameter names; background and "no attribute" last; one objectness logit per anchor; box
deltas for the weights (10, 10, 5, 5); images in BGR; normalisation as weight, bias, running_mean, running_var. The
anchors that the region proposal network was trained with are kept next to the weights under the name ``ANCHORS``: the
two box conventions have different anchors in different orders, which cannot be seen from names and shapes.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bua.modeling.anchors import cell_anchors
from bua.weights.names import (
    ANCHORS,
    ATTRIBUTES,
    EPSILON,
    HEAD,
    RPN,
    LayoutError,
    Weights,
    numbered_stage,
    rename,
    stage_name,
)
from bua.weights.vinvl import convert_vinvl, is_vinvl

ASPECT_RATIOS = (0.5, 1.0, 2.0)
CAFFE_SIZES = (64, 128, 256, 512)
DETECTRON2_SIZES = (32, 64, 128, 256, 512)

# The original predicts deltas as multiples of the region's sides, since it folds the standard deviations of its targets
# into the weights (lib/fast_rcnn/train_multi_gpu.py). In bua and Detectron2, predicted deltas are divided by these
# weights.
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_TORCHVISION_CONFIG = (
    "MODEL.RESNETS.STRIDE_IN_1X1 False, MODEL.PIXEL_MEAN [103.53, 116.28, 123.675], "
    "MODEL.PIXEL_STD [57.375, 57.12, 58.395]; its colours are converted to bua's order, BGR"
)

PER_ANCHOR = (f"{RPN}objectness_logits.", f"{RPN}anchor_deltas.")
DETECTRON2_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


class Layout(NamedTuple):
    """The names and scales that a family of files uses for its weights.

    Attributes:
        name: Short name, such as "caffe".
        origin: Description of the files that have this layout, such as "the original's caffemodels".
        config: The configuration for these weights, or the settings that it must have.
        recognise: Function that returns whether weights have the names of this layout.
        convert: Function that converts weights to bua's names, orders and scales. Unknown tensors keep their names.
    """

    name: str
    origin: str
    config: str
    recognise: Callable[[Weights], bool]
    convert: Callable[[Weights], Weights]


def find_layout(weights: Weights) -> Layout:
    """Returns the layout of weights, given under the names in their file: the first of ``LAYOUTS`` that fits."""
    return next(layout for layout in LAYOUTS if layout.recognise(weights))


def to_bua(weights: Weights) -> Weights:
    """Converts weights from the names in their file to bua's, and adds the anchors if they are known.

    Raises:
        LayoutError: The weights are of a detector that bua does not have, or a part of them is missing or has an
            impossible shape.
    """
    layout = find_layout(weights)
    try:
        converted = layout.convert(weights)
    except KeyError as error:
        raise LayoutError(f"the weights are incomplete ({layout.origin}): {error} is missing") from error
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise LayoutError(f"the weights are damaged ({layout.origin}): {' '.join(str(error).split())}") from error
    if layout.convert is _convert_own:
        return converted
    # Counters of batches, which some layouts have, do not affect the outputs.
    return {name: value for name, value in converted.items() if not name.endswith(".num_batches_tracked")}


def anchor_convention(anchors: Tensor) -> str:
    """Returns the box convention of a cell's anchors [A, 4]: only in "caffe" they are centred in the cell."""
    return "caffe" if (anchors.sum(1) != 0).any() else "detectron2"


def _convert_caffe(weights: Weights) -> Weights:
    """Converts the blobs of a caffemodel, which are named ``<layer>.<number>``.

    The layers are those of models/vg/ResNet-101/faster_rcnn_end2end_final/train.prototxt.
    """
    blobs = dict(weights)
    converted = {}
    for name in [name for name in blobs if re.fullmatch(r"(conv1|res\d[a-z]\d*_branch(1|2[abc]))\.0", name)]:
        layer = name[:-2]
        target = _block_name(layer)
        converted[f"{target}.weight"] = blobs.pop(name)
        suffix = layer if layer == "conv1" else layer.removeprefix("res")
        separator = "_" if layer == "conv1" else ""
        norm, scale = f"bn{separator}{suffix}", f"scale{separator}{suffix}"
        total = blobs.pop(f"{norm}.2")
        factor = torch.where(total == 0, 0.0, 1.0 / total)
        mean = blobs.pop(f"{norm}.0") * factor
        if f"{layer}.1" in blobs:  # MSRA's ResNet-50 has a bias here, which can be folded into its normalisation
            mean = mean - blobs.pop(f"{layer}.1")
        converted[f"{target}.norm.running_mean"] = mean
        converted[f"{target}.norm.running_var"] = blobs.pop(f"{norm}.1") * factor
        converted[f"{target}.norm.weight"] = blobs.pop(f"{scale}.0")
        converted[f"{target}.norm.bias"] = blobs.pop(f"{scale}.1")
    layers = {
        "rpn_conv/3x3": f"{RPN}conv",
        "rpn_cls_score": f"{RPN}objectness_logits",
        "rpn_bbox_pred": f"{RPN}anchor_deltas",
        "cls_score": f"{HEAD}cls_score",
        "bbox_pred": f"{HEAD}bbox_pred",
        "cls_embedding": f"{ATTRIBUTES}cls_embedding",
        "fc_attr": f"{ATTRIBUTES}fc_attr",
        "attr_score": f"{ATTRIBUTES}attr_score",
    }
    for layer, target in layers.items():
        for number, part in enumerate(("weight", "bias")):
            if f"{layer}.{number}" in blobs:
                converted[f"{target}.{part}"] = blobs.pop(f"{layer}.{number}")
    converted.update(blobs)
    if f"{RPN}objectness_logits.weight" in converted:
        converted = _from_caffe_heads(converted)
    return converted


def _block_name(layer: str) -> str:
    """Converts ``res4b22_branch2a`` to ``backbone.res4.22.conv1``. Blocks are named a, b, c or a, b1, b2, ..."""
    if layer == "conv1":
        return "backbone.stem.conv1"
    found = re.fullmatch(r"res(\d)([a-z])(\d*)_branch(\w+)", layer)
    assert found, f"{layer} is the name of a convolution"
    stage, letter, number, branch = found.groups()
    block = int(number) if number else ord(letter) - ord("a")
    part = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}[branch]
    return f"{stage_name(int(stage))}.{block}.{part}"


def _from_caffe_heads(weights: Weights) -> Weights:
    """Converts the orders and scales of Caffe's heads, which have bua's names already."""
    converted = dict(weights)
    for part in ("weight", "bias"):
        # The logits are those of the background for all anchors, then those of the foreground. A softmax over the two
        # is the sigmoid of their difference.
        background, foreground = weights[f"{RPN}objectness_logits.{part}"].chunk(2)
        converted[f"{RPN}objectness_logits.{part}"] = foreground - background
        converted[f"{HEAD}cls_score.{part}"] = weights[f"{HEAD}cls_score.{part}"].roll(-1, 0)
        deltas = weights[f"{HEAD}bbox_pred.{part}"][4:].unflatten(0, (-1, 4))
        scale = torch.tensor(_BOX_WEIGHTS, device=deltas.device).view(1, 4, *[1] * (deltas.dim() - 2))
        converted[f"{HEAD}bbox_pred.{part}"] = (deltas * scale).flatten(0, 1)
    for name in ("cls_embedding.weight", "attr_score.weight", "attr_score.bias"):
        if ATTRIBUTES + name in weights:
            converted[ATTRIBUTES + name] = weights[ATTRIBUTES + name].roll(-1, 0)
    return _with_anchors(converted, "caffe")


def _convert_milvlg(weights: Weights) -> Weights:
    return _from_caffe_heads(
        rename(
            weights,
            {
                "roi_heads.box_predictor.cls_embed.": f"{ATTRIBUTES}cls_embedding.",
                "roi_heads.box_predictor.attr_linear1.": f"{ATTRIBUTES}fc_attr.",
                "roi_heads.box_predictor.attr_linear2.": f"{ATTRIBUTES}attr_score.",
                # In the ResNet-152 (pre-activation), this normalisation is applied to the whole feature map, before
                # the region proposal network.
                "roi_heads.res5.0.norm.": "backbone.norm.",
                "roi_heads.res5_bn.": "roi_heads.res5.norm.",
            },
        )
    )


def _convert_airsplay(weights: Weights) -> Weights:
    parts = ("cls_embedding.", "fc_attr.", "attr_score.")
    return _convert_detectron2(rename(weights, {HEAD + part: ATTRIBUTES + part for part in parts}))


def _convert_grid_feats(weights: Weights) -> Weights:
    parts = {"obj_embed.": "cls_embedding.", "fc.0.": "fc_attr."}
    return _convert_detectron2(rename(weights, {ATTRIBUTES + part: ATTRIBUTES + own for part, own in parts.items()}))


def _convert_detectron2(weights: Weights) -> Weights:
    return _with_anchors(weights, "detectron2")


def _convert_own(weights: Weights) -> Weights:
    return rename(weights, {DETECTRON2_ANCHORS: ANCHORS})


def _with_anchors(weights: Weights, convention: str) -> Weights:
    """Adds the anchors of a layout if the file does not have them, as files of Detectron2 before 2021 do not."""
    converted = _convert_own(weights)
    sizes = {len(CAFFE_SIZES): CAFFE_SIZES, len(DETECTRON2_SIZES): DETECTRON2_SIZES}
    number = len(converted[f"{RPN}objectness_logits.bias"]) // len(ASPECT_RATIOS)
    if ANCHORS not in converted and number in sizes:
        converted[ANCHORS] = cell_anchors(sizes[number], ASPECT_RATIOS, convention)
    return converted


def _convert_caffe2(weights: Weights) -> Weights:
    """Converts Detectron's names, such as ``res2_0_branch2a_w``. Detectron2's ImageNet backbones have them too."""
    converted = {}
    parts = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
    statistics = {"gamma": "weight", "s": "weight", "beta": "bias", "b": "bias", "rm": "running_mean"}
    statistics |= {"riv": "running_var", "running_mean": "running_mean", "running_var": "running_var"}
    for name, value in weights.items():
        if name.endswith("_momentum"):
            continue
        if found := re.fullmatch(r"res(\d)_(\d+)_(branch\w+?)_(w|bn_(\w+))", name):
            stage, block, branch, kind, statistic = found.groups()
            target = f"{stage_name(int(stage))}.{block}.{parts[branch]}"
        elif found := re.fullmatch(r"(?:res_)?conv1_(w|bn_(\w+))", name):
            kind, statistic = found.groups()
            target = "backbone.stem.conv1"
        else:
            converted[name] = value
            continue
        converted[f"{target}.weight" if kind == "w" else f"{target}.norm.{statistics[statistic]}"] = value
    # Detectron folded the statistics into scale and bias. With these values, normalisation applies exactly those two.
    for name in [name for name in converted if name.endswith(".norm.weight")]:
        norm = name.removesuffix("weight")
        converted.setdefault(f"{norm}running_mean", torch.zeros_like(converted[name]))
        converted.setdefault(f"{norm}running_var", torch.full_like(converted[name], 1 - EPSILON))
    return converted


def _convert_torchvision(weights: Weights) -> Weights:
    """Does what Detectron2's tools/convert-torchvision-to-d2.py does, and puts the first convolution's input in BGR."""
    converted = {}
    for name, value in weights.items():
        name = re.sub(r"^(conv1|bn1)\.", r"backbone.stem.\1.", name)
        name = re.sub(r"^layer(\d)\.", numbered_stage, name)
        name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        converted[name] = value
    return _flip_colours(converted)


def _convert_backbone(weights: Weights) -> Weights:
    return rename(weights, {"stem.": "backbone.stem.", "res5.": "roi_heads.res5.", "res": "backbone.res"})


def _flip_colours(weights: Weights) -> Weights:
    name = "backbone.stem.conv1.weight"
    return weights | {name: weights[name].flip(1)}


def _has(*names: str) -> Callable[[Weights], bool]:
    return lambda weights: all(name in weights for name in names)


LAYOUTS = (
    Layout(
        "caffe",
        "the original's caffemodels",
        "configs/vg_r101_caffe.yaml",
        _has("res2a_branch2a.0", "rpn_conv/3x3.0"),
        _convert_caffe,
    ),
    Layout(
        "caffe-imagenet",
        "MSRA's ImageNet caffemodels",
        "STRIDE_IN_1X1 True, as in configs/vg_r101.yaml",
        _has("res2a_branch2a.0"),
        _convert_caffe,
    ),
    Layout(
        "milvlg-caffe",
        "MILVLG's caffe mode",
        "configs/vg_r101_caffe.yaml, or configs/vg_r152_milvlg.yaml for the ResNet-152",
        _has(f"{HEAD}cls_embed.weight"),
        _convert_milvlg,
    ),
    Layout(
        "airsplay",
        "airsplay's and Hugging Face's conversions of the original",
        "configs/vg_r101_frcnn.yaml",
        _has(f"{HEAD}cls_embedding.weight"),
        _convert_airsplay,
    ),
    Layout(
        "grid-feats",
        "grid-feats-vqa and MILVLG's d2 mode",
        "configs/vg_r50_grid_feats.yaml, vg_r101_grid_feats.yaml or vg_x152_grid_feats.yaml, by its backbone; for grid "
        "models r50.yaml, x101.yaml, x152.yaml or x152pp.yaml in configs/grid_feats",
        _has(f"{ATTRIBUTES}obj_embed.weight"),
        _convert_grid_feats,
    ),
    Layout(
        "vinvl",
        "VinVL's detector",
        "configs/vinvl_x152c4.yaml",
        is_vinvl,
        convert_vinvl,
    ),
    Layout(
        "effdet",
        "effdet's detectors",
        "configs/vg_efficientdet_d1.yaml, or another EfficientDet",
        _has("class_net.predict.conv_pw.weight"),
        lambda weights: {f"network.{name}": value for name, value in weights.items()},
    ),
    Layout(
        "caffe2",
        "Detectron's and Detectron2's ImageNet backbones",
        "STRIDE_IN_1X1 True for MSRA's R-50 and R-101, False for FAIR's X-101 and X-152",
        _has("res2_0_branch2a_w"),
        _convert_caffe2,
    ),
    Layout(
        "torchvision", "torchvision's ResNets", _TORCHVISION_CONFIG, _has("layer1.0.conv1.weight"), _convert_torchvision
    ),
    Layout(
        "detectron2-torchvision",
        "torchvision's ResNets converted for Detectron2",
        _TORCHVISION_CONFIG,
        _has("stem.fc.weight", "stem.conv1.weight"),
        lambda weights: _flip_colours(_convert_backbone(weights)),
    ),
    Layout(
        "detectron2-backbone",
        "a backbone under Detectron2's names",
        "the one that it was trained with",
        _has("stem.conv1.weight"),
        _convert_backbone,
    ),
    Layout("bua", "bua and Detectron2", "the one that it was trained with", lambda weights: True, _convert_own),
)
