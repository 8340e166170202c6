"""Weights in files: reading any released layout, fitting into a model, saving."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bua.errors import InputError
from bua.io.files import whole_file
from bua.weights.files import read_file, read_weights
from bua.weights.layouts import ANCHORS, PER_ANCHOR, Layout, LayoutError, anchor_convention, find_layout, to_bua
from bua.weights.zoo import fetch

# Parameters whose first dimension depends on a vocabulary: the configuration key of its size, and how the size
# follows from the number of rows.
_VOCABULARY_ROWS = {
    "box_predictor.cls_score": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: rows - 1),
    "box_predictor.bbox_pred": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: rows // 4),
    "cls_embedding": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: rows - 1),
    "attr_score": (
        "MODEL.BUA.ATTRIBUTES.NUM_CLASSES",
        lambda rows: f"{rows - 1}, or to {rows} with MODEL.BUA.ATTRIBUTES.NO_ATTRIBUTE_CLASS False",
    ),
}


class LoadReport(NamedTuple):
    """Names of parameters and buffers that did not go from the file into the model.

    Attributes:
        missing: in the model, not in the file.
        unexpected: in the file, not in the model.
        reshaped: in both, in different shapes, or for other anchors.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def lines(self) -> list[str]:
        """What did not fit, a line for each kind of it, with the first few names."""
        kinds = {what: names for what, names in self._asdict().items() if names}
        return [
            f"{len(names)} parameters {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for what, names in kinds.items()
        ]


def load_checkpoint(weights: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in any of ``bua.weights.layouts.LAYOUTS``, on the CPU, under bua's parameter names,
    in its orders and scales.

    Where the file, or its layout, says on which anchors its region proposal network was trained, they are there as
    ``ANCHORS``. What bua has no name for keeps its own.

    Args:
        weights: a path, a released checkpoint's name (``bua.weights.zoo.ZOO``), or an address.

    Raises:
        InputError: no such file, a truncated one, or none that holds weights, or those of another kind of detector.
    """
    path = fetch(weights)
    try:
        return to_bua(read_weights(path))
    except LayoutError as error:
        raise InputError(f"{path}: {error}") from error


def identify(weights: str | Path) -> Layout:
    """The layout of a checkpoint, by its content: its name, whose it is, and which configuration it needs.

    Raises:
        InputError: as ``load_checkpoint``.
    """
    return find_layout(read_weights(fetch(weights)))


def load_weights(model: nn.Module, weights: str | Path, *, allow_missing: bool = False) -> LoadReport:
    """Copies a checkpoint's weights into ``model``, and says what did not fit.

    What the file has beyond the model is left out. ``allow_missing`` is for the start of training: what the file
    lacks, has in another shape, or for other anchors, keeps its initial value.

    Args:
        weights: as for ``load_checkpoint``.

    Raises:
        InputError: as ``load_checkpoint``; nothing in the file fits; its region proposal network was trained on other
            anchors than the model has; and, unless ``allow_missing``, something that the model needs is not in the
            file or has another shape there, such as that of another vocabulary.
    """
    loaded = load_checkpoint(weights)
    own = model.state_dict()
    mismatch = _anchor_mismatch(loaded.pop(ANCHORS, None), model)
    common = [name for name in own if name in loaded]
    of_other_anchors = [name for name in common if mismatch and name.startswith(PER_ANCHOR)]
    report = LoadReport(
        # Counters of batches teach nothing, and most layouts have none.
        missing=[name for name in own if name not in loaded and not name.endswith(".num_batches_tracked")],
        unexpected=[name for name in loaded if name not in own],
        reshaped=[name for name in common if loaded[name].shape != own[name].shape or name in of_other_anchors],
    )
    if len(report.reshaped) == len(common):
        raise InputError(f"{weights}: none of its {len(loaded)} parameters fits this model; is it another model's?")
    if mismatch and not allow_missing:
        raise InputError(f"{weights}: {mismatch}")
    if report.reshaped and not allow_missing:
        name = report.reshaped[0]
        raise InputError(f"{weights}: {describe_mismatch(name, loaded[name].shape, own[name].shape)}")
    if report.missing and not allow_missing:
        names = ", ".join(report.missing[:3]) + (", ..." if len(report.missing) > 3 else "")
        advice = ""
        if all("attribute_predictor" in name for name in report.missing):
            advice = "; it has no attributes: set MODEL.BUA.ATTRIBUTES.ENABLED False"
        raise InputError(
            f"{weights}: lacks {len(report.missing)} of the model's {len(own)} parameters: {names}{advice}"
        )
    fitting = {name: loaded[name] for name in common if name not in set(report.reshaped)}
    model.load_state_dict(fitting, strict=False)
    return report


def _anchor_mismatch(anchors: Tensor | None, model: nn.Module) -> str | None:
    """How the anchors of a file differ from as many of the model's, whose channels then have another meaning."""
    own = dict(model.named_buffers()).get(ANCHORS)
    if anchors is None or own is None or anchors.shape != own.shape or (anchors - own.cpu()).abs().max() < 0.01:
        return None
    trained, wanted = anchor_convention(anchors), anchor_convention(own.cpu())
    return (
        f"was trained on other anchors (box convention {trained!r}) than the model's ({wanted!r}); set "
        "MODEL.BUA.BOX_CONVENTION and MODEL.ANCHOR_GENERATOR as in the configuration that belongs to the weights"
    )


def describe_mismatch(name: str, in_file: torch.Size, in_model: torch.Size) -> str:
    """Says in words that a parameter has one shape in a file and another in the model, and what to do."""
    text = f"{name} has the shape {tuple(in_file)} and the model's has {tuple(in_model)}"
    if len(in_file) and in_file[1:] == in_model[1:]:
        for part, (key, size) in _VOCABULARY_ROWS.items():
            if part in name:
                return f"{text}: a vocabulary of another size; set {key} to {size(in_file[0])}, or use other weights"
    return f"{text}; use the configuration that the weights were trained with"


def save_checkpoint(path: str | Path, **state) -> None:
    """Writes ``state`` (``model=...`` and what else is needed to go on) so that no half-written file is ever seen."""
    with whole_file(Path(path), durable=True) as file:
        torch.save(state, file)


def read_checkpoint(path: str | Path) -> dict:
    """All that ``save_checkpoint`` wrote, on the CPU.

    Raises:
        InputError: no such file, a truncated one, or something else than a checkpoint.
    """
    return read_file(path)
