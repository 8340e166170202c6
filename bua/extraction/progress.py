"""The result of an extraction, and its progress as the user sees it."""

import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

# Seconds between lines of progress in a log.
PROGRESS_SECONDS = 30

logger = logging.getLogger(__name__)


@dataclass
class ExtractionSummary:
    """The result of ``extract``.

    Attributes:
        output: The file or folder of features.
        done: Number of images whose features this run wrote.
        skipped: Number of images whose features were in the output before.
        failed: Number of images that are listed in ``<output>.failures.jsonl``.
        seconds: Time from the first image to the last.
    """

    output: Path = Path()
    done: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0


class Progress:
    """Shows the progress as a bar on a terminal, and elsewhere as lines in the log."""

    def __init__(self, summary: ExtractionSummary, total: int):
        self.summary, self.total = summary, total
        self.start = self.last_line = time.perf_counter()
        self.bar = tqdm(desc="extract", total=total, initial=summary.skipped, unit="img", disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """Counts one more image."""
        self.bar.set_postfix(failed=self.summary.failed, refresh=False)
        self.bar.update()
        now = time.perf_counter()
        if self.bar.disable and now - self.last_line > PROGRESS_SECONDS:
            self.last_line = now
            done = self.summary.done + self.summary.failed
            rate = done / (now - self.start)
            left = self.total - self.summary.skipped - done
            logger.info(
                "%d of %d images, %.3g per second, %s left, %d failed",
                self.total - left,
                self.total,
                rate,
                timedelta(seconds=round(left / rate)),
                self.summary.failed,
            )
