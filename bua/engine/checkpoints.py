"""Finds, writes and prunes the checkpoints of a run, and moves their content to the CPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bua.checkpoint import save_checkpoint
from bua.engine.losses import NonFiniteLoss
from bua.io.files import whole_file

FINAL = "model_final.pth"
BEST = "model_best.pth"
POINTER = "last_checkpoint"


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Returns the newest checkpoint of the run in ``output_dir``, or None if nothing was saved."""
    pointer = Path(output_dir) / POINTER
    return pointer.with_name(pointer.read_text().strip()) if pointer.is_file() else None


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
    state = to_cpu(state)
    before = last_checkpoint(output_dir)
    broken = [name for name, value in state["model"].items() if not torch.isfinite(value).all()]
    if broken:
        raise NonFiniteLoss(
            f"iteration {state['iteration']}: {len(broken)} parameters are not finite, such as {broken[0]}, so no "
            "checkpoint is saved; lower the learning rate or clip gradients" + last_checkpoint_hint(output_dir)
        )
    path = output_dir / (FINAL if final else f"model_{state['iteration'] - 1:07d}.pth")
    save_checkpoint(path, **state)
    with whole_file(output_dir / POINTER) as file:
        file.write(path.name.encode())
    if not keep_all and before is not None and before != path:
        before.unlink(missing_ok=True)
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


def describe_existing_run(output_dir: str | Path, checkpoint: Path) -> str:
    """Returns the error message for a new run in a folder that contains the checkpoint of another one."""
    return f"{output_dir}: already contains a run ({checkpoint.name}); continue it with --resume or change OUTPUT_DIR"


def from_detectron2(saved: dict) -> dict:
    """Converts a checkpoint of ``bua.d2.Trainer`` to one of ``bua.engine.Trainer``. Returns any other as it is.

    Detectron2 saves the number of the last iteration, from 0, while the torch engine saves how many are done.
    Detectron2's data loader does not save its position, so the images start from the beginning.
    """
    if "LRScheduler" not in saved.get("trainer", {}).get("hooks", {}):
        return saved
    trainer = saved["trainer"]
    parts = {name: trainer[name] for name in ("optimizer", "scaler")}
    return {
        "model": saved["model"],
        **parts,
        "scheduler": trainer["hooks"]["LRScheduler"],
        "iteration": trainer["iteration"] + 1,
    }
