"""Configuration of the question answering models: the keys beyond those of every head."""

from pathlib import Path

from fvcore.common.config import CfgNode

from bua.config import merge
from bua.errors import InputError
from bua.tasks.training import constructor_keys, head_cfg
from bua.vqa.ban import BAN
from bua.vqa.updown import UpDown

MODELS = {"UpDown": UpDown, "BAN": BAN}

# How the question vocabulary's word vectors begin: as in the seeds ("glove" alone has no second table).
WORD_VECTORS = ("", "seed", "tfidf")


def get_cfg() -> CfgNode:
    """A new configuration: the arguments of each model in a node with its name, and how it is asked."""
    cfg = head_cfg()
    cfg.MODEL.NAME = "UpDown"
    for name, model in MODELS.items():
        cfg.MODEL[name.upper()] = constructor_keys(model)
    # "": random. "seed", "tfidf": GloVe's, and BAN's second table by the weighting of that name; they are taken from
    # the folder, which prepare_vqa.py --glove put them into.
    cfg.DATA.WORD_VECTORS = ""
    # False trains and answers without looking: the baseline that says what questions alone give away.
    cfg.DATA.LOOK = True
    cfg.TEST.IMS_PER_BATCH = 512
    return cfg


def load_cfg(config_file: str | Path, overrides: list[str] = ()) -> CfgNode:
    """Reads a YAML file over the defaults, then ``KEY VALUE`` pairs.

    Raises:
        InputError: as ``bua.config.load_cfg``, and values that do not fit.
    """
    cfg = get_cfg()
    merge(cfg, config_file, list(overrides))
    if cfg.MODEL.NAME not in MODELS:
        raise InputError(f"{config_file}: MODEL.NAME is {cfg.MODEL.NAME!r}; use one of {', '.join(MODELS)}")
    if cfg.DATA.WORD_VECTORS not in WORD_VECTORS:
        raise InputError(f"{config_file}: DATA.WORD_VECTORS is {cfg.DATA.WORD_VECTORS!r}; use 'seed', 'tfidf' or ''")
    return cfg


def build_model(cfg: CfgNode, num_words: int, num_answers: int, feature_dim: int) -> UpDown | BAN:
    """The model that ``cfg`` names, with random weights, on the CPU."""
    arguments = {key.lower(): value for key, value in cfg.MODEL[cfg.MODEL.NAME.upper()].items()}
    return MODELS[cfg.MODEL.NAME](num_words, num_answers, feature_dim=feature_dim, **arguments)
