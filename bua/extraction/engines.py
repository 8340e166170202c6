"""The engine that a detector runs on: bua's own, "torch", or Detectron2."""

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from bua.config import load_cfg
from bua.config_files import find_config, is_of_detectron2_alone
from bua.detection.description import cfg_of_weights, description_of
from bua.errors import InputError
from bua.modeling.build import check_supported
from bua.options import ENGINES
from bua.weights.zoo import fetch

DETECTRON2, TORCH = ENGINES

logger = logging.getLogger(__name__)


def choose_engine(
    requested: str | None, config_file: str | Path | None, weights: str | Path, overrides: Sequence[str] = ()
) -> str:
    """Returns the engine for a detector: the requested one, or else "torch" if it has this detector. Detectron2 is
    chosen for all others, and for configuration files of Detectron2 alone, and a warning says so.

    Args:
        requested: One of ``bua.options.ENGINES``, or None.
        config_file, weights, overrides: As for ``ExtractorConfig``.

    Raises:
        InputError: The weights that say which detector it is cannot be fetched; Detectron2 is needed, but not
            installed; or neither engine can read the configuration.
    """
    if requested not in (None, *ENGINES):
        raise InputError(f"engine {requested!r}: unknown; use one of {', '.join(ENGINES)}")
    if requested == DETECTRON2 and not has_detectron2():
        raise InputError("--engine detectron2: Detectron2 is not installed; see README.md, or use --engine torch")
    if requested is not None:
        return requested
    name = weights if config_file is None else config_file
    if config_file is None:
        fetch(weights)  # outside of the block below, since a fetch that failed is none of the engine
    try:
        reason = _reason_for_detectron2(config_file, weights, overrides)
    except InputError:
        # The configuration may be in Detectron2's model zoo, or have keys that only Detectron2 knows.
        if not has_detectron2():
            raise
        if config_file is not None and detectron2_plugin().find_in_zoo(config_file) is not None:
            reason = "this is a configuration of its model zoo"
        elif _reads(config_file, weights, overrides):
            reason = "its configuration has keys that only Detectron2 knows"
        else:
            raise
    if reason is None:
        return TORCH
    if not has_detectron2():
        raise InputError(f"{name}: {reason}; Detectron2 may have this detector, but is not installed; see README.md")
    logger.warning("%s: the engine is Detectron2 (%s)", name, reason)
    return DETECTRON2


def has_detectron2() -> bool:
    """Returns whether Detectron2 is installed."""
    spec = importlib.util.find_spec("detectron2")
    # A mere folder of this name, such as a checkout of its repository, can be imported too, but has no file as origin.
    return spec is not None and spec.origin is not None


def detectron2_plugin() -> ModuleType:
    """Returns the module ``bua.d2.extraction``.

    It is imported by its name, and only here: its layer is above this one, and it needs Detectron2.
    """
    return importlib.import_module("bua.d2.extraction")


def default_weights(engine: str, weights: str | Path | None, config_file: str | Path | None) -> str | Path | None:
    """Returns ``weights``, or if these are None those that Detectron2's model zoo has for a configuration file.

    Raises:
        InputError: The list of the model zoo's detectors cannot be imported.
    """
    if weights is None and config_file is not None and engine == DETECTRON2:
        of_zoo: str | None = detectron2_plugin().zoo_weights(config_file)
        return of_zoo
    return weights


def _reason_for_detectron2(config_file: str | Path | None, weights: str | Path, overrides: Sequence[str]) -> str | None:
    """Returns why the torch engine does not run a detector, or None if it does.

    Raises:
        InputError: It cannot read the configuration.
    """
    if config_file is None:
        if description_of(fetch(weights)) is None:  # released weights, which the torch engine has
            return None
        cfg = cfg_of_weights(weights, overrides)
    else:
        if has_detectron2() and is_of_detectron2_alone(find_config(config_file)):
            return "this is a configuration of Detectron2 alone"
        cfg = load_cfg(config_file, overrides)
    try:
        check_supported(cfg)
    except InputError as error:
        return str(error)
    return None


def _reads(config_file: str | Path | None, weights: str | Path, overrides: Sequence[str]) -> bool:
    """Returns whether Detectron2 can read a configuration."""
    plugin = detectron2_plugin()
    try:
        if config_file is None:
            cfg_of_weights(weights, overrides, defaults=plugin.default_cfg())
        else:
            plugin.load_cfg(config_file, overrides)
    except InputError:
        return False
    return True
