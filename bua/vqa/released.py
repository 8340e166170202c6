"""Checkpoints of the authors' question answering models: hengyuan-hu's Up-Down and ban-vqa's BAN."""

import torch

from bua.tasks.released import BILINEAR_NAMES, BILINEAR_WEIGHT, TEXT_NAMES, ReleasedModel, convert_bilinear, rename
from bua.vqa.ban import BAN
from bua.vqa.updown import UpDown
from bua.weights.layouts import Layout, Weights

_CLASSIFIER_NAMES = {
    r"classifier\.main\.0\.": "classifier.hidden.linear.",
    r"classifier\.main\.3\.": "classifier.answers.linear.",
}
# Both of hengyuan-hu's models: baseline0_newatt has the first two of v_att, baseline0 the third.
_UPDOWN_NAMES = {
    **TEXT_NAMES,
    r"v_att\.v_proj\.main\.0\.": "attention.image.linear.",
    r"v_att\.q_proj\.main\.0\.": "attention.question.linear.",
    r"v_att\.nonlinear\.main\.0\.": "attention.joint.linear.",
    r"v_att\.linear\.": "attention.score.",
    r"v_net\.main\.0\.": "image.linear.",
    r"q_net\.main\.0\.": "question.linear.",
    **_CLASSIFIER_NAMES,
}
_BAN_NAMES = {
    **TEXT_NAMES,
    **BILINEAR_NAMES,
    r"b_net\.(\d+)\.v_net\.main\.1\.": r"glimpses.\1.image.linear.",
    r"b_net\.(\d+)\.q_net\.main\.1\.": r"glimpses.\1.words.linear.",
    r"q_prj\.(\d+)\.main\.1\.": r"glimpses.\1.residual.linear.",
    r"c_prj\.(\d+)\.main\.0\.": r"glimpses.\1.count.linear.",
    **_CLASSIFIER_NAMES,
}
# The counter's piecewise linear functions, which bua has in one tensor.
_COUNTER = [f"counter.f.{i}.weight" for i in range(16)]


def is_ban(weights: Weights) -> bool:
    """Whether weights under bua's names are of ``BAN``, not of ``UpDown``."""
    return "attention.forms.weight_v" in weights


def _convert_updown(weights: Weights) -> Weights:
    return rename(weights, _UPDOWN_NAMES)


def _convert_ban(weights: Weights) -> Weights:
    converted = convert_bilinear({name: weights[name] for name in weights if name not in _COUNTER}, _BAN_NAMES)
    if any(name in weights for name in _COUNTER):
        converted["counter.weight"] = torch.stack([weights[name] for name in _COUNTER])
    return converted


RELEASED_MODELS = (
    ReleasedModel(
        Layout(
            "updown-vqa",
            "hengyuan-hu/bottom-up-attention-vqa",
            "configs/vqa/updown.yaml",
            lambda weights: "w_emb.emb.weight" in weights and "v_net.main.0.weight_v" in weights,
            _convert_updown,
        ),
        UpDown,
    ),
    ReleasedModel(
        Layout(
            "ban-vqa",
            "jnhwkim/ban-vqa",
            "configs/vqa/ban.yaml",
            lambda weights: BILINEAR_WEIGHT in weights and "classifier.main.0.weight_v" in weights,
            _convert_ban,
        ),
        BAN,
    ),
)
