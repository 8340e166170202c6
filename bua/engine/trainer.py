"""The training loop: of any model whose forward takes a batch and returns a dict of losses."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from fvcore.common.config import CfgNode
from torch import nn

from bua.checkpoint import load_weights, read_checkpoint, save_checkpoint
from bua.engine.interruption import Interruption
from bua.engine.log import TrainingLog
from bua.engine.random_state import random_state, set_random_state, undisturbed
from bua.errors import InputError, make_folder
from bua.io.files import whole_file

FINAL = "model_final.pth"
BEST = "model_best.pth"
POINTER = "last_checkpoint"
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteLoss(RuntimeError):
    """A loss, or a weight, became infinite or not a number. The message is one line with the iteration and, for a
    loss, the batch's ids."""


class Trainer:
    """Trains a model, saves, evaluates and logs on the way.

    Every iteration's losses, and with them all that is learned, follow from the arguments and the global random state
    at the start: a run that was killed and resumed gives the same ones as one that was not, and evaluation leaves no
    trace in them.

    Files in ``output_dir``: ``model_0000999.pth`` after 1000 iterations (Detectron2 counts from 0), at the end
    ``model_final.pth``, the name of the newest in ``last_checkpoint``, what ``TrainingLog`` writes, and, with ``best``,
    ``model_best.pth``.

    Args:
        model: on its device.
        loader: yields this process's share of each batch, without end; iterated anew, it goes on after what was
            taken; has ``state_dict`` and ``load_state_dict``.
        optimizer: over the parameters of ``model`` that learn.
        scheduler: stepped once an iteration.
        accelerator: from ``bua.engine.connect``.
        output_dir: made where it does not exist.
        max_iter: iterations in all.
        ids: of the items in a batch, for messages and rates.
        losses: of the model and a batch, a dict of scalars whose sum is minimised. By default ``model(batch)``, which
            moves the batch to its device by itself.
        accumulate: batches whose gradients make one step together.
        checkpoint_period, eval_period: in iterations; with an ``eval_period`` of 0 only the end is evaluated.
        evaluate: gives metrics; called in the main process; None never evaluates.
        best: the metric by which the best model is kept, the higher the better; None keeps none.
        keep_all: every checkpoint; otherwise the newest alone, and the best.
        clip: changes the gradients of a list of parameters in place.
        precision: of the forward pass: "float32", "bfloat16", or "float16" with scaled losses, on a GPU.
        log_period: iterations between two lines of the log.
        config: what the run was made from; written to ``config.yaml``.
        extra: what else every checkpoint is to hold, such as a vocabulary.
        unit: what the log calls the items of a batch.

    Raises:
        InputError: a precision that the device does not have.
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
        ids: Callable[[object], list],
        losses: Callable[[nn.Module, object], dict[str, torch.Tensor]] = lambda model, batch: model(batch),
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
        self.dtype = autocast_dtype(precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.parallel = accelerator.prepare_model(model)
        self.log: TrainingLog | None = None
        self.iteration = 0

    def run(self, resume: bool = False) -> dict[str, float]:
        """Trains up to ``max_iter``.

        Ctrl-C saves at the end of the iteration and raises KeyboardInterrupt; a second one does not wait for that.

        Args:
            resume: goes on from the newest checkpoint in ``output_dir`` where there is one.

        Returns:
            the metrics of the last evaluation; empty without one, and outside of the main process.

        Raises:
            NonFiniteLoss: before the parameters take harm of it.
            InputError: a checkpoint that does not fit; a run in ``output_dir`` that is not to be resumed.
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
        # Last, because what comes before may draw random numbers.
        if self.accelerator.process_index < len(saved.get("random", ())):
            set_random_state(saved["random"][self.accelerator.process_index])
        with Interruption() as interruption:
            metrics = self._catch_up(interruption)
            batches = iter(self.loader)
            while self.iteration < self.max_iter:
                try:
                    stop = self._step(batches, interruption)
                except InputError:
                    # An image that cannot be read. With several processes the others wait for this one elsewhere.
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
        """One iteration; whether it is to be the last, in all processes alike."""
        values, items, data_seconds, stop = defaultdict(float), 0, 0.0, False
        self.optimizer.zero_grad()
        for part in range(self.accumulate):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            # Processes exchange gradients once a step.
            with self._exchange(part == self.accumulate - 1):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    losses = self.losses(self.parallel, batch)
                means, stop = self._share(losses, interruption.requested)
                if not all(map(math.isfinite, means)):
                    raise NonFiniteLoss(self._describe_failure(losses, batch))
                self.scaler.scale(sum(losses.values()) / self.accumulate).backward()
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

    def _exchange(self, now: bool) -> AbstractContextManager:
        return nullcontext() if now else self.accelerator.no_sync(self.parallel)

    def _share(self, losses: dict[str, torch.Tensor], stop: bool) -> tuple[list[float], bool]:
        """The losses' means over all processes, and whether any is asked to stop."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if self.accelerator.num_processes == 1:
            return values.tolist(), stop
        flag = torch.tensor([float(stop)], device=values.device)
        *means, stops = self.accelerator.reduce(torch.cat([values, flag]), "mean").tolist()
        return means, stops > 0

    def _describe_failure(self, losses: dict[str, torch.Tensor], batch) -> str:
        names = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        failures = gather_object([(names, self.ids(batch))])
        names = dict.fromkeys(name for names, _ in failures for name in names)
        ids = [str(item) for names, items in failures if names for item in items]
        return (
            f"iteration {self.iteration + 1}: {', '.join(names)} not finite in the batch of {', '.join(ids)}; "
            "look at their annotations or lower the learning rate" + self._last_checkpoint_hint()
        )

    def _last_checkpoint_hint(self) -> str:
        last = last_checkpoint(self.output_dir)
        return f"; the last checkpoint is {last}" if last is not None else ""

    def _evaluation_due(self) -> bool:
        if self.evaluate is None or self.iteration == 0:
            return False
        return self.iteration == self.max_iter or (self.eval_period > 0 and self.iteration % self.eval_period == 0)

    def _catch_up(self, interruption: Interruption) -> dict[str, float]:
        """Evaluates where a run ended between a checkpoint and the evaluation that follows it."""
        missing = self.log is not None and self._evaluation_due() and not self.log.has_metrics(self.iteration)
        return self._evaluate(interruption) if broadcast_object_list([missing])[0] else {}

    def _evaluate(self, interruption: Interruption) -> dict[str, float]:
        # Taken while all processes are there; Ctrl-C during the evaluation then needs the main one alone.
        state = self._snapshot()
        metrics = {}
        if self.accelerator.is_main_process:
            try:
                with undisturbed(), interruption.at_once():
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
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "data": self.loader,
        }

    def _snapshot(self) -> dict:
        """What a checkpoint holds, in the main process; empty in the others, which have to call it too."""
        random_states = gather_object([random_state()])
        if not self.accelerator.is_main_process:
            return {}
        state = {name: part.state_dict() for name, part in self._parts().items()}
        return {
            **self.extra,
            **state,
            "log": self.log.state_dict(),
            "random": random_states,
            "iteration": self.iteration,
        }

    def _save(self, state: dict) -> None:
        if not state:
            return
        broken = [name for name, value in state["model"].items() if not torch.isfinite(value).all()]
        if broken:
            raise NonFiniteLoss(
                f"iteration {self.iteration}: {len(broken)} parameters are not finite, such as {broken[0]}, and are "
                "not saved; lower the learning rate or clip gradients" + self._last_checkpoint_hint()
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
        """The newest checkpoint's content, its weights in the model already; empty where there is none."""
        path = last_checkpoint(self.output_dir)
        if path is None:
            return {}
        if not resume:
            raise InputError(f"{self.output_dir}: holds a run already ({path.name}); --resume it or set OUTPUT_DIR")
        load_weights(self.model, path)
        saved = _from_detectron2(read_checkpoint(path))
        needed = {*self._parts(), "iteration"} - {"data"}
        if not needed <= set(saved):
            raise InputError(f"{path}: holds weights only and cannot be resumed; name it in MODEL.WEIGHTS instead")
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
    """A checkpoint of ``bua.d2.Trainer`` as one of this trainer; any other as it is.

    Detectron2 counts the last iteration, from 0, where this trainer counts those done. Its data loader cannot say how
    far it was: the images begin anew.
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
    """The newest checkpoint of the run in ``output_dir``, or None where nothing was saved."""
    pointer = Path(output_dir) / POINTER
    return pointer.with_name(pointer.read_text().strip()) if pointer.is_file() else None


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What ``torch.autocast`` computes in; None for float32, which needs none."""
    if precision not in DTYPES:
        raise InputError(f"SOLVER.AMP.DTYPE is {precision!r}; use one of {', '.join(DTYPES)}")
    if precision == "float16" and device.type == "cpu":
        raise InputError("SOLVER.AMP.DTYPE is 'float16', which needs a GPU; use 'bfloat16' or SOLVER.AMP.ENABLED False")
    return DTYPES[precision]
