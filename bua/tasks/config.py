"""Configuration of the tasks' models: the keys that all tasks share, and reading a task's YAML files."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from bua.config import check_device, check_numbers, engine_cfg, merge
from bua.config_values import check_choices, value_of
from bua.errors import InputError
from bua.precision import check_float32_precision
from bua.tasks.resident_regions import ON_DEVICE

# Checks the values of a configuration; the second argument names, for the message, where they come from.
CheckValues = Callable[[CfgNode, str], None]


def check_nothing(cfg: CfgNode, source: str) -> None:
    """The ``CheckValues`` of a task that allows any value of the right type."""


def task_cfg() -> CfgNode:
    """Returns a new configuration with the keys that the training of every task reads.

    A task adds its own to ``MODEL`` and ``DATA``. ``SOLVER.IMS_PER_BATCH`` counts the items of a step, over all
    devices; ``TEST.EVAL_PERIOD`` and ``SOLVER.CHECKPOINT_PERIOD`` count epochs.
    """
    cfg = engine_cfg()
    cfg.SOLVER.OPTIMIZER = "Adamax"
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.SOLVER.EPOCHS = 30
    # Factors of BASE_LR, one for each epoch; the last one also holds for all later epochs. If the list is empty, the
    # learning rate follows LR_SCHEDULER_NAME, whose STEPS and WARMUP_ITERS count iterations.
    cfg.SOLVER.EPOCH_FACTORS = []
    # Number of parts of a batch that go through the model one after the other, for a batch that does not fit in memory.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.TEST.EVAL_PERIOD = 1
    cfg.DATA = CfgNode()
    # A folder that a program in datasets/ prepared, its splits to train on, and the split by which the best model is
    # chosen.
    cfg.DATA.FOLDER = ""
    cfg.DATA.TRAIN = ("train",)
    cfg.DATA.VAL = "val"
    # Files of features, in any format, that have the images of all splits.
    cfg.DATA.FEATURES = ()
    # Whether the features of all images are kept in the memory of the device: True, False, or "auto", which keeps them
    # on a GPU if they fit. The default means False; it is None, because a key whose default is a bool takes no string.
    cfg.DATA.ON_DEVICE = None
    return cfg


def constructor_keys(model: type, without: Sequence[str] = ("feature_dim",)) -> CfgNode:
    """Returns the keyword-only arguments of a class with their defaults, as configuration keys.

    Args:
        without: Arguments that are left out, since they follow from the data.
    """
    parameters = inspect.signature(model).parameters.values()
    return CfgNode(
        {
            parameter.name.upper(): parameter.default
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in without
        }
    )


def keyword_arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments that a configuration node of ``constructor_keys`` holds."""
    return {key.lower(): value for key, value in node.items()}


def load_task_cfg(
    cfg: CfgNode, config_file: str | Path, overrides: Sequence[str], check: CheckValues = check_nothing
) -> CfgNode:
    """Reads a YAML file, then ``KEY VALUE`` pairs, into ``cfg``, which has a task's defaults, and returns it.

    Raises:
        InputError: As ``bua.config.load_cfg``; a device that this machine does not have; a value of
            ``FLOAT32_PRECISION`` or ``DATA.ON_DEVICE`` that cannot be used, or one that ``check`` rejects.
    """
    merge(cfg, config_file, list(overrides))
    check_numbers(cfg, str(config_file))
    check_device(cfg.MODEL.DEVICE)
    check_float32_precision(cfg.FLOAT32_PRECISION, f"{config_file}: FLOAT32_PRECISION")
    check_choices(cfg, str(config_file), {"DATA.ON_DEVICE": ON_DEVICE})
    check(cfg, str(config_file))
    return cfg


def check_minimums(cfg: CfgNode, source: str, minimums: Mapping[str, int]) -> None:
    """Checks values that must not be too small; arguments and errors as for ``check_choices``."""
    for key, least in minimums.items():
        value = value_of(cfg, key)
        if value < least:
            raise InputError(f"{source}: {key} is {value}; it must be {least} or more")
