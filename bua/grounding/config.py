"""Configuration of phrase grounding: the keys besides those of every task."""

from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.grounding.ban import BANGrounding
from bua.tasks.config import constructor_keys, keyword_arguments, load_task_cfg, task_cfg


def get_cfg() -> CfgNode:
    """Returns a new configuration. The arguments of ``BANGrounding`` are in ``MODEL.BAN``."""
    cfg = task_cfg()
    cfg.MODEL.BAN = constructor_keys(BANGrounding)
    # Whether the word embedding is initialised with GloVe's vectors, which bua prepare-flickr30k --glove puts into the
    # folder.
    cfg.DATA.GLOVE = False
    cfg.TEST.IMS_PER_BATCH = 256
    return cfg


def load_cfg(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a YAML file over the defaults, then ``KEY VALUE`` pairs; errors as for ``load_task_cfg``."""
    return load_task_cfg(get_cfg(), config_file, overrides)


def build_model(cfg: CfgNode, num_words: int, feature_dim: int) -> BANGrounding:
    """Returns the model that ``cfg`` describes, with random weights, on the CPU."""
    return BANGrounding(num_words, feature_dim=feature_dim, **keyword_arguments(cfg.MODEL.BAN))
