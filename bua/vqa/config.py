"""Configuration of the question answering models: the keys besides those of every task."""

from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.config_values import check_choices
from bua.errors import InputError
from bua.tasks.box_features import BOX_NUMBERS
from bua.tasks.config import constructor_keys, keyword_arguments, load_task_cfg, task_cfg
from bua.tasks.layers import ACTIVATIONS
from bua.vqa.ban import BAN
from bua.vqa.updown import ATTENTIONS, UpDown

MODELS: dict[str, type[UpDown] | type[BAN]] = {"UpDown": UpDown, "BAN": BAN}

# Values of DATA.WORD_VECTORS.
WORD_VECTORS = ("", "authors", "tfidf")


def get_cfg() -> CfgNode:
    """Returns a new configuration. The arguments of each model are in a node with the model's name in upper case."""
    cfg = task_cfg()
    cfg.MODEL.NAME = "UpDown"
    for name, model in MODELS.items():
        cfg.MODEL[name.upper()] = constructor_keys(model)
    # How the word embeddings are initialised. "": at random. "authors" or "tfidf": the first table with GloVe's
    # vectors, and BAN's second table with means of them in the weighting of that name. The vectors are those of the
    # folder; bua prepare-vqa --glove puts them there.
    cfg.DATA.WORD_VECTORS = ""
    # Whether the text stream of a classifier with two streams starts with GloVe's vectors of the answers.
    cfg.DATA.ANSWER_VECTORS = False
    # False trains and answers without the images. This baseline shows what can be guessed from questions alone.
    cfg.DATA.LOOK = True
    # Whether corners, sides and area of the regions are joined to their features, so that the model knows where they
    # are. The models of the papers do not, apart from BAN's counter.
    cfg.DATA.BOXES = False
    cfg.TEST.IMS_PER_BATCH = 512
    return cfg


def load_cfg(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a YAML file over the defaults, then ``KEY VALUE`` pairs; errors as for ``load_task_cfg``."""
    return load_task_cfg(get_cfg(), config_file, overrides, check_values)


def build_model(cfg: CfgNode, num_words: int, num_answers: int, feature_dim: int) -> UpDown | BAN:
    """Returns the model that ``cfg`` names, with random weights, on the CPU.

    Args:
        feature_dim: Dimension of the region features, without what ``DATA.BOXES`` adds.
    """
    arguments = keyword_arguments(cfg.MODEL[cfg.MODEL.NAME.upper()])
    dim = feature_dim + (BOX_NUMBERS[True] if cfg.DATA.BOXES else 0)
    return MODELS[cfg.MODEL.NAME](num_words, num_answers, feature_dim=dim, **arguments)


def check_values(cfg: CfgNode, source: str) -> None:
    """Checks the values of a configuration, and updates those of version 0.1.0; arguments and errors as for
    ``check_choices``."""
    # The name of "authors" in configurations of version 0.1.0.
    if cfg.DATA.WORD_VECTORS == "seed":
        cfg.DATA.WORD_VECTORS = "authors"
    choices = {"MODEL.NAME": tuple(MODELS), "DATA.WORD_VECTORS": WORD_VECTORS}
    updown = {"MODEL.UPDOWN.ATTENTION": ATTENTIONS, "MODEL.UPDOWN.ACTIVATION": ACTIVATIONS}
    check_choices(cfg, source, choices | updown)
    if cfg.DATA.ANSWER_VECTORS and not (cfg.MODEL.NAME == "UpDown" and cfg.MODEL.UPDOWN.TWO_STREAMS):
        raise InputError(
            f"{source}: DATA.ANSWER_VECTORS is True, but only UpDown's classifier with two streams reads them; set "
            "MODEL.UPDOWN.TWO_STREAMS True, or DATA.ANSWER_VECTORS False"
        )
