"""Names of bua's parameters, and tools that the conversions of ``bua.weights.layouts`` share."""

import re

from torch import Tensor

Weights = dict[str, Tensor]

ANCHORS = "proposal_generator.anchor_generator.cell_anchors_0"
HEAD = "roi_heads.box_predictor."
ATTRIBUTES = "roi_heads.attribute_predictor."
RPN = "proposal_generator.rpn_head."

# The constant that FrozenBatchNorm2d of torchvision and Detectron2 adds to the variance.
EPSILON = 1e-5


class LayoutError(Exception):
    """Raised when weights cannot be converted. The message is one line that says why."""


def rename(weights: Weights, prefixes: dict[str, str]) -> Weights:
    """Returns the weights with the first of ``prefixes`` that a name begins with replaced by its value."""
    renamed = {}
    for name, value in weights.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(prefix, "") + name.removeprefix(prefix)] = value
    return renamed


def stage_name(number: int) -> str:
    """Returns the name of a stage, 2 to 5."""
    return "roi_heads.res5" if number == 5 else f"backbone.res{number}"


def numbered_stage(found: re.Match[str]) -> str:
    """Returns the name of the stage, with a dot, for a match of which the first group is the number of torchvision's
    ``layer1`` to ``layer4``."""
    return f"{stage_name(int(found[1]) + 1)}."
