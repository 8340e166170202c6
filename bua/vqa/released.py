"""The layouts of the question answering and grounding models that others trained, and how each becomes bua's.

hengyuan-hu/bottom-up-attention-vqa saves ``model.pth``, a bare state dict, and jnhwkim/ban-vqa ``model_epoch12.pth``,
one under "model_state" beside the optimiser's; both from ``nn.DataParallel``, which puts "module." before each name.
Neither holds a vocabulary.
"""

import re
from pathlib import Path

import torch

from bua.errors import InputError
from bua.grounding import BANGrounding
from bua.vqa import BAN, UpDown
from bua.weights.files import read_file
from bua.weights.layouts import Layout, LayoutError, Weights

_TEXT = {
    r"w_emb\.emb\.": "embedding.words.",
    r"w_emb\.emb_\.": "embedding.second.",
    r"q_emb\.rnn\.": "gru.",
}
_CLASSIFIER = {
    r"classifier\.main\.0\.": "classifier.hidden.linear.",
    r"classifier\.main\.3\.": "classifier.answers.linear.",
}
_UPDOWN = {
    **_TEXT,
    r"v_att\.v_proj\.main\.0\.": "attention.image.linear.",
    r"v_att\.q_proj\.main\.0\.": "attention.question.linear.",
    r"v_att\.linear\.": "attention.score.",
    r"v_net\.main\.0\.": "image.linear.",
    r"q_net\.main\.0\.": "question.linear.",
    **_CLASSIFIER,
}
_BAN = {
    **_TEXT,
    r"v_att\.logits\.v_net\.main\.1\.": "attention.image.linear.",
    r"v_att\.logits\.q_net\.main\.1\.": "attention.words.linear.",
    r"v_att\.logits\.h_mat_": "attention.forms.weight_",
    r"v_att\.logits\.h_bias": "attention.forms.bias",
    r"b_net\.(\d+)\.v_net\.main\.1\.": r"glimpses.\1.image.linear.",
    r"b_net\.(\d+)\.q_net\.main\.1\.": r"glimpses.\1.words.linear.",
    r"q_prj\.(\d+)\.main\.1\.": r"glimpses.\1.residual.linear.",
    r"c_prj\.(\d+)\.main\.0\.": r"glimpses.\1.count.linear.",
    **_CLASSIFIER,
}
_MODELS = {"updown-vqa": UpDown, "ban-vqa": BAN, "ban-flickr": BANGrounding}
_COUNTER = [f"counter.f.{i}.weight" for i in range(16)]


def read_seed_checkpoint(path: str | Path) -> tuple[Layout, Weights] | None:
    """The layout of a checkpoint of the seeds' models and its tensors under bua's names; None of any other file.

    Raises:
        InputError: no such file, a truncated one, none that holds weights, or a model that bua does not have.
    """
    content = read_file(path)
    content = content.get("model_state", content)
    if not isinstance(content, dict):
        raise InputError(f"{path}: model_state holds a {type(content).__name__}, not weights")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    weights = {name.removeprefix("module."): value for name, value in tensors.items()}
    layout = next((layout for layout in VQA_LAYOUTS if layout.recognise(weights)), None)
    if layout is None:
        return None
    try:
        converted = layout.convert(weights)
        _check_whole(layout, converted)
    except LayoutError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: truncated weights ({layout.origin}): {error} is missing") from error
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged weights ({layout.origin}): {reason}") from error
    return layout, converted


def constructor_arguments(weights: Weights) -> dict[str, int | bool]:
    """The arguments of ``UpDown``, ``BAN`` or ``BANGrounding`` that weights under bua's names fit, by their shapes.

    Rates of dropout, and flags that have no weights, are not in it.
    """
    words, dim = weights["embedding.words.weight"].shape
    hidden = weights["gru.weight_hh_l0"].shape[1]
    arguments = {
        "num_words": words - 1,
        "feature_dim": weights["attention.image.linear.weight_v"].shape[1],
        "embedding_dim": dim,
        "hidden_dim": hidden,
    }
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


def _check_whole(layout: Layout, weights: Weights) -> None:
    with torch.device("meta"):
        needed = _MODELS[layout.name](**constructor_arguments(weights)).state_dict()
    for name, value in needed.items():
        if name not in weights:
            raise LayoutError(f"truncated weights ({layout.origin}): {name} is missing")
        if weights[name].shape != value.shape:
            found, expected = tuple(weights[name].shape), tuple(value.shape)
            raise LayoutError(f"damaged weights ({layout.origin}): {name} has the shape {found}, not {expected}")


def _convert_updown(weights: Weights) -> Weights:
    if "v_att.nonlinear.main.0.weight_v" in weights:
        raise LayoutError("is the seed's `baseline0`, with concatenating attention; bua has `baseline0_newatt` alone")
    return _rename(weights, _UPDOWN)


def _convert_ban(weights: Weights) -> Weights:
    rest = {name: value for name, value in weights.items() if name not in _COUNTER}
    converted = _rename(rest, _BAN)
    glimpses = weights["v_att.logits.h_mat_v"].shape[1]
    converted["attention.forms.weight_v"] = weights["v_att.logits.h_mat_v"].reshape(glimpses, -1)
    converted["attention.forms.bias"] = weights["v_att.logits.h_bias"].reshape(glimpses)
    if any(name in weights for name in _COUNTER):
        converted["counter.weight"] = torch.stack([weights[name] for name in _COUNTER])
    return converted


def _rename(weights: Weights, patterns: dict[str, str]) -> Weights:
    renamed = {}
    for name, value in weights.items():
        for pattern, target in patterns.items():
            name, found = re.subn(f"^{pattern}", target, name)
            if found:
                break
        # A length of a matrix is a tensor of one element in older versions of PyTorch.
        renamed[name] = value.reshape(()) if name.endswith(".weight_g") else value
    return renamed


VQA_LAYOUTS = (
    Layout(
        "updown-vqa",
        "hengyuan-hu/bottom-up-attention-vqa",
        "configs/vqa/updown.yaml",
        lambda weights: "w_emb.emb.weight" in weights and "v_net.main.0.weight_v" in weights,
        _convert_updown,
    ),
    Layout(
        "ban-vqa",
        "jnhwkim/ban-vqa",
        "configs/vqa/ban.yaml",
        lambda weights: "v_att.logits.h_mat_v" in weights and "classifier.main.0.weight_v" in weights,
        _convert_ban,
    ),
    Layout(
        "ban-flickr",
        "jnhwkim/ban-vqa, for grounding",
        "configs/grounding/ban.yaml",
        lambda weights: "v_att.logits.h_mat_v" in weights,
        _convert_ban,
    ),
)
