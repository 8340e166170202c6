"""Detectron2's configuration with bua's own keys, and a check that its parts support them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import detectron2
import detectron2.config
from fvcore.common.config import CfgNode

import bua.config
from bua.config import add_bua_config
from bua.config_files import find_config, is_of_detectron2_alone
from bua.config_values import value_of
from bua.errors import InputError
from bua.modeling.supported import HEADS_LENGTHS, HEADS_VALUES, RPN_LENGTHS, RPN_VALUES, check_values_and_lengths

_ZOO_PREFIX = "detectron2://"


def load_cfg(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a configuration as ``bua.config.load_cfg`` does, but with all of Detectron2's keys.

    Args:
        config_file: Also the name of a file of Detectron2's model zoo, such as
            "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", with or without "detectron2://" before it.
        overrides: As for ``bua.config.load_cfg``.
    """
    file = find_in_zoo(config_file) or find_config(config_file)
    return bua.config.load_cfg(file, overrides, defaults=default_cfg(plain=is_of_detectron2_alone(file)))


def default_cfg(*, plain: bool = False) -> CfgNode:
    """Returns a new configuration with all keys of Detectron2 and of bua.

    A few defaults of bua differ from Detectron2's. They are set here, so that a file means the same to both engines.

    Args:
        plain: Whether to leave Detectron2's defaults, and to turn the attribute head off.
    """
    cfg = detectron2.config.get_cfg()
    add_bua_config(cfg)
    own = bua.config.get_cfg()
    cfg.MODEL.DEVICE = own.MODEL.DEVICE
    if plain:
        cfg.MODEL.BUA.ATTRIBUTES.ENABLED = False
    else:
        cfg.MODEL.ROI_HEADS.NAME = own.MODEL.ROI_HEADS.NAME
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = own.MODEL.ROI_HEADS.NUM_CLASSES
    return cfg


def find_in_zoo(config_file: str | Path) -> Path | None:
    """Returns the path of a YAML file of Detectron2's model zoo by its name, or None if it has no such file."""
    name = str(config_file)
    if os.path.isfile(name) or not name.endswith(".yaml"):
        return None
    relative = Path(name.removeprefix(_ZOO_PREFIX))
    if relative.is_absolute() or ".." in relative.parts:
        return None
    path = Path(detectron2.__file__).parent / "model_zoo" / "configs" / relative
    return path if os.path.isfile(path) else None


def zoo_weights(config_file: str | Path) -> str | None:
    """Returns the address of the detector that the model zoo has for one of its files, or None if it has none.

    Raises:
        InputError: The list of the model zoo's detectors cannot be imported.
    """
    if find_in_zoo(config_file) is None:
        return None
    try:
        from detectron2 import model_zoo
    except ImportError as error:
        raise InputError(
            f"{config_file}: Detectron2's list of trained detectors cannot be imported ({error}); run `pip install "
            "'setuptools<81'`, or name the detector's weights"
        ) from error
    try:
        return model_zoo.get_checkpoint_url(str(config_file).removeprefix(_ZOO_PREFIX))
    except RuntimeError:  # the zoo has a file, but no detector
        return None


def check_parts(cfg: CfgNode) -> None:
    """Checks that the parts that ``cfg`` names support its settings.

    Raises:
        InputError: A part of Detectron2's own would ignore a setting under MODEL.BUA, or a part of bua one of
            Detectron2's.
    """
    model = cfg.MODEL
    if model.PROPOSAL_GENERATOR.NAME == "BUAProposalGenerator":
        check_values_and_lengths(cfg, RPN_VALUES, RPN_LENGTHS, "BUAProposalGenerator supports")
    if model.ROI_HEADS.NAME == "AttributeRes5ROIHeads":
        check_values_and_lengths(cfg, HEADS_VALUES, HEADS_LENGTHS, "AttributeRes5ROIHeads supports")
    needed = {}
    if model.BUA.BOX_CONVENTION == "caffe":
        needed["MODEL.BUA.BOX_CONVENTION"] = {
            "MODEL.META_ARCHITECTURE": (model.META_ARCHITECTURE, "AttributeRCNN"),
            "MODEL.ANCHOR_GENERATOR.NAME": (model.ANCHOR_GENERATOR.NAME, "BUAAnchorGenerator"),
            "MODEL.PROPOSAL_GENERATOR.NAME": (model.PROPOSAL_GENERATOR.NAME, "BUAProposalGenerator"),
            "MODEL.ROI_HEADS.NAME": (model.ROI_HEADS.NAME, "AttributeRes5ROIHeads"),
        }
    backbone = {"MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, "build_bua_resnet_backbone")}
    if model.BUA.STEM_POOL == "caffe":
        needed["MODEL.BUA.STEM_POOL"] = backbone
    if model.BUA.RESNET_VERSION == 2:
        needed["MODEL.BUA.RESNET_VERSION"] = backbone
    for key, parts in needed.items():
        for part, (found, wanted) in parts.items():
            if found != wanted:
                raise InputError(f"config: {key} is {value_of(cfg, key)!r}, which needs {part} {wanted}, not {found}")


@contextmanager
def explaining_build_errors() -> Iterator[None]:
    """For the duration of the block, in which a model is built, an error becomes an InputError: parts of Detectron2
    raise whatever their checks of the configuration raise."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"config: Detectron2 cannot build this model ({reason}); correct the configuration") from error
