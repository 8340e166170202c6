"""Reads checkpoints in any released layout, loads them into a model, and saves checkpoints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bua.errors import InputError
from bua.weights.files import check_finite, read_file, read_weights, written_whole
from bua.weights.layouts import ANCHORS, PER_ANCHOR, Layout, LayoutError, anchor_convention, find_layout, to_bua
from bua.weights.zoo import fetch

# Parameters whose first dimension depends on a vocabulary: the configuration key of the vocabulary's size, and a
# function from the number of rows to that size, as text for a message.
_VOCABULARY_ROWS: dict[str, tuple[str, Callable[[int], str]]] = {
    "box_predictor.cls_score": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: f"{rows - 1}"),
    "box_predictor.bbox_pred": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: f"{rows // 4}"),
    "cls_embedding": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: f"{rows - 1}"),
    "attr_score": (
        "MODEL.BUA.ATTRIBUTES.NUM_CLASSES",
        lambda rows: f"{rows - 1}, or to {rows} with MODEL.BUA.ATTRIBUTES.NO_ATTRIBUTE_CLASS False",
    ),
}


class LoadReport(NamedTuple):
    """Names of the parameters and buffers that were not copied from the file into the model.

    Attributes:
        missing: Names that are in the model and not in the file.
        unexpected: Names that are in the file and not in the model.
        reshaped: Names that are in both, but with different shapes or for other anchors.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def lines(self) -> list[str]:
        """Returns one line for each of the three kinds that has names, with the first few of them."""
        kinds = {
            "of the model are not in the file": self.missing,
            "of the file are not in the model": self.unexpected,
            "have another shape, or belong to other anchors, than in the model": self.reshaped,
        }
        return [
            f"{len(names)} parameters {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for kind, names in kinds.items()
            if names
        ]


def load_checkpoint(path_or_uri: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint, on the CPU, converted to bua's parameter names, orders and scales.

    The checkpoint may be in any of ``bua.weights.layouts.LAYOUTS``. If the file or its layout says which anchors its
    region proposal network was trained with, they are returned under the name ``ANCHORS``. A tensor that bua has no
    name for keeps its name.

    Args:
        path_or_uri: A path, the name of a released checkpoint (``bua.weights.zoo.ZOO``), or an address.

    Raises:
        InputError: There is no such file, it is truncated, it holds no weights or weights that are not finite, or it
            holds the weights of a kind of detector that bua does not have.
    """
    path = fetch(path_or_uri)
    weights = read_weights(path)
    check_finite(weights, path)
    try:
        return to_bua(weights)
    except LayoutError as error:
        raise InputError(f"{path}: {error}") from error


def identify(path_or_uri: str | Path) -> Layout:
    """Returns the layout of a checkpoint, which is recognised from its content.

    Raises:
        InputError: As for ``load_checkpoint``.
    """
    return find_layout(read_weights(fetch(path_or_uri)))


def load_weights(model: nn.Module, weights: str | Path, *, allow_missing: bool = False) -> LoadReport:
    """Copies a checkpoint's weights into ``model``, and reports what was not copied.

    Tensors that only the file has are ignored.

    Args:
        weights: A path, name or address, as for ``load_checkpoint``.
        allow_missing: For the start of training. A parameter that the file lacks, or has with another shape or for
            other anchors, keeps its initial value.

    Raises:
        InputError: As for ``load_checkpoint``; or nothing in the file fits the model. Unless ``allow_missing``, also if
            the region proposal network in the file was trained with other anchors than those of the model, or if the
            file lacks a parameter of the model, or has it with another shape, such as that of another vocabulary.
    """
    own = model.state_dict()
    loaded = _place_res5(load_checkpoint(weights), own)
    mismatch = _anchor_mismatch(loaded.pop(ANCHORS, None), model)
    common = [name for name in own if name in loaded]
    of_other_anchors = [name for name in common if mismatch and name.startswith(PER_ANCHOR)]
    report = LoadReport(
        # Counters of batches do not affect the outputs, and most layouts do not have them.
        missing=[name for name in own if name not in loaded and not name.endswith(".num_batches_tracked")],
        unexpected=[name for name in loaded if name not in own],
        reshaped=[name for name in common if loaded[name].shape != own[name].shape or name in of_other_anchors],
    )
    if len(report.reshaped) == len(common):
        raise InputError(
            f"{weights}: none of its {len(loaded)} parameters fits this model; give a checkpoint of this kind of model"
        )
    if mismatch and not allow_missing:
        raise InputError(f"{weights}: {mismatch}")
    if report.reshaped and not allow_missing:
        name = report.reshaped[0]
        raise InputError(f"{weights}: {describe_mismatch(name, loaded[name].shape, own[name].shape)}")
    if report.missing and not allow_missing:
        names = ", ".join(report.missing[:3]) + (", ..." if len(report.missing) > 3 else "")
        advice = ""
        if all("attribute_predictor" in name for name in report.missing):
            advice = "; the checkpoint has no attributes: set MODEL.BUA.ATTRIBUTES.ENABLED False"
        raise InputError(
            f"{weights}: lacks {len(report.missing)} of the model's {len(own)} parameters: {names}{advice}"
        )
    fitting = {name: loaded[name] for name in common if name not in set(report.reshaped)}
    model.load_state_dict(fitting, strict=False)
    return report


def _place_res5(loaded: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the loaded weights with those of res5 in the backbone, if the model has it there. Most layouts of whole
    ResNets become those of detectors that run res5 on regions."""
    of_regions, of_image = "roi_heads.res5.", "backbone.res5."
    if not any(name.startswith(of_image) for name in own) or any(name.startswith(of_image) for name in loaded):
        return loaded
    return {
        of_image + name.removeprefix(of_regions) if name.startswith(of_regions) else name: value
        for name, value in loaded.items()
    }


def _anchor_mismatch(anchors: Tensor | None, model: nn.Module) -> str | None:
    """Returns how the anchors of a file differ from those of the model, or None if they agree.

    Anchors of different number are not compared: the shapes of the parameters differ then. With different anchors of
    the same number, the shapes agree although the channels mean other anchors.
    """
    own = dict(model.named_buffers()).get(ANCHORS)
    if anchors is None or own is None or anchors.shape != own.shape or (anchors - own.cpu()).abs().max() < 0.01:
        return None
    trained, wanted = anchor_convention(anchors), anchor_convention(own.cpu())
    return (
        f"was trained with other anchors (box convention {trained!r}) than the model has ({wanted!r}); set "
        "MODEL.BUA.BOX_CONVENTION and MODEL.ANCHOR_GENERATOR as in the configuration that belongs to the weights"
    )


def describe_mismatch(name: str, in_file: torch.Size, in_model: torch.Size) -> str:
    """Returns a message that a parameter has one shape in a file and another in the model, and what to do."""
    text = f"{name} has the shape {tuple(in_file)}, and in the model {tuple(in_model)}"
    if len(in_file) and in_file[1:] == in_model[1:]:
        for part, (key, size) in _VOCABULARY_ROWS.items():
            if part in name:
                return f"{text}: the vocabulary has another size; set {key} to {size(in_file[0])}, or use other weights"
    return f"{text}; use the configuration that the weights were trained with"


def save_checkpoint(path: str | Path, **state) -> None:
    """Writes a checkpoint with ``model=...`` and any other state. The file appears only when it is complete.

    Raises:
        InputError: The disk is full, or the file cannot be written. An older file of this name is kept.
    """
    with written_whole(Path(path), "folder") as file:
        torch.save(state, file)


def read_checkpoint(path: str | Path) -> dict:
    """Returns everything that ``save_checkpoint`` wrote, with tensors on the CPU.

    Raises:
        InputError: There is no such file, it is truncated, or it is not a checkpoint.
    """
    return read_file(path)
