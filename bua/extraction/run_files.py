"""What lies beside a file of features: how it was made, and which images failed."""

import json
from pathlib import Path

from bua.errors import InputError
from bua.extraction.extractor import Outcome
from bua.io.files import whole_file

SETTINGS, SHARDS = "meta.json", "shards"


def beside(output: Path, suffix: str) -> Path:
    """``<output>.<suffix>``."""
    return output.with_name(f"{output.name}.{suffix}")


def check_settings(output: Path, settings: dict) -> None:
    """Refuses to mix the features of different detectors in one output.

    Raises:
        InputError: names the setting that differs from ``<output>.meta.json``, or says that the file is missing.
    """
    path = beside(output, SETTINGS)
    begun = any(output.iterdir()) if output.is_dir() else output.exists() and output.stat().st_size > 0
    # Where features lie before they get into the output: those of HDF5, and of tasks on Ray.
    if not begun and not any(beside(output, suffix).exists() for suffix in ("partial", SHARDS)):
        return
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{output}: exists, but no {path.name} beside it says how it was made; choose another output"
        ) from error
    for key in sorted(settings.keys() | earlier.keys()):
        if settings.get(key) != earlier.get(key):
            raise InputError(
                f"{output}: was made with {key} {earlier.get(key)}, now it is {settings.get(key)}; "
                "choose another output, or the same settings to go on"
            )


def write_settings(output: Path, settings: dict) -> None:
    """Writes ``<output>.meta.json``."""
    with whole_file(beside(output, SETTINGS), durable=True) as file:
        file.write(json.dumps(settings, indent=1).encode() + b"\n")


class Failures:
    """``<output>.failures.jsonl``, of this run alone: a line (``image_id``, ``path``, ``reason``) an image, and no
    file where none failed."""

    def __init__(self, output: Path):
        self.output = output
        self.path = beside(output, "failures.jsonl")
        self.path.unlink(missing_ok=True)

    def append(self, outcome: Outcome) -> None:
        line = {"image_id": outcome.image.image_id, "path": outcome.image.path, "reason": outcome.reason}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
