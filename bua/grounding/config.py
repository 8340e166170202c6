"""Configuration of phrase grounding: the keys beyond those of every head."""

from pathlib import Path

from fvcore.common.config import CfgNode

from bua.config import check_device, merge
from bua.grounding.ban import BANGrounding
from bua.tasks.training import constructor_keys, head_cfg


def get_cfg() -> CfgNode:
    """A new configuration: the arguments of ``BANGrounding`` in ``MODEL.BAN``, and how words begin."""
    cfg = head_cfg()
    cfg.MODEL.BAN = constructor_keys(BANGrounding)
    # Whether words begin as GloVe's vectors, which prepare_flickr30k.py --glove put into the folder.
    cfg.DATA.GLOVE = False
    cfg.TEST.IMS_PER_BATCH = 256
    return cfg


def load_cfg(config_file: str | Path, overrides: list[str] = ()) -> CfgNode:
    """Reads a YAML file over the defaults, then ``KEY VALUE`` pairs.

    Raises:
        InputError: as ``bua.config.load_cfg``.
    """
    cfg = get_cfg()
    merge(cfg, config_file, list(overrides))
    check_device(cfg.MODEL.DEVICE)
    return cfg


def build_model(cfg: CfgNode, num_words: int, feature_dim: int) -> BANGrounding:
    """The model that ``cfg`` describes, with random weights, on the CPU."""
    arguments = {key.lower(): value for key, value in cfg.MODEL.BAN.items()}
    return BANGrounding(num_words, feature_dim=feature_dim, **arguments)
