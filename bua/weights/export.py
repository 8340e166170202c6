"""bua's weights in the layouts of Detectron2 and Hugging Face, for programs without bua."""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch

from bua.io.files import whole_file
from bua.modeling.anchors import cell_anchors
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
    """What ``cell_anchors`` makes anchors from."""

    sizes: tuple[float, ...]
    aspect_ratios: tuple[float, ...]
    convention: str


def released_geometry(weights: Weights) -> AnchorGeometry | None:
    """The geometry of the anchors that stand beside weights, where it is that of a released detector."""
    for sizes in (CAFFE_SIZES, DETECTRON2_SIZES):
        for convention in ("caffe", "detectron2"):
            geometry = AnchorGeometry(sizes, ASPECT_RATIOS, convention)
            if ANCHORS in weights and _same(weights[ANCHORS], cell_anchors(*geometry)):
                return geometry
    return None


def to_detectron2(weights: Weights, geometry: AnchorGeometry | None) -> Weights:
    """For Detectron2 without bua, which ignores the attribute head.

    The names are bua's. What belongs to anchors is put in the order of Detectron2's, which are not quite those of the
    box convention "caffe": regions then differ a little from bua's.

    Args:
        geometry: of the anchors that the weights were trained on; None for a backbone.

    Raises:
        LayoutError: Detectron2 has no such network, or the geometry is not that of the weights.
    """
    if "backbone.stem.norm.weight" in weights:
        raise LayoutError("is a ResNet with normalisation before convolutions, which this layout does not have")
    converted = {name: value for name, value in weights.items() if name != ANCHORS}
    per_anchor = [name for name in converted if name.startswith(PER_ANCHOR)]
    if not per_anchor:
        return converted
    if geometry is None:
        raise LayoutError("does not say on which anchors it was trained; name its configuration")
    sizes, ratios = geometry.sizes, geometry.aspect_ratios
    rows = len(converted[f"{PER_ANCHOR[0]}bias"])
    stated = weights.get(ANCHORS)
    if len(sizes) * len(ratios) != rows or (stated is not None and not _same(stated, cell_anchors(*geometry))):
        raise LayoutError(f"was trained on {rows} anchors that are not those of the configuration")
    if geometry.convention == "caffe":
        for name in per_anchor:
            # All sizes of the first ratio first, to all ratios of the first size first.
            by_ratio = converted[name].unflatten(0, (len(ratios), len(sizes), -1))
            converted[name] = by_ratio.transpose(0, 1).flatten(0, 2).contiguous()
    converted[DETECTRON2_ANCHORS] = cell_anchors(sizes, ratios, "detectron2")
    return converted


def to_huggingface(weights: Weights, geometry: AnchorGeometry | None) -> Weights:
    """For LXMERT's demo of Hugging Face, and airsplay's fork of Detectron2: as ``to_detectron2``, and the attribute
    head, which must have "no attribute", under their names.

    Raises:
        LayoutError: as ``to_detectron2``, or it is no whole detector with normalisation by fixed statistics.
    """
    needed = {f"{HEAD}cls_score.weight", f"{ATTRIBUTES}attr_score.weight", "backbone.stem.conv1.norm.running_var"}
    if missing := sorted(needed - weights.keys()):
        raise LayoutError(f"lacks {missing[0]}, which this layout has")
    converted = {}
    for name, value in to_detectron2(weights, geometry).items():
        converted[name.replace(ATTRIBUTES, HEAD)] = value
        if name.endswith(".running_var"):
            converted[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return converted


def write_weights(path: str | Path, weights: Weights, *, bare: bool = False) -> None:
    """Writes a file that has its name when it is whole: a pickle of arrays where the name ends with ``.pkl``, else one
    of torch.

    Args:
        bare: the tensors alone, as Hugging Face has them; otherwise under "model", as Detectron2 does.
    """
    path = Path(path)
    weights = {name: value.contiguous() for name, value in weights.items()}
    with whole_file(path, durable=True) as file:
        if path.suffix == ".pkl":
            arrays = {name: value.numpy() for name, value in weights.items()}
            pickle.dump({"model": arrays, "__author__": "bua"}, file)
        else:
            torch.save(weights if bare else {"model": weights}, file)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b, atol=0.01)
