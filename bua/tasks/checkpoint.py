"""Trained models of the tasks, and reading them from checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from fvcore.common.config import CfgNode
from torch import nn

from bua.checkpoint import read_checkpoint
from bua.config import check_numbers
from bua.config_files import parse_yaml
from bua.errors import InputError
from bua.tasks.config import CheckValues, check_nothing
from bua.weights.files import check_finite
from bua.weights.zoo import fetch


@dataclass
class TaskModel(ABC):
    """A task's model with all that inference needs. A task's class adds its vocabularies.

    Attributes:
        model: The network.
        cfg: The configuration that the network was built from.
        feature_dim: Dimension of the region features that the network was trained on.
        features: What is known of how these features were extracted, as ``bua.features.settings.settings_for_model``
            returns it.
    """

    model: nn.Module
    cfg: CfgNode
    feature_dim: int
    features: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters."""
        return next(self.model.parameters()).device

    @abstractmethod
    def vocabularies(self) -> dict[str, Any]:
        """Returns the vocabularies as a checkpoint holds them: lists and strings by key."""

    def describe(self) -> dict[str, Any]:
        """Returns what a checkpoint holds besides the weights, for inference."""
        return {
            "config": self.cfg.dump(),
            **self.vocabularies(),
            "feature_dim": self.feature_dim,
            "features": self.features,
        }

    def check_features(self, dim: int, source: str) -> None:
        """Checks that the model can read features of dimension ``dim``.

        Args:
            source: The file or image that the features are of, for the message.

        Raises:
            InputError: The model was trained on features of another dimension.
        """
        if dim != self.feature_dim:
            raise InputError(
                f"{source}: the feature dimension is {dim}, but the model was trained on features of dimension "
                f"{self.feature_dim}; use the detector that extracted its training features"
            )


ModelT = TypeVar("ModelT", bound=TaskModel)


def read_task_checkpoint(path: str | Path, vocabularies: Sequence[str], advice: str) -> dict[str, Any]:
    """Returns all that a checkpoint of a task's model holds.

    Args:
        path: A file, the name of a model that comes with the package, or an address, as for ``bua.weights.zoo.fetch``.
        vocabularies: The keys of ``TaskModel.vocabularies``.
        advice: What the user can do if the file lacks some of it; the end of the message.

    Raises:
        InputError: There is no such file, or it is not a checkpoint of this task.
    """
    saved = read_checkpoint(fetch(path))
    missing = missing_parts(saved, vocabularies)
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; {advice}")
    return saved


def missing_parts(saved: dict[str, Any], vocabularies: Sequence[str]) -> list[str]:
    """Returns the keys that a checkpoint of a task's model has and ``saved`` lacks."""
    return [key for key in ("model", "config", *vocabularies, "feature_dim") if key not in saved]


@contextmanager
def reported_damage(path: str | Path) -> Iterator[None]:
    """A context in which an error from the content of a checkpoint becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # values of other types and sizes than bua saves can cause any error
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: damaged, or of another program ({type(error).__name__}: {reason}); name another checkpoint"
        ) from error


def restore_cfg(cfg: CfgNode, saved: dict[str, Any], path: str | Path, check: CheckValues = check_nothing) -> CfgNode:
    """Reads the configuration that a checkpoint holds into ``cfg``, which has the task's defaults, and returns it.

    Args:
        path: The checkpoint, for messages.

    Raises:
        InputError: Another version of bua wrote the configuration, or ``check`` rejects a value; or a part of the
            checkpoint is of another type than those that bua saves.
    """
    _check_types(saved, path)
    try:
        cfg.merge_from_other_cfg(CfgNode(parse_yaml(saved["config"], "config")))
        check_numbers(cfg, "config")
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: its configuration is of another version of bua ({reason}); train the model again"
        ) from error
    check(cfg, str(path))
    return cfg


def _check_types(saved: dict[str, Any], path: str | Path) -> None:
    dim = saved["feature_dim"]
    good = {
        "model": isinstance(saved["model"], dict) and all(map(torch.is_tensor, saved["model"].values())),
        "config": isinstance(saved["config"], str),
        "feature_dim": type(dim) is int and dim > 0,
    }
    # Vocabularies. The only other list is the random state of each process of a training.
    lists = {key: value for key, value in saved.items() if isinstance(value, list) and key != "random"}
    good |= {key: all(isinstance(word, str) for word in value) for key, value in lists.items()}
    for key, fits in good.items():
        if not fits:
            raise InputError(f"{path}: damaged, or written by another program: {key} is not what bua saves there")


def build_fitting(build: Callable[[], nn.Module], saved: dict[str, Any], path: str | Path) -> Any:
    """Returns the network that ``build`` returns. Before it takes memory, which a wrong size in a damaged file could
    exhaust, it is checked that the weights of the checkpoint have its shapes.

    Raises:
        InputError: The weights do not fit the network.
    """
    with torch.device("meta"):
        needed = {name: value.shape for name, value in build().state_dict().items()}
    for name, shape in needed.items():
        found = saved["model"].get(name)
        if found is None or found.shape != shape:
            held = "is missing" if found is None else f"has the shape {tuple(found.shape)}, not {tuple(shape)}"
            raise InputError(f"{path}: its weights do not fit its configuration: {name} {held}")
    return build()


def restore_weights(task_model: ModelT, saved: dict[str, Any], path: str | Path, device: str) -> ModelT:
    """Copies the weights that a checkpoint holds into a model, and returns it on ``device``, ready for inference.

    Raises:
        InputError: The weights do not fit the model, or are not finite.
    """
    check_finite(saved["model"], path)
    try:
        task_model.model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit its configuration: {' '.join(str(error).split())}") from error
    # Earlier versions of bua did not save this.
    task_model.features = dict(saved.get("features", {}))
    task_model.model.to(device).eval()
    return task_model
