"""The files that a run keeps next to its output: the settings of the features, and the images that failed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bua.errors import InputError
from bua.extraction.extractor import Outcome
from bua.extraction.shards import explaining_write_errors
from bua.io.files import whole_file
from bua.regular_files import read_regular

SETTINGS_SUFFIX, SHARDS_SUFFIX = "meta.json", "shards"


def path_beside(output: Path, suffix: str) -> Path:
    """Returns ``<output>.<suffix>``.

    Raises:
        InputError: The output has no name, such as ``.``.
    """
    if not output.name:
        raise InputError(f"{output}: is no name for an output; name a file, or a folder that it can create")
    return output.with_name(f"{output.name}.{suffix}")


def check_settings(output: Path, settings: Mapping[str, object]) -> None:
    """Checks that an output which already holds features was made with the same settings, so that the features of
    different detectors are never mixed.

    Raises:
        InputError: A setting differs from ``<output>.meta.json`` (the message names it), or that file is missing.
    """
    path = path_beside(output, SETTINGS_SUFFIX)
    try:
        if not _is_begun(output):
            return
    except OSError as error:
        raise InputError(f"{output}: cannot be read: {error.strerror}; choose another output") from error
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


@contextmanager
def settings_beside(output: Path, settings: Mapping[str, object]) -> Iterator[None]:
    """Writes ``<output>.meta.json`` for a block that writes the output. If the block fails before the output is begun,
    such as for a name that no file can have, the settings are removed again.

    Raises:
        InputError: The settings cannot be written.
    """
    path = path_beside(output, SETTINGS_SUFFIX)
    with explaining_write_errors(path), whole_file(path, durable=True, locked=True) as file:
        file.write(json.dumps(settings, indent=1).encode() + b"\n")
    try:
        yield
    except InputError:
        with explaining_write_errors(output):
            if not _is_begun(output):
                path.unlink(missing_ok=True)
        raise


def _is_begun(output: Path) -> bool:
    """Returns whether an output holds features. They can lie elsewhere before they get into it: those of HDF5, and
    those of tasks on Ray."""
    holds_some = any(output.iterdir()) if output.is_dir() else output.exists() and output.stat().st_size > 0
    return holds_some or any(path_beside(output, suffix).exists() for suffix in ("partial", SHARDS_SUFFIX))


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
