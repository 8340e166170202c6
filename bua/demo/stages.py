"""The stages of the demo: what each is called, how long it takes, and what is kept of it in metrics.json."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bua.errors import InputError
from bua.io.files import whole_file

SECONDS = "seconds/"


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        minutes: that it takes about on two CPU cores, at the demo's usual size.
    """

    title: str
    minutes: float


STAGES = {
    "data": Stage("Making and preparing the images", 0.4),
    "training": Stage("Training the detector", 5.9),
    "evaluation": Stage("Evaluating it on the test split", 0.2),
    "extraction": Stage("Extracting the regions of all images", 0.8),
    "heads": Stage("Training and scoring what looks at regions", 6.0),
    "page": Stage("Drawing the page", 0.1),
}


class Record:
    """What the stages gave, kept in a file at the end of each, also where it is stopped.

    Attributes:
        metrics: scores, fractions.
        seconds: by stage, over all runs that it took.

    Raises:
        InputError: the file is something else.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metrics, self.seconds = {}, {}
        if not path.is_file():
            return
        try:
            content = {key: float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not the metrics of a demo ({error}); remove it") from error
        self.metrics = {key: value for key, value in content.items() if not key.startswith(SECONDS)}
        self.seconds = {name: content[SECONDS + name] for name in STAGES if SECONDS + name in content}

    @contextmanager
    def stage(self, name: str, goes_on: bool = False) -> Iterator[None]:
        """Announces a stage and keeps the seconds that it took.

        Args:
            goes_on: add them to those of earlier runs, which it goes on from.
        """
        print(f"\n[{list(STAGES).index(name) + 1}/{len(STAGES)}] {STAGES[name].title}", flush=True)
        before = self.seconds.pop(name, 0.0)
        start = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here", flush=True)
            raise
        finally:
            self.seconds[name] = time.perf_counter() - start + (before if goes_on else 0.0)
            self.save()

    def content(self) -> dict[str, float]:
        """The metrics, then ``seconds/<stage>`` in the order of ``STAGES``."""
        seconds = {SECONDS + name: round(self.seconds[name], 3) for name in STAGES if name in self.seconds}
        return {**self.metrics, **seconds}

    def save(self) -> None:
        with whole_file(self.path) as file:
            file.write((json.dumps(self.content(), indent=2) + "\n").encode())


def print_plan() -> None:
    """The stages with the minutes that they take about."""
    print("The plan, with minutes on two CPU cores that have nothing else to do:")
    for number, stage in enumerate(STAGES.values(), start=1):
        print(f"  {number}  {stage.title:42} {stage.minutes:4.1f}")
    print(f"     {'in all':42} {sum(stage.minutes for stage in STAGES.values()):4.1f}", flush=True)


def check_configuration(path: Path, text: str, except_for: tuple[str, ...] = ()) -> None:
    """
    Args:
        path: config.yaml of a run that may have begun.
        text: the configuration that it is to go on with.
        except_for: keys that may differ.

    Raises:
        InputError: it was begun with another.
    """
    if not path.is_file():
        return
    for before, now in zip(path.read_text(encoding="utf-8").splitlines(), text.splitlines()):
        if before != now and before.split(":")[0].strip() not in except_for:
            raise InputError(
                f"{path}: the run was begun with {before.strip()!r}, now it is {now.strip()!r}; "
                f"give another --output, or remove {path.parent}"
            )
