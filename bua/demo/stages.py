"""Names the stages of the demo, measures how long each takes, and keeps the results in metrics.json."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bua.errors import InputError
from bua.io.files import whole_file

SECONDS = "seconds/"


@dataclass(frozen=True)
class Stage:
    """A stage of the demo.

    Attributes:
        title: Description, for the console and the page.
        minutes: Approximate duration on two CPU cores, with the default number of images.
    """

    title: str
    minutes: float


# metrics.json has these names. "heads" is what the task models were called in version 0.1.0.
STAGES = {
    "data": Stage("Making and preparing the images", 0.4),
    "training": Stage("Training the detector", 5.9),
    "evaluation": Stage("Evaluating the detector on the test split", 0.2),
    "extraction": Stage("Extracting the regions of all images", 0.8),
    "heads": Stage("Training and scoring the task models", 6.0),
    "page": Stage("Drawing the page", 0.1),
}
# The stages of the short demo, whose models come with the package.
PACKED_STAGES = {
    "data": Stage("Drawing and preparing new images", 0.2),
    "extraction": Stage("Extracting the regions of all images", 0.3),
    "evaluation": Stage("Evaluating the detector", 0.2),
    "tasks": Stage("Scoring the task models", 0.2),
    "page": Stage("Drawing the page", 0.1),
}


class Record:
    """The demo's results. They are saved at the end of each stage, and also when a stage is stopped.

    Attributes:
        stages: The stages by name.
        metrics: Scores by name, as fractions.
        seconds: Duration of each stage by its name, summed over all runs.

    Raises:
        InputError: The file exists and is not the metrics of a demo.
    """

    def __init__(self, path: Path, stages: Mapping[str, Stage]):
        self.path, self.stages = path, stages
        self.metrics: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        if not path.is_file():
            return
        try:
            content = {key: float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: not the metrics of a demo ({error}); remove the file, or give another --output"
            ) from error
        self.metrics = {key: value for key, value in content.items() if not key.startswith(SECONDS)}
        self.seconds = {name: content[SECONDS + name] for name in stages if SECONDS + name in content}

    @contextmanager
    def stage(self, name: str, resumed: bool = False) -> Iterator[None]:
        """Prints the title of a stage, and records how many seconds the block takes.

        Args:
            name: Name of the stage.
            resumed: Whether the stage continues an earlier run, so that the seconds are added to the earlier ones.
        """
        print(f"\n[{list(self.stages).index(name) + 1}/{len(self.stages)}] {self.stages[name].title}", flush=True)
        before = self.seconds.pop(name, 0.0)
        start = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:
            print("\nstopped; run the same command again to continue from here", flush=True)
            raise
        finally:
            self.seconds[name] = time.perf_counter() - start + (before if resumed else 0.0)
            self.save()

    def content(self) -> dict[str, float]:
        """Returns the metrics, followed by ``seconds/<stage>`` in their order."""
        seconds = {SECONDS + name: round(self.seconds[name], 3) for name in self.stages if name in self.seconds}
        return {**self.metrics, **seconds}

    def save(self) -> None:
        with whole_file(self.path) as file:
            file.write((json.dumps(self.content(), indent=2) + "\n").encode())


def print_plan(stages: Mapping[str, Stage]) -> None:
    """Prints the stages with the approximate minutes that they take."""
    print("The stages, with the approximate minutes that they take on two idle CPU cores:")
    for number, stage in enumerate(stages.values(), start=1):
        print(f"  {number}  {stage.title:42} {stage.minutes:4.1f}")
    print(f"     {'total':42} {sum(stage.minutes for stage in stages.values()):4.1f}", flush=True)


def check_configuration(path: Path, text: str, except_for: tuple[str, ...] = ()) -> None:
    """Checks that a run that may have been started is continued with the configuration that it was started with.

    Args:
        path: The run's config.yaml. If the file does not exist, the run has not been started.
        text: The configuration to continue with.
        except_for: Keys that may differ.

    Raises:
        InputError: The run was started with another configuration.
    """
    if not path.is_file():
        return
    for before, now in zip(path.read_text(encoding="utf-8").splitlines(), text.splitlines()):
        if before != now and before.split(":")[0].strip() not in except_for:
            raise InputError(
                f"{path}: the run was started with {before.strip()!r}, now it is {now.strip()!r}; "
                f"give another --output, or remove {path.parent}"
            )
