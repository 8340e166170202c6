"""Finds, writes and prunes the checkpoints of a run, and moves their content to the CPU."""

import copy
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bua.checkpoint import save_checkpoint
from bua.engine.losses import NonFiniteLoss
from bua.io.files import check_not_taken, whole_file

FINAL = "model_final.pth"
BEST = "model_best.pth"
POINTER = "last_checkpoint"
LOCK = "training.lock"
_NUMBERED = re.compile(r"model_(\d{7,18})\.pth")


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Returns the newest checkpoint of the run in ``output_dir``, or None if nothing was saved.

    This is the one that the file ``last_checkpoint`` names. If that file is missing or damaged, it is the one with the
    most iterations.
    """
    named = named_checkpoint(output_dir)
    return named if named is not None else next(iter(run_checkpoints(output_dir)), None)


def run_checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the checkpoints in ``output_dir`` that a run can be continued from, as far as their names say; the one
    with the most iterations first."""
    folder = Path(output_dir)
    done = {path: int(found[1]) + 1 for path in folder.glob("model_*.pth") if (found := _NUMBERED.fullmatch(path.name))}
    final = folder / FINAL
    # A run that was continued with a larger SOLVER.MAX_ITER has newer checkpoints than its first final one.
    order: dict[Path, float] = {**done, final: _iterations(final) if done else math.inf}
    return sorted(filter(os.path.isfile, order), key=lambda path: order[path], reverse=True)


def named_checkpoint(output_dir: str | Path) -> Path | None:
    """Returns the checkpoint that the file ``last_checkpoint`` names, or None if it names no file of the folder."""
    folder = Path(output_dir)
    if not os.path.isfile(folder / POINTER):
        return None
    try:
        name = (folder / POINTER).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / name if name and Path(name).name == name and os.path.isfile(folder / name) else None


def _iterations(path: Path) -> float:
    """Returns after how many iterations a checkpoint was saved; infinity if the file cannot be read."""
    if not os.path.isfile(path):
        return math.inf
    try:
        # Mapped, the tensors are not read.
        saved = from_detectron2(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return float(saved["iteration"])
    except Exception:  # a damaged file can cause any error; whoever reads it as a whole reports that
        return math.inf


def checkpoint_name(iterations: int, *, final: bool) -> str:
    """Returns the file name of the checkpoint after this number of iterations; Detectron2 counts them from 0.

    Args:
        final: Whether the run is at its end.
    """
    return FINAL if final else f"model_{iterations - 1:07d}.pth"


def write_checkpoint(output_dir: Path, state: dict, *, final: bool, keep_all: bool) -> Path:
    """Saves a checkpoint as the newest one of the run in ``output_dir``, and returns its path.

    Args:
        output_dir: Folder of the run.
        state: Content of the checkpoint, with the keys ``model`` and ``iteration``. Tensors may be on a GPU.
        final: Whether the run is at its end.
        keep_all: Whether the checkpoint that was the newest one before is kept.

    Raises:
        NonFiniteLoss: A parameter is not finite. Nothing has been written.
    """
    before = last_checkpoint(output_dir)
    path = save_newest(output_dir, checkpoint_name(state["iteration"], final=final), state, state["iteration"])
    if not keep_all and before is not None and before != path:
        before.unlink(missing_ok=True)
    return path


def save_newest(output_dir: Path, name: str, state: dict, iterations: int) -> Path:
    """Saves a checkpoint under a name as the newest one of the run in ``output_dir``, and returns its path.

    Args:
        state: Content of the checkpoint, with the key ``model``. Tensors may be on a GPU.
        iterations: Number of iterations that are done, for the message.

    Raises:
        NonFiniteLoss: A parameter is not finite. Nothing has been written.
        InputError: The folder was moved away, and another training has begun in its place.
    """
    check_not_taken(output_dir, output_dir / LOCK)
    state = to_cpu(state)
    broken = [name for name, value in state["model"].items() if not torch.isfinite(value).all()]
    if broken:
        raise NonFiniteLoss(
            f"iteration {iterations}: {len(broken)} parameters are not finite, such as {broken[0]}, so no "
            "checkpoint is saved; lower the learning rate or clip gradients" + last_checkpoint_hint(output_dir)
        )
    path = output_dir / name
    save_checkpoint(path, **state)
    with whole_file(output_dir / POINTER, durable=True, locked=True) as file:
        file.write(name.encode())
    return path


def last_checkpoint_hint(output_dir: str | Path) -> str:
    """Returns the end of an error message that names the newest checkpoint, or "" if there is none."""
    last = last_checkpoint(output_dir)
    return f"; the last checkpoint is {last}" if last is not None else ""


def to_cpu(state: Any) -> Any:
    """Copies the tensors in nested dicts, lists and tuples that are on a GPU to the CPU, and waits only once.

    Everything else is returned as it is. Tensors that are the same in ``state``, such as those of tied layers, are the
    same in the result, so that a file contains them once.
    """
    copies: dict[tuple, Tensor] = {}
    devices = set()

    def to_pinned(value: Tensor) -> Tensor:
        if value.device.type != "cuda":
            return value
        devices.add(value.device)
        key = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            copies[key] = value.detach().to("cpu", non_blocking=True)
        return copies[key]

    result = _map_tensors(to_pinned, state)
    for device in devices:
        # The copies are into pinned memory, whose content is complete only now.
        torch.cuda.synchronize(device)
    return result


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        # A model's state dict also has an attribute with the version of each module, which is kept.
        mapped = copy.copy(value)
        mapped.update((key, _map_tensors(function, item)) for key, item in value.items())
        return mapped
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(function, item) for item in value)
    return value


def from_detectron2(saved: dict) -> dict:
    """Converts a checkpoint of ``bua.d2.Trainer`` to one of ``bua.engine.Trainer``. Returns any other as it is.

    Detectron2 saves the number of the last iteration, from 0, while the torch engine saves how many are done.
    Detectron2's data loader does not save its position, so the images start from the beginning.
    """
    trainer = saved.get("trainer")
    hooks = trainer.get("hooks") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or not isinstance(hooks, dict) or "LRScheduler" not in hooks:
        return saved
    parts = {name: trainer[name] for name in ("optimizer", "scaler") if name in trainer}
    if isinstance(trainer.get("iteration"), int):
        parts["iteration"] = trainer["iteration"] + 1
    return {"model": saved.get("model"), **parts, "scheduler": hooks["LRScheduler"]}
