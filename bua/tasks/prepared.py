"""Reads the folders that the programs in ``datasets/`` prepare for the heads."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bua.errors import InputError

# Beside the splits, where the folder has words.
VECTORS = "word_vectors.npz"


def prepared_folder(folder: str | Path, about: str, program: str) -> Path:
    """The folder.

    Args:
        about: the file that ``program`` writes last.

    Raises:
        InputError: it is not there.
    """
    folder = Path(folder)
    if not (folder / about).is_file():
        raise InputError(f"{folder}: no {about} in it; prepare it with datasets/{program}")
    return folder


def read_split(folder: Path, split: str, needed: Sequence[str], program: str) -> tuple[str, dict[str, np.ndarray]]:
    """The name of a split's file, and its arrays; errors as for ``read_arrays``, and where there is no such split."""
    path = folder / f"{split}.npz"
    if not path.exists():
        there = ", ".join(sorted(other.stem for other in folder.glob("*.npz") if other.name != VECTORS))
        raise InputError(f"{path}: no such split; {folder} has {there}")
    return str(path), read_arrays(path, needed, program)


def read_arrays(path: str | Path, needed: Sequence[str], program: str) -> dict[str, np.ndarray]:
    """All arrays of an npz file that ``program`` wrote.

    Raises:
        InputError: it is damaged, or one of those that are needed is not in it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); prepare it again with datasets/{program}") from error
    lacking = [name for name in needed if name not in arrays]
    if lacking:
        raise InputError(f"{path}: lacks {', '.join(lacking)}; prepare it again with datasets/{program}")
    return arrays
