"""Checkpoints of ban-vqa's model for grounding."""

from bua.grounding.ban import BANGrounding
from bua.tasks.released import BILINEAR_NAMES, BILINEAR_WEIGHT, TEXT_NAMES, ReleasedModel, convert_bilinear
from bua.weights.layouts import Layout, Weights

# Weights under bua's names that distinguish the model from others. BAN for question answering also has a classifier.
_NEEDED_WEIGHTS = {"embedding.words.weight", "gru.weight_hh_l0", "attention.forms.weight_v"}


def is_grounding_model(weights: Weights) -> bool:
    """Whether weights under bua's names are of ``BANGrounding``."""
    return weights.keys() >= _NEEDED_WEIGHTS and "classifier.answers.linear.bias" not in weights


RELEASED_MODELS = (
    ReleasedModel(
        Layout(
            "ban-flickr",
            "jnhwkim/ban-vqa, for grounding",
            "configs/grounding/ban.yaml",
            lambda weights: BILINEAR_WEIGHT in weights and "classifier.main.0.weight_v" not in weights,
            lambda weights: convert_bilinear(weights, {**TEXT_NAMES, **BILINEAR_NAMES}),
        ),
        BANGrounding,
    ),
)
