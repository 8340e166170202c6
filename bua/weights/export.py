"""Converts bua's weights to the layouts of Detectron2 and Hugging Face, for programs that do not use bua."""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch

from bua.modeling.anchors import cell_anchors
from bua.weights.files import written_whole
from bua.weights.layouts import (
    ANCHORS,
    ASPECT_RATIOS,
    ATTRIBUTES,
    CAFFE_SIZES,
    DETECTRON2_ANCHORS,
    DETECTRON2_SIZES,
    HEAD,
    PER_ANCHOR,
    LayoutError,
    Weights,
)


class AnchorGeometry(NamedTuple):
    """The arguments of ``bua.modeling.anchors.cell_anchors``."""

    sizes: tuple[float, ...]
    aspect_ratios: tuple[float, ...]
    convention: str


def released_geometry(weights: Weights) -> AnchorGeometry | None:
    """Returns the geometry of the anchors that the weights contain, or None if no released detector has it."""
    for sizes in (CAFFE_SIZES, DETECTRON2_SIZES):
        for convention in ("caffe", "detectron2"):
            geometry = AnchorGeometry(sizes, ASPECT_RATIOS, convention)
            if ANCHORS in weights and _same(weights[ANCHORS], cell_anchors(*geometry)):
                return geometry
    return None


def to_detectron2(weights: Weights, geometry: AnchorGeometry | None) -> Weights:
    """Returns the weights for Detectron2 without bua, where Detectron2 ignores the attribute head.

    The names stay the same. The channels of the anchors are put into Detectron2's order. Its anchors differ slightly
    from those of the box convention "caffe", so that its regions differ slightly from bua's.

    Args:
        geometry: Geometry of the anchors that the weights were trained with. None for a backbone.

    Raises:
        LayoutError: Detectron2 does not have this network, or the geometry does not belong to the weights.
    """
    if "backbone.stem.norm.weight" in weights:
        raise LayoutError("is a ResNet with normalisation before convolutions, which this layout does not have")
    converted = {name: value for name, value in weights.items() if name != ANCHORS}
    per_anchor = [name for name in converted if name.startswith(PER_ANCHOR)]
    if not per_anchor:
        return converted
    if geometry is None:
        raise LayoutError("does not say which anchors it was trained with; give its configuration")
    sizes, ratios = geometry.sizes, geometry.aspect_ratios
    rows = len(converted[f"{PER_ANCHOR[0]}bias"])
    stated = weights.get(ANCHORS)
    if len(sizes) * len(ratios) != rows or (stated is not None and not _same(stated, cell_anchors(*geometry))):
        raise LayoutError(f"was trained with {rows} anchors, which are not those of the configuration")
    if geometry.convention == "caffe":
        for name in per_anchor:
            # From the order (ratio, size) to the order (size, ratio).
            by_ratio = converted[name].unflatten(0, (len(ratios), len(sizes), -1))
            converted[name] = by_ratio.transpose(0, 1).flatten(0, 2).contiguous()
    converted[DETECTRON2_ANCHORS] = cell_anchors(sizes, ratios, "detectron2")
    return converted


def to_huggingface(weights: Weights, geometry: AnchorGeometry | None) -> Weights:
    """Returns the weights for Hugging Face's LXMERT demo and for airsplay's fork of Detectron2.

    This does the same as ``to_detectron2``, and renames the attribute head, which must have a "no attribute" class.

    Raises:
        LayoutError: As for ``to_detectron2``, or the weights are not those of a complete detector with attributes and
            with normalisation by fixed statistics.
    """
    needed = {
        f"{HEAD}cls_score.weight",
        f"{ATTRIBUTES}attr_score.weight",
        "backbone.stem.conv1.norm.running_var",
        "roi_heads.res5.0.conv1.weight",
    }
    if missing := sorted(needed - weights.keys()):
        raise LayoutError(f"lacks {missing[0]}, which this layout has")
    converted = {}
    for name, value in to_detectron2(weights, geometry).items():
        converted[name.replace(ATTRIBUTES, HEAD)] = value
        if name.endswith(".running_var"):
            converted[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return converted


def write_weights(path: str | Path, weights: Weights, *, bare: bool = False) -> None:
    """Writes weights to a file, which appears only when it is complete.

    The file is a pickle of numpy arrays if its name ends with ``.pkl``, and otherwise written by ``torch.save``.

    Args:
        bare: Whether to write only the tensors, as Hugging Face does, instead of putting them under the key "model",
            as Detectron2 does. Pickles always have the key.

    Raises:
        InputError: The disk is full, or the file cannot be written.
    """
    path = Path(path)
    weights = {name: value.contiguous() for name, value in weights.items()}
    with written_whole(path, "file") as file:
        if path.suffix == ".pkl":
            arrays = {name: value.numpy() for name, value in weights.items()}
            pickle.dump({"model": arrays, "__author__": "bua"}, file)
        else:
            torch.save(weights if bare else {"model": weights}, file)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b, atol=0.01)
