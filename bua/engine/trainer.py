"""The training loop for any model whose forward pass takes a batch and returns a dict of losses."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from fvcore.common.config import CfgNode
from torch import nn

from bua.checkpoint import load_weights, read_checkpoint, save_checkpoint
from bua.engine.interruption import Interruption
from bua.engine.log import TrainingLog
from bua.engine.random_state import preserved_random_state, random_state, set_random_state
from bua.errors import InputError, make_folder
from bua.io.files import whole_file

FINAL = "model_final.pth"
BEST = "model_best.pth"
POINTER = "last_checkpoint"
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteLoss(RuntimeError):
    """A loss or a parameter is infinite or not a number.

    The message is one line, which contains the iteration and, for a loss, the ids of the batch's items.
    """


class Trainer:
    """Trains a model, saves checkpoints, evaluates and logs.

    The losses of every iteration depend only on the arguments and on the global random state at the start. A run that
    was killed and resumed has the same losses as one that was not, and evaluations do not change them.

    The files in ``output_dir`` are ``model_0000999.pth`` after 1000 iterations (Detectron2 counts from 0) and so on,
    ``model_final.pth`` at the end, ``last_checkpoint`` with the name of the newest checkpoint, the files of
    ``TrainingLog``, and, if ``best`` is given, ``model_best.pth``.

    Args:
        model: The model, on its device.
        loader: Yields this process's share of each batch, without end. When it is iterated again, it continues after
            the last batch that was taken. It has ``state_dict`` and ``load_state_dict``.
        optimizer: Optimizer of the parameters of ``model`` that require gradients.
        scheduler: Scheduler that is stepped once per iteration.
        accelerator: The group of processes, from ``bua.engine.connect``.
        output_dir: Folder of the run. It is created if it does not exist.
        max_iter: Number of iterations of the run.
        ids: Returns the ids of the items in a batch, for messages and rates.
        losses: Takes the model and a batch, and returns a dict of scalars whose sum is minimised. By default this is
            ``model(batch)``. It moves the batch to the model's device.
        accumulate: Number of batches whose gradients are accumulated for one step.
        checkpoint_period, eval_period: Number of iterations between two checkpoints, and between two evaluations. With
            an ``eval_period`` of 0, the model is evaluated only at the end.
        evaluate: Returns metrics. It is called in the main process. With None, the model is never evaluated.
        best: Name of the metric whose highest value marks the best model, which is saved. With None, it is not saved.
        keep_all: Whether all checkpoints are kept. Otherwise only the newest and the best are kept.
        clip: Clips the gradients of a list of parameters in place.
        precision: Precision of the forward pass: "float32", "bfloat16", or "float16" (with loss scaling, on a GPU).
        log_period: Number of iterations between two lines of the log.
        config: Configuration of the run, which is written to ``config.yaml``.
        extra: Further content of every checkpoint, such as a vocabulary.
        unit: Name of the items of a batch in the log.

    Raises:
        InputError: The device does not support the precision.
    """

    def __init__(
        self,
        model: nn.Module,
        loader,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        accelerator: Accelerator,
        output_dir: str | Path,
        max_iter: int,
        ids: Callable[[Any], list],
        losses: Callable[[nn.Module, Any], dict[str, torch.Tensor]] = lambda model, batch: model(batch),
        accumulate: int = 1,
        checkpoint_period: int = 5000,
        evaluate: Callable[[], dict[str, float]] | None = None,
        eval_period: int = 0,
        best: str | None = None,
        keep_all: bool = True,
        clip: Callable[[list[nn.Parameter]], object] | None = None,
        precision: str = "float32",
        log_period: int = 20,
        config: CfgNode | None = None,
        extra: dict | None = None,
        unit: str = "images",
    ):
        self.model, self.loader, self.optimizer, self.scheduler = model, loader, optimizer, scheduler
        self.accelerator, self.output_dir, self.max_iter, self.ids = accelerator, Path(output_dir), max_iter, ids
        self.checkpoint_period, self.log_period, self.config = checkpoint_period, log_period, config
        self.evaluate, self.eval_period, self.clip = evaluate, eval_period, clip
        self.losses, self.accumulate, self.extra, self.unit = losses, accumulate, extra or {}, unit
        self.best, self.best_value, self.keep_all = best, -math.inf, keep_all
        self.device = next(model.parameters()).device
        # Mixed precision is torch's. Accelerator.autocast() and its loss scaling depend on a setting that the first
        # Accelerator of a process fixes, while a process may train several models, on different devices and in
        # different precisions. With that setting, prepare_model() would also replace model.forward: evaluation would
        # run in the low precision too, and losses would be computed from outputs that were converted to float32.
        self.dtype = autocast_dtype(precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.parallel = accelerator.prepare_model(model)
        self.log: TrainingLog | None = None
        self.iteration = 0

    def run(self, resume: bool = False) -> dict[str, float]:
        """Trains until ``max_iter`` iterations are done.

        After Ctrl-C, a checkpoint is saved at the end of the iteration and KeyboardInterrupt is raised. A second Ctrl-C
        raises it at once.

        Args:
            resume: Whether to continue from the newest checkpoint in ``output_dir``, if there is one.

        Returns:
            The metrics of the last evaluation. The dict is empty if there was none, and outside of the main process.

        Raises:
            NonFiniteLoss: A loss is not finite. The parameters have not been updated with it.
            InputError: A checkpoint does not fit, or ``output_dir`` contains a run and ``resume`` is False.
        """
        saved = self._find_run(resume)
        if saved:
            self._restore(saved)
        if self.accelerator.is_main_process:
            make_folder(self.output_dir)
            if self.config is not None:
                (self.output_dir / "config.yaml").write_text(self.config.dump())
            self.log = TrainingLog(
                self.output_dir, self.max_iter, start=self.iteration, period=self.log_period, unit=self.unit
            )
            self.log.load_state_dict(saved.get("log", self.log.state_dict()))
        self.model.train()
        # The random state is restored last, because the code above may draw random numbers.
        if self.accelerator.process_index < len(saved.get("random", ())):
            set_random_state(saved["random"][self.accelerator.process_index])
        with Interruption() as interruption:
            metrics = self._catch_up(interruption)
            batches = iter(self.loader)
            while self.iteration < self.max_iter:
                try:
                    stop = self._step(batches, interruption)
                except InputError:
                    # An image cannot be read. With several processes, the others would not take part in saving.
                    if self.accelerator.num_processes == 1 and self.iteration > 0:
                        self._save(self._snapshot())
                    raise
                if stop or self.iteration == self.max_iter or self.iteration % self.checkpoint_period == 0:
                    self._save(self._snapshot())
                if stop:
                    raise KeyboardInterrupt
                if self._evaluation_due():
                    metrics = self._evaluate(interruption)
        if self.log is not None:
            self.log.close()
        return metrics

    def _step(self, batches, interruption: Interruption) -> bool:
        """Runs one iteration and returns whether to stop after it. The answer is the same in all processes."""
        values: dict[str, float] = defaultdict(float)
        items, data_seconds, stop = 0, 0.0, False
        self.optimizer.zero_grad()
        for part in range(self.accumulate):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            with self._gradient_exchange(enabled=part == self.accumulate - 1):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    losses = self.losses(self.parallel, batch)
                means, stop = self._average(losses, interruption.requested)
                if not all(map(math.isfinite, means)):
                    raise NonFiniteLoss(self._describe_failure(losses, batch))
                total = sum(losses.values())
                assert isinstance(total, torch.Tensor)
                self.scaler.scale(total / self.accumulate).backward()
            for name, mean in zip(losses, means):
                values[name] += mean / self.accumulate
            items += len(self.ids(batch)) * self.accelerator.num_processes
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip([p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        self.iteration += 1
        if self.log is not None:
            self.log.step(self.iteration, values, lr, items, data_seconds)
        return stop

    def _gradient_exchange(self, enabled: bool) -> AbstractContextManager:
        """Returns a context in which ``backward`` averages the gradients over all processes, or does not.

        This is needed only once per step, for the last of the accumulated batches.
        """
        return nullcontext() if enabled else self.accelerator.no_sync(self.parallel)

    def _average(self, losses: dict[str, torch.Tensor], stop: bool) -> tuple[list[float], bool]:
        """Returns the losses' means over all processes, and whether any process is to stop."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if self.accelerator.num_processes == 1:
            return values.tolist(), stop
        flag = torch.tensor([float(stop)], device=values.device)
        *means, stops = self.accelerator.reduce(torch.cat([values, flag]), "mean").tolist()
        return means, stops > 0

    def _describe_failure(self, losses: dict[str, torch.Tensor], batch) -> str:
        own_names = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        failures = gather_object([(own_names, self.ids(batch))])
        all_names = dict.fromkeys(name for names, _ in failures for name in names)
        ids = [str(item) for names, items in failures if names for item in items]
        return describe_non_finite_losses(self.iteration + 1, all_names, ids) + self._last_checkpoint_hint()

    def _last_checkpoint_hint(self) -> str:
        last = last_checkpoint(self.output_dir)
        return f"; the last checkpoint is {last}" if last is not None else ""

    def _evaluation_due(self) -> bool:
        if self.evaluate is None or self.iteration == 0:
            return False
        return self.iteration == self.max_iter or (self.eval_period > 0 and self.iteration % self.eval_period == 0)

    def _catch_up(self, interruption: Interruption) -> dict[str, float]:
        """Evaluates if the run ended between a checkpoint and the evaluation that follows it."""
        missing = self.log is not None and self._evaluation_due() and not self.log.has_metrics(self.iteration)
        return self._evaluate(interruption) if broadcast_object_list([missing])[0] else {}

    def _evaluate(self, interruption: Interruption) -> dict[str, float]:
        # The snapshot needs all processes. It is taken first, so that the main process can save without the others if
        # Ctrl-C is pressed during the evaluation.
        state = self._snapshot()
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            assert self.evaluate is not None
            assert self.log is not None
            try:
                with preserved_random_state(), interruption.at_once():
                    metrics = self.evaluate()
            except KeyboardInterrupt:
                self._save(state)
                raise
            self.log.metrics(self.iteration, metrics)
            self._keep_best(metrics)
        self.accelerator.wait_for_everyone()
        self.model.train()
        if self.log is not None:
            self.log.restart_clock()
        return metrics

    def _keep_best(self, metrics: dict[str, float]) -> None:
        if self.best is None or metrics[self.best] <= self.best_value:
            return
        self.best_value = metrics[self.best]
        content = {"model": self.model.state_dict(), "iteration": self.iteration, "metrics": metrics, **self.extra}
        save_checkpoint(self.output_dir / BEST, **content)

    def _parts(self) -> dict:
        """Returns the objects whose state a checkpoint contains, by their keys in the checkpoint."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "data": self.loader,
        }

    def _snapshot(self) -> dict:
        """Returns the content of a checkpoint in the main process, and an empty dict in the others.

        All processes must call it, because each contributes its random state.
        """
        random_states = gather_object([random_state()])
        if not self.accelerator.is_main_process:
            return {}
        assert self.log is not None
        state = {name: part.state_dict() for name, part in self._parts().items()}
        return {
            **self.extra,
            **state,
            "log": self.log.state_dict(),
            "random": random_states,
            "iteration": self.iteration,
        }

    def _save(self, state: dict) -> None:
        """Saves what ``_snapshot`` returned. It does nothing outside of the main process."""
        if not state:
            return
        broken = [name for name, value in state["model"].items() if not torch.isfinite(value).all()]
        if broken:
            raise NonFiniteLoss(
                f"iteration {self.iteration}: {len(broken)} parameters are not finite, such as {broken[0]}, so no "
                "checkpoint is saved; lower the learning rate or clip gradients" + self._last_checkpoint_hint()
            )
        name = FINAL if self.iteration == self.max_iter else f"model_{self.iteration - 1:07d}.pth"
        before = last_checkpoint(self.output_dir)
        save_checkpoint(self.output_dir / name, **state)
        with whole_file(self.output_dir / POINTER) as file:
            file.write(name.encode())
        if not self.keep_all and before is not None and before.name != name:
            before.unlink(missing_ok=True)
        print(f"saved {self.output_dir / name}", flush=True)

    def _find_run(self, resume: bool) -> dict:
        """Loads the newest checkpoint's weights into the model and returns its content, or {} if there is none."""
        path = last_checkpoint(self.output_dir)
        if path is None:
            return {}
        if not resume:
            raise InputError(describe_existing_run(self.output_dir, path))
        load_weights(self.model, path)
        saved = _from_detectron2(read_checkpoint(path))
        needed = {*self._parts(), "iteration"} - {"data"}
        if not needed <= set(saved):
            raise InputError(f"{path}: contains only weights and cannot be resumed; set MODEL.WEIGHTS to it instead")
        if self.accelerator.is_main_process:
            print(f"resumed {path} after {saved['iteration']} iterations", flush=True)
        return saved

    def _restore(self, saved: dict) -> None:
        for name, part in self._parts().items():
            if name == "model" or (name == "data" and name not in saved):
                continue
            try:
                part.load_state_dict(saved[name])
            except (ValueError, KeyError, RuntimeError) as error:
                path, reason = last_checkpoint(self.output_dir), " ".join(str(error).split())
                raise InputError(
                    f"{path}: {name} does not fit ({reason}); resume with the configuration that the run started with"
                ) from error
        self.iteration = saved["iteration"]
        best = self.output_dir / BEST
        if self.best is not None and best.exists():
            self.best_value = read_checkpoint(best)["metrics"][self.best]


def _from_detectron2(saved: dict) -> dict:
    """Converts a checkpoint of ``bua.d2.Trainer`` to one of this trainer. Returns any other checkpoint as it is.

    Detectron2 saves the number of the last iteration, from 0, while this trainer saves how many are done. Detectron2's
    data loader does not save its position, so the images start from the beginning.
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


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Returns the newest checkpoint of the run in ``output_dir``, or None if nothing was saved."""
    pointer = Path(output_dir) / POINTER
    return pointer.with_name(pointer.read_text().strip()) if pointer.is_file() else None


def describe_existing_run(output_dir: str | Path, checkpoint: Path) -> str:
    """Returns the error message for a new run in a folder that contains the checkpoint of another one."""
    return f"{output_dir}: already contains a run ({checkpoint.name}); continue it with --resume or change OUTPUT_DIR"


def describe_non_finite_losses(iteration: int, names: Iterable[str], ids: Iterable[str]) -> str:
    """Returns the error message for losses that are not finite, computed in ``iteration`` from the items ``ids``."""
    return (
        f"iteration {iteration}: {', '.join(names)} not finite in the batch of {', '.join(ids)}; "
        "check the annotations of these or lower the learning rate"
    )


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Returns the dtype for ``torch.autocast``, or None for float32, which needs no autocast."""
    if precision not in DTYPES:
        raise InputError(f"SOLVER.AMP.DTYPE is {precision!r}; use one of {', '.join(DTYPES)}")
    if precision == "float16" and device.type == "cpu":
        raise InputError("SOLVER.AMP.DTYPE is 'float16', which needs a GPU; use 'bfloat16' or SOLVER.AMP.ENABLED False")
    return DTYPES[precision]
