"""The training loop for any model whose forward pass takes a batch and returns a dict of losses."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn

from bua.checkpoint import load_weights, read_checkpoint, save_checkpoint
from bua.engine.checkpoints import BEST, last_checkpoint_hint, to_cpu, write_checkpoint
from bua.engine.collectives import broadcast, gather, wait_for_all
from bua.engine.interruption import Interruption
from bua.engine.log import TrainingLog
from bua.engine.losses import LossHistory, NonFiniteLoss
from bua.engine.optimizer import can_skip_updates
from bua.engine.random_state import preserved_random_state, random_state, set_random_state
from bua.engine.resume import check_vocabularies, checkpoint_to_resume, read_to_resume, reported_misfit, restore
from bua.errors import InputError, make_folder
from bua.io.files import whole_file
from bua.precision import autocast_dtype


class Trainer:
    """Trains a model, saves checkpoints, evaluates and logs.

    The losses of every iteration depend only on the arguments and on the global random state at the start. A run that
    was killed and resumed has the same losses as one that was not, and evaluations do not change them. On a GPU, where
    some sums have no fixed order, this holds up to rounding.

    The CPU waits for the GPU only to log, to save and to evaluate, if the optimizer is one of torch's fused ones. With
    another optimizer or with loss scaling, it waits in each iteration until the forward pass has been computed, while
    the backward pass is already queued.

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
        scores: Names among what ``losses`` returns that are not losses but scores, which are not minimised. Their means
            over all items of an epoch are logged, as metrics are.
        epoch: Number of iterations of an epoch, for ``scores``.
        accumulate: Number of batches whose gradients are accumulated for one step.
        checkpoint_period, eval_period: Number of iterations between two checkpoints, and between two evaluations. With
            an ``eval_period`` of 0, the model is evaluated only at the end.
        evaluate: Returns metrics. It is called in the main process. With None, the model is never evaluated.
        shared_evaluation: Whether ``evaluate`` is called in all processes, which share its work. What it returns counts
            in the main process.
        best: Name of the metric whose highest value marks the best model, which is saved. With None, it is not saved.
        keep_all: Whether all checkpoints are kept. Otherwise only the newest and the best are kept.
        clip: Clips the gradients of a list of parameters in place.
        precision: Precision of the forward pass: "float32", "bfloat16", or "float16" (with loss scaling, on a GPU).
        log_period: Number of iterations between two lines of the log.
        config: Configuration of the run, which is written to ``config.yaml``.
        extra: Further content of every checkpoint, such as a vocabulary.
        unit: Name of the items of a batch in the log.
        fractions: Whether metrics are fractions; otherwise they are in percent.
        published: Published values of metrics, which are printed beside them.

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
        scores: Collection[str] = (),
        epoch: int = 1,
        accumulate: int = 1,
        checkpoint_period: int = 5000,
        evaluate: Callable[[], dict[str, float]] | None = None,
        shared_evaluation: bool = False,
        eval_period: int = 0,
        best: str | None = None,
        keep_all: bool = True,
        clip: Callable[[list[nn.Parameter]], object] | None = None,
        precision: str = "float32",
        log_period: int = 20,
        config: CfgNode | None = None,
        extra: dict | None = None,
        unit: str = "images",
        fractions: bool = False,
        published: Mapping[str, float] = MappingProxyType({}),
    ):
        self.model, self.loader, self.optimizer, self.scheduler = model, loader, optimizer, scheduler
        self.accelerator, self.output_dir, self.max_iter, self.ids = accelerator, Path(output_dir), max_iter, ids
        self.checkpoint_period, self.log_period, self.config = checkpoint_period, log_period, config
        self.evaluate, self.shared_evaluation, self.eval_period, self.clip = (
            evaluate,
            shared_evaluation,
            eval_period,
            clip,
        )
        self.losses, self.accumulate, self.extra, self.unit = losses, accumulate, extra or {}, unit
        self.scores, self.epoch, self.fractions, self.published = scores, epoch, fractions, published
        self.best, self.best_value, self.keep_all = best, -math.inf, keep_all
        self.device = next(model.parameters()).device
        # Mixed precision is torch's. Accelerator.autocast() and its loss scaling depend on a setting that the first
        # Accelerator of a process fixes, while a process may train several models, on different devices and in
        # different precisions. With that setting, prepare_model() would also replace model.forward: evaluation would
        # run in the low precision too, and losses would be computed from outputs that were converted to float32.
        self.dtype = autocast_dtype(precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.parallel = accelerator.prepare_model(model)
        if isinstance(self.parallel, nn.parallel.DistributedDataParallel):
            # Buffers are not sent to all processes before every forward pass: most are constant. A trained BN has
            # statistics of its own in each process, as with Detectron2; those of the main process are saved.
            # The argument of the constructor has different names in the versions of torch.
            self.parallel.broadcast_buffers = False
        # If the optimizer can skip an update on the GPU, no step waits for the GPU, and the losses are read when they
        # are logged. Loss scaling uses ``found_inf`` for its own purpose.
        self.skips_updates = self.device.type == "cuda" and can_skip_updates(optimizer) and not self.scaler.is_enabled()
        self.history = LossHistory(at_once=not self.skips_updates)
        self.log: TrainingLog | None = None
        self.iteration = 0
        # Steps whose losses have not been logged yet, and the sums of the losses that were read, by iteration.
        self._unlogged: list[_Step] = []
        self._sums: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def run(self, resume: bool | str | Path = False) -> dict[str, float]:
        """Trains until ``max_iter`` iterations are done.

        After Ctrl-C, a checkpoint is saved at the end of the iteration and KeyboardInterrupt is raised. A second Ctrl-C
        raises it at once.

        Args:
            resume: Whether to continue from the newest checkpoint in ``output_dir``, if there is one; or the path of
                the checkpoint to continue from.

        Returns:
            The metrics of the last evaluation. The dict is empty if there was none, and outside of the main process.

        Raises:
            NonFiniteLoss: A loss is not finite. The parameters have not been updated with it, nor with later ones.
            InputError: A checkpoint is damaged or does not fit, or ``output_dir`` contains a run and ``resume`` is
                False.
        """
        path = checkpoint_to_resume(self.output_dir, resume)
        saved = {} if path is None else self._restore(path)
        if self.accelerator.is_main_process:
            if resume and path is None:
                print(f"{self.output_dir}: has no checkpoint; the run starts from the beginning", flush=True)
            make_folder(self.output_dir)
            if self.config is not None:
                with whole_file(self.output_dir / "config.yaml") as file:
                    file.write(self.config.dump().encode())
            self.log = TrainingLog(
                self.output_dir,
                self.max_iter,
                start=self.iteration,
                period=self.log_period,
                unit=self.unit,
                fractions=self.fractions,
                epoch=self.epoch,
                published=self.published,
            )
            if path is not None and "log" in saved:
                restore({"log": self.log}, saved, path)
        self.model.train()
        # The random state is restored last, because the code above may draw random numbers.
        if path is not None:
            with reported_misfit(path, "random"):
                states = saved.get("random", ())
                if self.accelerator.process_index < len(states):
                    set_random_state(states[self.accelerator.process_index])
        with Interruption() as interruption:
            metrics = self._catch_up(interruption)
            batches = iter(self.loader)
            while self.iteration < self.max_iter:
                try:
                    stop = self._step(batches, interruption)
                except InputError:
                    # An image cannot be read. With several processes, the others would not take part in saving.
                    if self.accelerator.num_processes == 1 and self.iteration > 0:
                        self._log_losses()
                        self._save(self._snapshot())
                    raise
                if self._losses_due() or stop:
                    stop = self._log_losses() or stop
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
        """Runs one iteration, and returns whether to stop after it as far as this process knows without waiting.

        With several processes, the answer is in the losses of the iteration, so that it is the same in all of them.
        """
        items, data_seconds = 0, 0.0
        self.optimizer.zero_grad()
        for part in range(self.accumulate):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            with self._gradient_exchange(enabled=part == self.accumulate - 1):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    losses = self.losses(self.parallel, batch)
                ids = self.ids(batch)
                self.history.add(self.iteration + 1, losses, ids, request=interruption.requested)
                total = sum(loss for name, loss in losses.items() if name not in self.scores)
                assert isinstance(total, torch.Tensor)
                self.scaler.scale(total / self.accumulate).backward()
            items += len(ids) * self.accelerator.num_processes
        if self.skips_updates:
            self.optimizer.found_inf = self.history.not_finite  # type: ignore[attr-defined]
            stop = False
        else:
            stop = self._read_losses()
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip([p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        self.iteration += 1
        self._unlogged.append(_Step(self.iteration, lr, items, data_seconds))
        return stop or (self.accelerator.num_processes == 1 and interruption.requested)

    def _read_losses(self) -> bool:
        """Reads the losses that were not read yet, and returns whether any process wants to stop.

        Raises:
            NonFiniteLoss: A loss is not finite.
        """
        try:
            readings = self.history.read()
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error}{last_checkpoint_hint(self.output_dir)}") from None
        for reading in readings:
            for name, mean in reading.means.items():
                self._sums[reading.iteration][name] += mean / self.accumulate
        return any(reading.request for reading in readings)

    def _losses_due(self) -> bool:
        """Returns whether the losses must be read and logged: always, unless the optimizer can skip updates."""
        periods = [self.log_period, self.checkpoint_period, *([self.eval_period] if self.eval_period else [])]
        return (
            not self.skips_updates
            or self.iteration == self.max_iter
            or any(self.iteration % period == 0 for period in periods)
        )

    def _log_losses(self) -> bool:
        """Logs the steps that were not logged yet, and returns whether any process wants to stop."""
        stop = self._read_losses()
        for step in self._unlogged:
            losses = self._sums.pop(step.iteration)
            scores = {name: losses.pop(name) for name in self.scores}
            if self.log is not None:
                self.log.step(step.iteration, losses, step.lr, step.items, step.data_seconds, scores)
        self._unlogged.clear()
        return stop

    def _gradient_exchange(self, enabled: bool) -> AbstractContextManager:
        """Returns a context in which ``backward`` averages the gradients over all processes, or does not.

        This is needed only once per step, for the last of the accumulated batches.
        """
        return nullcontext() if enabled else self.accelerator.no_sync(self.parallel)

    def _evaluation_due(self) -> bool:
        if self.evaluate is None or self.iteration == 0:
            return False
        return self.iteration == self.max_iter or (self.eval_period > 0 and self.iteration % self.eval_period == 0)

    def _catch_up(self, interruption: Interruption) -> dict[str, float]:
        """Evaluates if the run ended between a checkpoint and the evaluation that follows it."""
        missing = self.log is not None and self._evaluation_due() and not self.log.has_metrics(self.iteration)
        return self._evaluate(interruption) if broadcast(missing) else {}

    def _evaluate(self, interruption: Interruption) -> dict[str, float]:
        # The snapshot needs all processes. It is taken first, so that the main process can save without the others if
        # Ctrl-C is pressed during the evaluation.
        state = self._snapshot()
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process or self.shared_evaluation:
            assert self.evaluate is not None
            try:
                with preserved_random_state(), interruption.at_once():
                    metrics = self.evaluate()
            except KeyboardInterrupt:
                self._save(state)
                raise
        if self.log is not None:
            self.log.metrics(self.iteration, metrics)
            self._keep_best(metrics)
        wait_for_all()
        self.model.train()
        if self.log is not None:
            self.log.restart_clock()
        return metrics

    def _keep_best(self, metrics: dict[str, float]) -> None:
        if self.best is None or metrics[self.best] <= self.best_value:
            return
        self.best_value = metrics[self.best]
        content = {"model": self.model.state_dict(), "iteration": self.iteration, "metrics": metrics, **self.extra}
        save_checkpoint(self.output_dir / BEST, **to_cpu(content))

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
        random_states = gather(random_state())
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
        final = self.iteration == self.max_iter
        path = write_checkpoint(self.output_dir, state, final=final, keep_all=self.keep_all)
        print(f"saved {path}", flush=True)

    def _restore(self, path: Path) -> dict:
        """Restores the state of the run from a checkpoint, and returns its content."""
        saved = read_to_resume(path, self.output_dir, self.max_iter)
        check_vocabularies(self.extra, saved, path)
        load_weights(self.model, path)
        parts = {name: part for name, part in self._parts().items() if name != "model"}
        if "data" not in saved:
            del parts["data"]
        restore(parts, saved, path)
        self.iteration = saved["iteration"]
        best = self.output_dir / BEST
        if self.best is not None and best.exists():
            try:
                self.best_value = float(read_checkpoint(best)["metrics"][self.best])
            except (InputError, LookupError, TypeError, ValueError) as error:
                raise InputError(f"{best}: is damaged; remove it, then the best model is chosen anew") from error
        if self.accelerator.is_main_process:
            print(f"resumed {path} after {self.iteration} iterations", flush=True)
        return saved


class _Step(NamedTuple):
    iteration: int
    lr: float
    items: int
    data_seconds: float
