"""Finds the checkpoint that a run is continued from, and restores the parts of the run from it."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bua.checkpoint import read_checkpoint
from bua.engine.checkpoints import (
    BEST,
    LOCK,
    POINTER,
    from_detectron2,
    last_checkpoint,
    named_checkpoint,
    run_checkpoints,
)
from bua.engine.optimizer import load_optimizer_state
from bua.errors import InputError, make_folder
from bua.io.files import exclusive

logger = logging.getLogger(__name__)

# What a checkpoint must hold for a run to continue.
_NEEDED = ("model", "optimizer", "scheduler", "scaler", "iteration")


@contextmanager
def only_training(output_dir: str | Path, is_main_process: bool) -> Iterator[None]:
    """Creates the folder of a run, and holds a lock on it for the duration of the block, so that no other training
    writes there. Only the main process does this.

    Raises:
        InputError: Another training is writing to the folder, or it cannot be created.
    """
    if not is_main_process:
        yield
        return
    folder = make_folder(output_dir)
    with exclusive(folder, folder / LOCK):
        yield


def checkpoint_to_resume(output_dir: str | Path, resume: bool | str | Path) -> Path | None:
    """Returns the checkpoint that a run in ``output_dir`` continues from, or None if it starts from the beginning.

    Args:
        resume: False starts a new run. True continues from the newest checkpoint, if there is one. A path continues
            from this checkpoint: an earlier one of the run, or one of another folder if ``output_dir`` has none.

    Raises:
        InputError: A new run would overwrite the checkpoints of another one.
    """
    newest = last_checkpoint(output_dir)
    if isinstance(resume, str | Path):
        path = Path(resume)
        if newest is not None and os.path.realpath(path.parent) != os.path.realpath(output_dir):
            raise InputError(
                f"--resume-from {path}: {output_dir} contains a run of its own ({newest.name}); name one of its "
                "checkpoints, or change OUTPUT_DIR"
            )
        return path
    if newest is None and os.path.isfile(Path(output_dir, BEST)):
        raise InputError(
            f"{output_dir}: contains {BEST}, but no checkpoint that the run could be continued from; change OUTPUT_DIR"
        )
    if newest is not None and not resume:
        raise InputError(
            f"{output_dir}: already contains a run ({newest.name}); continue it with --resume or change OUTPUT_DIR"
        )
    return newest


def read_to_resume(path: Path, output_dir: str | Path, max_iter: int) -> dict:
    """Returns the content of a checkpoint that a run continues from, in the form in which the torch engine saves it.

    Raises:
        InputError: The file is damaged (the message names the newest checkpoint of the run that is whole), contains
            only weights, or was saved after more than ``max_iter`` iterations.
    """
    newest = last_checkpoint(output_dir)
    if not path.exists():
        raise InputError(
            f"--resume-from {path}: there is no such file" + (f"; the newest checkpoint is {newest}" if newest else "")
        )
    try:
        saved = from_detectron2(read_checkpoint(path))
    except InputError as error:
        whole = next((other for other in run_checkpoints(output_dir) if other != path and _is_whole(other)), None)
        advice = f"to continue from the checkpoint before it, add --resume-from {whole}"
        if whole is None:
            advice = "the run has no other checkpoint to continue from, so start it again in another OUTPUT_DIR"
        raise InputError(f"{error}; {advice}") from error
    if not all(name in saved for name in _NEEDED):
        raise InputError(f"{path}: contains only weights and cannot be resumed; set MODEL.WEIGHTS to it instead")
    # Said by one process alone.
    if path == newest and named_checkpoint(output_dir) is None and not (dist.is_initialized() and dist.get_rank()):
        logger.warning("%s: is missing or names no checkpoint; %s is the newest", Path(output_dir, POINTER), path)
    done = saved["iteration"]
    if type(done) is not int or done < 0:
        raise InputError(f"{path}: iteration is {str(done)[:40]!r}, not a number of iterations; use another checkpoint")
    if done > max_iter:
        raise InputError(
            f"{path}: was saved after {done} iterations, but the run ends after {max_iter}; raise SOLVER.MAX_ITER or, "
            "for a model of a task, SOLVER.EPOCHS"
        )
    return saved


def restore(parts: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Restores parts of a run, such as its optimizer, from the content of a checkpoint.

    Args:
        parts: Objects with ``load_state_dict`` by their keys in the checkpoint.
        path: The checkpoint, for messages.

    Raises:
        InputError: The state of a part does not fit it.
    """
    for name, part in parts.items():
        with reported_misfit(path, name):
            if name == "optimizer":
                load_optimizer_state(part, saved[name])
            else:
                part.load_state_dict(saved[name])
            if name == "scheduler" and part.last_epoch != saved["iteration"]:
                raise ValueError(f"it is at iteration {part.last_epoch}, the checkpoint at {saved['iteration']}")


def check_vocabularies(extra: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Checks that words and classes mean what they meant when a checkpoint was saved. Otherwise, weights of the same
    shape would be those of other words from now on.

    Args:
        extra: What the checkpoints of the run hold beside its state. Lists in it are vocabularies.
        saved: The content of the checkpoint, which may lack them.
        path: The checkpoint, for the message.

    Raises:
        InputError: A vocabulary has changed.
    """
    for key, value in extra.items():
        before = saved.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            check_vocabularies(value, before, path)
        elif isinstance(value, list) and isinstance(before, list) and value != before:
            raise InputError(
                f"{path}: {key} was another list when this was saved, such as before the data set was prepared anew; "
                "resume with the data that the run started with, or change OUTPUT_DIR to start again"
            )


@contextmanager
def reported_misfit(path: Path, name: str) -> Iterator[None]:
    """A context in which an error becomes an InputError which says that a part of a checkpoint does not fit."""
    try:
        yield
    except Exception as error:  # a state of another kind of object, or a damaged one, can cause any error
        reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
        raise InputError(
            f"{path}: {name} does not fit ({' '.join(reason.split())[:300]}); resume with the configuration that the "
            "run started with"
        ) from error


def _is_whole(path: Path) -> bool:
    try:
        return all(name in from_detectron2(read_checkpoint(path)) for name in _NEEDED)
    except InputError:
        return False
