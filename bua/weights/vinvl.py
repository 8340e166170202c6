"""Converts the weights of VinVL's detector from the names of microsoft/scene_graph_benchmark, such as
``module.backbone.body.layer1.0.bn1.weight``, to bua's."""

import re

import torch

from bua.weights.names import ANCHORS, ATTRIBUTES, EPSILON, HEAD, RPN, LayoutError, Weights, numbered_stage, rename

PREFIX = "module."
CLASSIFIER = "roi_heads.box.predictor.cls_score.weight"
_EXTRACTOR, _SECOND_EXTRACTOR = "roi_heads.box.feature_extractor.", "attribute.feature_extractor."


def is_vinvl(weights: Weights) -> bool:
    """Returns whether weights have these names. The prefix is that of torch's data parallelism."""
    return CLASSIFIER in weights or PREFIX + CLASSIFIER in weights


def convert_vinvl(weights: Weights) -> Weights:
    """Returns the weights under bua's names and in bua's order, with the background and "no attribute" last.

    Normalisation adds nothing to the variance here, and ``EPSILON`` in bua, so that the variances are made smaller by
    as much. The feature extractor, which the attribute head shares, is in the file twice; the copy is left out.

    Raises:
        LayoutError: The attribute head has another feature extractor.
    """
    weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    converted = {}
    for name, value in weights.items():
        if name.startswith(_SECOND_EXTRACTOR):
            first = weights[name.replace(_SECOND_EXTRACTOR, _EXTRACTOR)]
            if not (value.is_meta or torch.equal(value, first)):
                raise LayoutError("has an attribute head with a feature extractor of its own, which bua does not have")
            continue
        converted[_network_name(name)] = value - EPSILON if name.endswith(".running_var") else value
    converted = rename(
        converted,
        {
            "rpn.head.conv.": f"{RPN}conv.",
            "rpn.head.cls_logits.": f"{RPN}objectness_logits.",
            "rpn.head.bbox_pred.": f"{RPN}anchor_deltas.",
            "rpn.anchor_generator.cell_anchors.0": ANCHORS,
            "roi_heads.box.predictor.": HEAD,
            "attribute.predictor.": ATTRIBUTES,
        },
    )
    for part in ("weight", "bias"):
        # bua has no boxes of the background.
        converted[f"{HEAD}bbox_pred.{part}"] = converted[f"{HEAD}bbox_pred.{part}"][4:]
    for name in (f"{HEAD}cls_score", f"{ATTRIBUTES}cls_embedding", f"{ATTRIBUTES}attr_score"):
        for full in (f"{name}.weight", f"{name}.bias"):
            if full in converted:
                converted[full] = converted[full].roll(-1, 0)
    return converted


def _network_name(name: str) -> str:
    """Returns bua's name of a parameter of the backbone or of res5; other names are returned unchanged."""
    name = re.sub(r"^backbone\.body\.stem\.", "backbone.stem.", name)
    name = re.sub(r"^(?:backbone\.body|roi_heads\.box\.feature_extractor\.head)\.layer(\d)\.", numbered_stage, name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
