"""Weights in files: reading, fitting into a model, saving."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bua.errors import InputError

# Parameters whose first dimension depends on a vocabulary: the configuration key of its size, and how the size
# follows from the number of rows.
_VOCABULARY_ROWS = {
    "box_predictor.cls_score": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: rows - 1),
    "box_predictor.bbox_pred": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: rows // 4),
    "cls_embedding": ("MODEL.ROI_HEADS.NUM_CLASSES", lambda rows: rows - 1),
    "attr_score": ("MODEL.BUA.ATTRIBUTES.NUM_CLASSES", lambda rows: rows),
}


class LoadReport(NamedTuple):
    """Names of parameters and buffers that did not go from the file into the model.

    Attributes:
        missing: in the model, not in the file.
        unexpected: in the file, not in the model.
        reshaped: in both, in different shapes.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, under bua's parameter names.

    Raises:
        InputError: no such file, a truncated one, or none that holds weights.
    """
    content = read_checkpoint(path)
    weights = content.get("model", content)
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f"{path}: holds no weights; a checkpoint of bua or a state dict is needed")
    return weights


def load_weights(model: nn.Module, path: str | Path, *, allow_missing: bool = False) -> LoadReport:
    """Copies a checkpoint's weights into ``model``, and says what did not fit.

    What the file has beyond the model is left out. ``allow_missing`` is for the start of training: what the file
    lacks or has in another shape keeps its initial value.

    Raises:
        InputError: as ``load_checkpoint``; nothing in the file fits; and, unless ``allow_missing``, something that
            the model needs is not in the file or has another shape there, such as that of another vocabulary.
    """
    weights = load_checkpoint(path)
    own = model.state_dict()
    common = [name for name in own if name in weights]
    report = LoadReport(
        missing=[name for name in own if name not in weights],
        unexpected=[name for name in weights if name not in own],
        reshaped=[name for name in common if weights[name].shape != own[name].shape],
    )
    if len(report.reshaped) == len(common):
        raise InputError(f"{path}: none of its {len(weights)} parameters fits this model; is it another model's?")
    if report.reshaped and not allow_missing:
        name = report.reshaped[0]
        raise InputError(f"{path}: {describe_mismatch(name, weights[name].shape, own[name].shape)}")
    if report.missing and not allow_missing:
        names = ", ".join(report.missing[:3]) + (", ..." if len(report.missing) > 3 else "")
        raise InputError(f"{path}: lacks {len(report.missing)} of the model's {len(own)} parameters: {names}")
    fitting = {name: weights[name] for name in common if name not in set(report.reshaped)}
    model.load_state_dict(fitting, strict=False)
    return report


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
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path: str | Path) -> dict:
    """All that ``save_checkpoint`` wrote, on the CPU.

    Raises:
        InputError: no such file, a truncated one, or something else than a checkpoint.
    """
    if "://" in str(path):
        raise InputError(f"{path}: not a file; download it and name the file, or leave the weights empty to start anew")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises about anything on what torch.save has not written
        raise InputError(f"{path}: not a checkpoint, or a truncated one; copy or download it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not weights; a checkpoint of bua is needed")
    return content
