"""The files that a run keeps next to its output: the settings of the features, and the images that failed."""

import json
from collections.abc import Mapping
from pathlib import Path

from bua.errors import InputError
from bua.extraction.extractor import Outcome
from bua.extraction.shards import explaining_write_errors
from bua.io.files import whole_file
from bua.regular_files import read_regular

SETTINGS_SUFFIX, SHARDS_SUFFIX = "meta.json", "shards"


def path_beside(output: Path, suffix: str) -> Path:
    """Returns ``<output>.<suffix>``."""
    return output.with_name(f"{output.name}.{suffix}")


def check_settings(output: Path, settings: Mapping[str, object]) -> None:
    """Checks that an output which already holds features was made with the same settings, so that the features of
    different detectors are never mixed.

    Raises:
        InputError: A setting differs from ``<output>.meta.json`` (the message names it), or that file is missing.
    """
    path = path_beside(output, SETTINGS_SUFFIX)
    try:
        begun = any(output.iterdir()) if output.is_dir() else output.exists() and output.stat().st_size > 0
    except OSError as error:
        raise InputError(f"{output}: cannot be read: {error.strerror}; choose another output") from error
    # Features can lie elsewhere before they get into the output: those of HDF5, and those of tasks on Ray.
    if not begun and not any(path_beside(output, suffix).exists() for suffix in ("partial", SHARDS_SUFFIX)):
        return
    try:
        earlier = json.loads(read_regular(path))
        if not isinstance(earlier, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{output}: exists, but {path.name}, which says how it was made, is not there or cannot be read; choose "
            "another output"
        ) from error
    for key in sorted(settings.keys() | earlier.keys()):
        if settings.get(key) != earlier.get(key):
            raise InputError(
                f"{output}: was made with {key} {earlier.get(key)}, now it is {settings.get(key)}; "
                "choose another output, or the same settings to continue this one"
            )


def write_settings(output: Path, settings: Mapping[str, object]) -> None:
    """Writes ``<output>.meta.json``."""
    with whole_file(path_beside(output, SETTINGS_SUFFIX), durable=True) as file:
        file.write(json.dumps(settings, indent=1).encode() + b"\n")


class FailureLog:
    """Writes ``<output>.failures.jsonl``: one line (``image_id``, ``path``, ``reason``) for each image that failed in
    this run. If no image failed, the file does not exist.

    Raises:
        InputError: The file cannot be written, or one of an earlier run cannot be removed.
    """

    def __init__(self, output: Path):
        self.output = output
        self.path = path_beside(output, "failures.jsonl")
        with explaining_write_errors(self.path):
            self.path.unlink(missing_ok=True)

    def append(self, outcome: Outcome) -> None:
        """Adds the line of an image that failed."""
        line = {"image_id": outcome.image.image_id, "path": outcome.image.path, "reason": outcome.reason}
        with explaining_write_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
