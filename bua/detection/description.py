"""What is known about a detector from its weights: its configuration, and the names of its classes."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from bua.checkpoint import identify, read_checkpoint
from bua.config import check_device, check_numbers, check_values, get_cfg, load_cfg, merge_overrides
from bua.config_files import parse_yaml
from bua.errors import InputError
from bua.io.files import file_version
from bua.modeling.build import check_supported
from bua.weights.zoo import ZOO, fetch

KEY = "detector"


@dataclass(frozen=True)
class DetectorDescription:
    """What inference needs to know about a detector besides its weights.

    Attributes:
        config: The configuration that the detector was built from, as YAML, with the keys of the torch engine; with
            all keys of Detectron2 for a detector that the torch engine does not have.
        objects: Names of the object classes.
        attributes: Names of the attributes, without "no attribute"; empty if the detector has no attribute head.
    """

    config: str
    objects: Sequence[str]
    attributes: Sequence[str]

    def state(self) -> dict[str, Any]:
        """Returns the description as a checkpoint holds it under ``KEY``."""
        return {name: value if isinstance(value, str) else list(value) for name, value in asdict(self).items()}


def cfg_of_weights(weights: str | Path, overrides: Sequence[str] = (), *, defaults: CfgNode | None = None) -> CfgNode:
    """Returns the configuration that belongs to the weights of a detector: the one that a checkpoint of bua holds, or
    that of released weights, with ``KEY VALUE`` pairs applied.

    Args:
        weights: A file, a name in ``bua.weights.zoo``, or an address.
        defaults: Configuration that is changed in place, by default ``bua.config.get_cfg()``.

    Raises:
        InputError: No configuration is known, or an override cannot be applied.
    """
    path = fetch(weights)
    description = description_of(path)
    if description is not None:
        return _described_cfg(description, path, overrides, defaults)
    config = ZOO[str(weights)].config if str(weights) in ZOO else identify(path).config
    if not config.endswith(".yaml"):
        raise InputError(
            f"{weights}: does not say how its detector is configured; name the configuration file (--config-file)"
        )
    return load_cfg(config, [*overrides, "MODEL.WEIGHTS", str(path)], defaults=defaults)


def description_of(path: str | Path) -> DetectorDescription | None:
    """Returns the description that a checkpoint file holds, or None if it has none. A file is read once as long as it
    does not change."""
    path = Path(path)
    if path.suffix != ".pth":
        return None
    return _read_once(path, file_version(path))


@functools.lru_cache
def _read_once(path: Path, version: tuple[int, ...]) -> DetectorDescription | None:
    return read_description(read_checkpoint(path))


def check_class_names(path: str | Path, objects: Sequence[str], attributes: Sequence[str], data_set: str) -> None:
    """Checks that a data set has the classes that a checkpoint's detector was trained on, as far as it names them.

    Args:
        path: The checkpoint.
        objects, attributes: Names of the data set's classes.
        data_set: Name of the data set.

    Raises:
        InputError: A class has another name. Other numbers of classes are found elsewhere.
    """
    description = description_of(fetch(path))
    if description is None:
        return
    for what, trained, given in (
        ("objects", description.objects, objects),
        ("attributes", description.attributes, attributes),
    ):
        if len(trained) == len(given) and list(trained) != list(given):
            first, found = next(pair for pair in zip(trained, given) if pair[0] != pair[1])
            raise InputError(
                f"{path}: was trained on other {what} than those of {data_set}, or in another order ({found!r} in "
                f"place of {first!r}); evaluate it on data with the same {what}"
            )


def describe_detector(cfg: CfgNode, objects: Sequence[str], attributes: Sequence[str]) -> DetectorDescription:
    """Returns the description of the detector that ``cfg``, a configuration of either engine, builds.

    Args:
        objects, attributes: Names of the classes of the data set that it is trained on.
    """
    own = get_cfg()
    _copy_common(cfg, own)
    try:
        check_supported(cfg)
    except InputError:
        own = cfg
    return DetectorDescription(own.dump(), objects, attributes if cfg.MODEL.BUA.ATTRIBUTES.ENABLED else ())


def read_description(saved: Mapping[str, Any]) -> DetectorDescription | None:
    """Returns the description that the content of a checkpoint has, or None if it has none, as one that another program
    or an earlier version of bua wrote."""
    state = saved.get(KEY)
    if not isinstance(state, Mapping) or set(state) != {"config", "objects", "attributes"}:
        return None
    names = [state["objects"], state["attributes"]]
    if not isinstance(state["config"], str) or not all(
        isinstance(part, list | tuple) and all(isinstance(name, str) for name in part) for part in names
    ):
        return None
    return DetectorDescription(**state)


def _described_cfg(
    description: DetectorDescription, path: str | Path, overrides: Sequence[str], defaults: CfgNode | None
) -> CfgNode:
    """Returns the configuration of a described detector, with ``KEY VALUE`` pairs applied.

    Args:
        path: The checkpoint, for messages.
        defaults: As for ``cfg_of_weights``.

    Raises:
        InputError: Another version of bua wrote the configuration, or an override cannot be applied.
    """
    cfg = get_cfg() if defaults is None else defaults
    device = cfg.MODEL.DEVICE
    try:
        cfg.merge_from_other_cfg(type(cfg)(parse_yaml(description.config, "config")))
        check_numbers(cfg, "config")
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: its configuration is of another version of bua ({reason}); give a configuration file"
        ) from error
    # The detector may have been trained on another machine.
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = str(path)
    merge_overrides(cfg, overrides)
    check_values(cfg, f"{path}, and the command line")
    check_device(cfg.MODEL.DEVICE)
    return cfg


def _copy_common(source: CfgNode, target: CfgNode) -> None:
    """Copies the values of the keys that both configurations have."""
    for key in target:
        if key not in source:
            continue
        if isinstance(target[key], CfgNode):
            _copy_common(source[key], target[key])
        else:
            target[key] = source[key]
