"""Logs the progress of training to the console, ``metrics.json`` and TensorBoard."""

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bua.errors import InputError
from bua.io.files import needing_folder, whole_file
from bua.regular_files import read_regular

METRICS_FILE = "metrics.json"


def metrics_table(
    metrics: Mapping[str, float], fractions: bool = False, published: Mapping[str, float] = MappingProxyType({})
) -> str:
    """Returns metrics as a table in percent, one line for each.

    Args:
        fractions: Whether the values are fractions; otherwise they are in percent.
        published: Published values, of which those of the metrics are shown beside them.
    """
    scale = 100 if fractions else 1
    beside = {name: f"   published {scale * value:5.1f} %" for name, value in published.items()}
    return "\n".join(f"{name:40} {scale * value:6.2f} %{beside.get(name, '')}" for name, value in metrics.items())


class TrainingLog:
    """Collects the losses of each iteration, and writes their means every ``period`` iterations.

    On a terminal, a bar also shows the iterations and the time left from the first iteration on.

    Each line of ``metrics.json`` is a JSON object. After n iterations it is ``{"iteration": n, "total_loss": ..., <each
    loss>, "lr": ..., "images_per_second": ..., "data_seconds": ...}``, where ``data_seconds`` is the mean time that an
    iteration waited for its batch. For an evaluation after n iterations it is ``{"iteration": n, <metrics>}``. At the
    end of an epoch it is ``{"iteration": n, "epoch": n / epoch, <scores>}``, the means of the scores over all items of
    the epoch. TensorBoard gets the same values.

    Args:
        output_dir: Folder of the files.
        max_iter: Number of iterations of the run, from which the time left is estimated.
        start: Number of iterations done before. Lines of later iterations are removed from ``metrics.json``: they are
            of a run that was killed before its next checkpoint.
        period: Number of iterations between two lines.
        unit: Name of the items of a batch. It also replaces "images" in ``images_per_second``.
        fractions: Whether metrics are fractions; otherwise they are in percent.
        epoch: Number of iterations of an epoch, after which the means of the scores are written.
        published: Published values of metrics, which are printed beside them.
    """

    def __init__(
        self,
        output_dir: str | Path,
        max_iter: int,
        *,
        start: int = 0,
        period: int = 20,
        unit: str = "images",
        fractions: bool = False,
        epoch: int = 1,
        published: Mapping[str, float] = MappingProxyType({}),
    ):
        self.path = Path(output_dir) / METRICS_FILE
        self.max_iter, self.period, self.unit, self.fractions = max_iter, period, unit, fractions
        self._bar = tqdm(total=max_iter, initial=start, unit="it", desc="train", leave=False, disable=None)
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self.published = published
        self._epoch, self._scores, self._scored = epoch, dict[str, float](), 0
        _drop_lines_after(self.path, start)
        self._board = SummaryWriter(str(output_dir), purge_step=start + 1 if start else None)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time since the last line, and its items, from the rates."""
        self._clock, self._items, self._data_seconds, self._timed = time.perf_counter(), 0, 0.0, 0

    def step(
        self,
        iteration: int,
        losses: dict[str, float],
        lr: float,
        items: int,
        data_seconds: float,
        scores: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Adds the results of an iteration.

        Args:
            iteration: Number of the iteration, from 1.
            losses: Losses by their names.
            lr: Learning rate.
            items: Number of items in the batch.
            data_seconds: Time that the iteration waited for its batch.
            scores: Mean scores of the batch by their names.
        """
        for name, value in losses.items():
            self._sums[name] += value
        self._count += 1
        self._items += items
        self._data_seconds += data_seconds
        self._timed += 1
        self._bar.set_postfix(loss=f"{sum(losses.values()):.3g}", refresh=False)
        self._bar.update()
        if iteration % self.period == 0 or iteration == self.max_iter:
            self._write_means(iteration, lr)
        if scores:
            self._add_scores(iteration, scores, items)

    def metrics(self, iteration: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of an evaluation after ``iteration`` iterations."""
        self._write({"iteration": iteration, **metrics})
        table = metrics_table(metrics, self.fractions, self.published)
        self._print(f"evaluation after {iteration} iterations:\n{table}")

    def has_metrics(self, iteration: int) -> bool:
        """Returns whether the metrics of an evaluation after ``iteration`` iterations have been written."""
        return any(
            line["iteration"] == iteration and not line.keys() & {"total_loss", "epoch"}
            for _, line in _read_lines(self.path)
        )

    def state_dict(self) -> dict:
        """Returns the sums of the losses since the last line, and of the scores since the epoch's beginning."""
        sums = {"sums": dict(self._sums), "count": self._count}
        return sums | {"scores": dict(self._scores), "scored": self._scored}

    def load_state_dict(self, state: dict) -> None:
        """Restores a state that ``state_dict`` returned. Earlier versions of bua saved no scores in it: the next ones
        to be written are then of the items since."""
        self._sums, self._count = defaultdict(float, state["sums"]), state["count"]
        self._scores, self._scored = dict(state.get("scores", {})), state.get("scored", 0)

    def close(self) -> None:
        """Closes TensorBoard's file and the bar."""
        self._bar.close()
        self._board.close()

    def _write_means(self, iteration: int, lr: float) -> None:
        seconds = time.perf_counter() - self._clock
        losses = {name: value / self._count for name, value in self._sums.items()}
        total = sum(losses.values())
        rate = self._items / seconds
        self._write(
            {
                "iteration": iteration,
                "total_loss": total,
                **losses,
                "lr": lr,
                f"{self.unit}_per_second": round(rate, 3),
                "data_seconds": round(self._data_seconds / self._timed, 6),
            }
        )
        left = timedelta(seconds=round(seconds / self._timed * (self.max_iter - iteration)))
        # A single loss equals the total, so it is not printed again.
        parts = losses if len(losses) > 1 else {}
        values = "".join(f"  {name.removeprefix('loss_')} {value:.3f}" for name, value in parts.items())
        self._print(
            f"{iteration}/{self.max_iter}  loss {total:.3f}{values}  lr {lr:.3g}  {rate:.3g} {self.unit}/s  "
            f"left {left}  memory {_memory_megabytes()} MB"
        )
        self._sums, self._count = defaultdict(float), 0
        self.restart_clock()

    def _add_scores(self, iteration: int, scores: Mapping[str, float], items: int) -> None:
        """Adds the mean scores of a batch, and writes those of the epoch at its end."""
        self._scores = {name: self._scores.get(name, 0.0) + value * items for name, value in scores.items()}
        self._scored += items
        if iteration % self._epoch == 0:
            means = {name: value / self._scored for name, value in self._scores.items()}
            number = iteration // self._epoch
            self._write({"iteration": iteration, "epoch": number, **means})
            self._print(f"epoch {number}, in training:\n{metrics_table(means, self.fractions)}")
            self._scores, self._scored = {}, 0

    def _print(self, text: str) -> None:
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def _write(self, line: dict) -> None:
        with needing_folder(self.path), open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "iteration":
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, line["iteration"])
        self._board.flush()


def _drop_lines_after(path: Path, iteration: int) -> None:
    if path.exists():
        kept = [text for text, line in _read_lines(path) if line["iteration"] <= iteration]
        with whole_file(path, locked=True) as file:
            file.writelines(text + b"\n" for text in kept)


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns the lines of a file as they are, with their content. Lines that are incomplete or damaged are left out:
    a run that is killed while it writes a line leaves an incomplete last one.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        texts = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; move it away, or choose another folder") from error
    return [(text, line) for text, line in zip(texts, map(_parse, texts)) if line is not None]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("iteration")) is int else None


def _memory_megabytes() -> int:
    """Returns the peak memory so far: of the GPU if one is in use, otherwise of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10
