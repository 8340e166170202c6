"""Reads checkpoints of models that other repositories trained, and renames their weights to bua's names.

hengyuan-hu/bottom-up-attention-vqa saves ``model.pth``, a bare state dict, and jnhwkim/ban-vqa saves
``model_epoch12.pth``, with a state dict under "model_state" beside the optimiser's state. Both save from
``nn.DataParallel``, which puts "module." before each name. Neither file holds a vocabulary.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from bua.errors import InputError
from bua.weights.files import read_file
from bua.weights.layouts import Layout, LayoutError, Weights

# bua's names by the names in the authors' code, which are regular expressions: the word embedding and the GRU of all
# their models.
TEXT_NAMES = {
    r"w_emb\.emb\.": "embedding.words.",
    r"w_emb\.emb_\.": "embedding.second.",
    r"q_emb\.rnn\.": "gru.",
}
# ban-vqa's bilinear attention.
BILINEAR_NAMES = {
    r"v_att\.logits\.v_net\.main\.1\.": "attention.image.linear.",
    r"v_att\.logits\.q_net\.main\.1\.": "attention.words.linear.",
    r"v_att\.logits\.h_mat_": "attention.forms.weight_",
    r"v_att\.logits\.h_bias": "attention.forms.bias",
}
# A weight that only models with bilinear attention have, in ban-vqa's checkpoints.
BILINEAR_WEIGHT = "v_att.logits.h_mat_v"


class ReleasedModel(NamedTuple):
    """A model that other authors released checkpoints of.

    Attributes:
        layout: How its checkpoints name their weights.
        model: The class of bua that its weights fit, called with ``constructor_arguments``.
    """

    layout: Layout
    model: Callable[..., nn.Module]


def read_released_checkpoint(path: str | Path, known: Sequence[ReleasedModel]) -> tuple[Layout, Weights] | None:
    """Returns the layout of a checkpoint and its tensors under bua's names, or None if it is of no known model.

    Raises:
        InputError: There is no such file; it is truncated or damaged; it holds no weights; or bua does not have its
            model.
    """
    content = read_file(path)
    content = content.get("model_state", content)
    if not isinstance(content, dict):
        raise InputError(f"{path}: model_state is of type {type(content).__name__}, not weights; name another file")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    weights = {name.removeprefix("module."): value for name, value in tensors.items()}
    found = next((released for released in known if released.layout.recognise(weights)), None)
    if found is None:
        return None
    layout = found.layout
    try:
        converted = layout.convert(weights)
        _check_complete(found, converted)
    except LayoutError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: the weights are incomplete ({layout.origin}): {error} is missing") from error
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the weights are damaged ({layout.origin}): {reason}") from error
    return layout, converted


def constructor_arguments(weights: Weights) -> dict[str, int | bool | str]:
    """Returns the arguments with which ``UpDown``, ``BAN`` or ``BANGrounding`` fits weights under bua's names, found by
    the shapes of the weights. Dropout probabilities, and options that change no weight, are not among them."""
    words, dim = weights["embedding.words.weight"].shape
    hidden = weights["gru.weight_hh_l0"].shape[1]
    joint = weights.get("attention.joint.linear.weight_v")
    feature_dim = weights["attention.image.linear.weight_v"].shape[1] if joint is None else joint.shape[1] - hidden
    arguments: dict[str, int | bool | str] = {
        "num_words": words - 1,
        "feature_dim": feature_dim,
        "embedding_dim": dim,
        "hidden_dim": hidden,
    }
    if joint is not None:
        arguments["attention"] = "concatenation"
    if "attention.forms.weight_v" in weights:
        arguments["rank"] = weights["attention.forms.weight_v"].shape[1] // hidden
    if "classifier.answers.linear.bias" in weights:
        arguments["num_answers"] = len(weights["classifier.answers.linear.bias"])
    if "glimpses.0.image.linear.bias" in weights:
        count = weights.get("glimpses.0.count.linear.weight_v")
        arguments |= {
            "glimpses": len(weights["attention.forms.bias"]),
            "second_embedding": "embedding.second.weight" in weights,
            "counted_objects": 0 if count is None else count.shape[1] - 1,
        }
    return arguments


def rename(weights: Weights, names: Mapping[str, str]) -> Weights:
    """Returns weights under bua's names.

    Args:
        names: bua's name for the part of a name that a regular expression matches at its start; the first match counts.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, target in names.items():
            name, found = re.subn(f"^{pattern}", target, name)
            if found:
                break
        # Older versions of PyTorch saved the norm of a matrix as a tensor of one element.
        renamed[name] = value.reshape(()) if name.endswith(".weight_g") else value
    return renamed


def convert_bilinear(weights: Weights, names: Mapping[str, str]) -> Weights:
    """Returns weights under bua's names, as ``rename``, of a model with ban-vqa's bilinear attention."""
    converted = rename(weights, names)
    glimpses = weights[BILINEAR_WEIGHT].shape[1]
    converted["attention.forms.weight_v"] = weights[BILINEAR_WEIGHT].reshape(glimpses, -1)
    converted["attention.forms.bias"] = weights["v_att.logits.h_bias"].reshape(glimpses)
    return converted


def _check_complete(released: ReleasedModel, weights: Weights) -> None:
    origin = released.layout.origin
    with torch.device("meta"):
        needed = released.model(**constructor_arguments(weights)).state_dict()
    for name, value in needed.items():
        if name not in weights:
            raise LayoutError(f"the weights are incomplete ({origin}): {name} is missing")
        if weights[name].shape != value.shape:
            found, expected = tuple(weights[name].shape), tuple(value.shape)
            raise LayoutError(f"the weights are damaged ({origin}): {name} has the shape {found}, not {expected}")
