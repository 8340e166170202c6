"""Opening features, whatever the format, for reading and for writing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bua.errors import InputError
from bua.features.npz import NpzFeatures, NpzWriter
from bua.features.tsv import FIELDS, TsvFeatures, TsvWriter
from bua.structures import Regions

FORMATS = (*FIELDS, "npz")

# image id -> Regions, read when asked for; may be handed to many processes.
FeatureStore = Mapping[int | str, Regions]


class FeatureWriter(Protocol):
    """Adds pictures to a file or folder of features. Every picture is written whole or not at all, so that a writer
    on the same path can go on at any time."""

    done: set[int | str]
    """The ids of the pictures that are there."""

    def append(self, regions: Regions) -> None: ...

    def close(self) -> None: ...


def open_features(path: str | Path) -> FeatureStore:
    """The features in a TSV file (the original's or LXMERT's columns) or in a folder of npz files.

    Ids that read as integers are integers; ``store[42]`` and ``store["42"]`` are the same.

    Raises:
        InputError: names the path, and what was expected there.
    """
    path = Path(path)
    if not path.is_dir():
        return TsvFeatures(path)
    store = NpzFeatures(path)
    if not store:
        raise InputError(f"{path}: no npz files in this folder; give a folder of npz files or a TSV file")
    return store


def open_writer(path: str | Path, format: str) -> FeatureWriter:
    """A writer that makes ``path`` (a file, for npz a folder) or goes on with it.

    Args:
        format: one of FORMATS.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; use one of {', '.join(FORMATS)}")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return NpzWriter(path) if format == "npz" else TsvWriter(path, format)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
