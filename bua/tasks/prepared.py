"""Reads and writes the folders that the commands ``bua prepare-...`` prepare for the tasks.

Such a folder holds vocabularies, an npz file of arrays for each split, and a JSON file that says what the folder was
made from. The JSON file is written last, so that a folder without it is known to be incomplete.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson

from bua.errors import InputError, make_folder
from bua.features.npy import NpzFile
from bua.io.files import whole_file
from bua.regular_files import open_regular

# The file of word vectors, beside the files of the splits.
VECTORS = "word_vectors.npz"


class PreparedDataset:
    """A split of a prepared folder. The data sets of the tasks are dataclasses that derive from this class.

    Attributes:
        ARRAYS: Names of the fields that the file of a split holds as arrays.
        name: Path of the file, for messages.
        image_ids: [N] int64, the image of each of the N items.
    """

    ARRAYS: ClassVar[tuple[str, ...]]
    name: str
    image_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that ``save`` writes, by name."""
        return {name: getattr(self, name) for name in self.ARRAYS}

    def save(self, path: str | Path) -> None:
        """Writes the arrays to an npz file. The vocabularies are not part of it."""
        write_arrays(path, self.arrays())


def concatenate(
    datasets: Sequence[PreparedDataset], offsets: Collection[str] = ()
) -> tuple[str, dict[str, np.ndarray]]:
    """Joins the arrays of several data sets, one data set after the other.

    Args:
        datasets: At least one; all have the same arrays.
        offsets: Names of the arrays that hold offsets (see ``offsets_of``). All others are joined along their first
            dimension.

    Returns:
        The names of the data sets with " + " between them, and the joined arrays by name.

    Raises:
        InputError: The rows of an array have other lengths in one data set than in another.
    """
    parts, names = [dataset.arrays() for dataset in datasets], " + ".join(dataset.name for dataset in datasets)
    joined = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if len({value.shape[1:] for value in values}) > 1:
            raise InputError(f"{names}: the rows of {key} differ in length; prepare them together")
        joined[key] = (
            offsets_of(np.concatenate(list(map(np.diff, values)))) if key in offsets else np.concatenate(values)
        )
    return names, joined


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns [N + 1] int64 offsets for N groups of rows that lie one after the other: group i has the rows from
    ``offsets[i]`` to ``offsets[i + 1]`` - 1.

    Args:
        counts: [N], number of rows of each group.
    """
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def begin_folder(folder: str | Path, about: str, outdated: Iterable[str] = ()) -> Path:
    """Creates the folder that a program is going to prepare, and removes what an earlier run left in it.

    Args:
        about: Name of the file that the program writes last. It is removed first, so that a folder whose preparation
            was interrupted is known to be incomplete.
        outdated: Names of further files to remove, since they belong to the vocabularies of an earlier run.
    """
    folder = make_folder(folder)
    for name in (about, *outdated):
        (folder / name).unlink(missing_ok=True)
    return folder


def prepared_folder(folder: str | Path, about: str, program: str) -> Path:
    """Returns the path of a prepared folder.

    Args:
        about: Name of the file that ``program`` writes last.
        program: Name of the command that prepares such folders.

    Raises:
        InputError: There is no such folder, or ``about`` is not in it.
    """
    folder = Path(folder)
    if not (folder / about).is_file():
        raise InputError(f"{folder}: no {about} in it; prepare it with bua {program}")
    return folder


def read_split(folder: Path, split: str, needed: Sequence[str], program: str) -> tuple[str, dict[str, np.ndarray]]:
    """Reads the file of a split.

    Args:
        folder: As ``prepared_folder`` returns it.
        needed, program: As for ``read_arrays``.

    Returns:
        The path of the file, for messages, and its arrays by name.

    Raises:
        InputError: There is no such split, or its file is damaged.
    """
    path = folder / f"{split}.npz"
    if not path.exists():
        there = ", ".join(sorted(other.stem for other in folder.glob("*.npz") if other.name != VECTORS))
        raise InputError(f"{path}: no such split; {folder} has {there}")
    return str(path), read_arrays(path, needed, program)


def check_arrays(name: str, arrays: Mapping[str, np.ndarray], forms: Mapping[str, str], program: str) -> None:
    """Checks that arrays of one file have the kind and the number of dimensions that they must have, and all the same
    number of rows.

    Args:
        name: Path of the file, for the message.
        forms: For each array a letter and a number: "i2" is one of integers with two dimensions, "u" stands for
            unsigned integers, "f" for floating-point numbers, and "b" for bools. "i2x4" is one whose rows have four
            numbers.
        program: Name of the command that writes such files.

    Raises:
        InputError: An array is missing or has another form, or the numbers of rows differ.
    """
    for key, form in forms.items():
        array = arrays.get(key)
        kind_and_dimensions, _, columns = form.partition("x")
        found = None if array is None else f"{array.dtype.kind}{array.ndim}"
        if array is None or found != kind_and_dimensions or (columns and array.shape[1] != int(columns)):
            raise InputError(f"{name}: damaged ({key} is missing, or no such array); prepare it again: bua {program}")
    if len({arrays[key].shape[:1] for key in forms}) > 1:
        raise InputError(f"{name}: damaged ({', '.join(forms)} differ in length); prepare it again: bua {program}")


def check_ids(name: str, ids: np.ndarray, count: int, program: str) -> None:
    """Checks that the ids in an array of a split are those of the folder's vocabulary.

    Args:
        name: Path of the split's file, for the message.
        count: Number of ids that the vocabulary has, with that of padding if the array has it.
        program: Name of the command that prepares such folders.

    Raises:
        InputError: An id is out of range, as where the vocabulary is that of another run.
    """
    if ids.dtype.kind not in "iu" or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < count):
        raise InputError(f"{name}: has ids that the vocabulary beside it lacks; prepare it again with bua {program}")


def check_offsets(
    name: str, offsets: np.ndarray, total: int, program: str, count: int | None = None, *, least: int = 0
) -> None:
    """Checks the offsets of a split (see ``offsets_of``); arguments and errors as for ``check_ids``.

    Args:
        total: Number of rows that the groups have together.
        count: Number of groups, if it is known.
        least: Number of rows that each group has at least.
    """
    good = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) and offsets[0] == 0
    good = good and offsets[-1] == total and (np.diff(offsets) >= least).all() and count in (None, len(offsets) - 1)
    if not good:
        raise InputError(f"{name}: damaged (its arrays do not fit each other); prepare it again with bua {program}")


def read_word_vectors(folder: Path, program: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Reads the word vectors of a prepared folder.

    Args:
        folder: As ``prepared_folder`` returns it.

    Returns:
        The path of the file, and its arrays by name, floating-point numbers in two dimensions: "glove", with a row for
        each word of the vocabulary, and others.

    Raises:
        InputError: The folder was prepared without word vectors, or their file is damaged.
    """
    path = folder / VECTORS
    if not path.is_file():
        raise InputError(f"{path}: no such file; prepare it with bua {program} --glove")
    arrays = read_arrays(path, ("glove",), program)
    for key in arrays:
        check_arrays(str(path), arrays, {key: "f2"}, program)
    return path, arrays


def check_vectors(path: Path, vectors: np.ndarray, count: int, program: str) -> None:
    """Checks that an array of word vectors has a row for each of the ``count`` words or answers of the vocabulary.

    Raises:
        InputError: It has another number of rows, as where the vocabulary is that of another run.
    """
    if len(vectors) != count:
        raise InputError(
            f"{path}: has {len(vectors)} vectors for the {count} words or answers of the vocabulary beside it; prepare "
            f"it again with bua {program} --glove"
        )


def read_arrays(path: str | Path, needed: Sequence[str], program: str) -> dict[str, np.ndarray]:
    """Returns all arrays of an npz file by name.

    Args:
        needed: Names of the arrays that must be in it.
        program: Name of the command that wrote the file, for messages.

    Raises:
        InputError: The file cannot be read, is damaged, or lacks one of the needed arrays.
    """
    try:
        source = open_regular(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; prepare it with bua {program}") from error
    try:
        with NpzFile(source) as file:
            arrays = {name: file.array(name) for name in sorted(file.names)}
    except Exception as error:  # a damaged zip archive or header of an array can cause almost any error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: damaged ({reason}); prepare it again with bua {program}") from error
    lacking = [name for name in needed if name not in arrays]
    if lacking:
        raise InputError(f"{path}: lacks {', '.join(lacking)}; prepare it again with bua {program}")
    return arrays


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an npz file."""
    with whole_file(Path(path)) as file:
        # To numpy's types, each of the names might be the option "allow_pickle".
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_json(path: str | Path, content: Mapping[str, object], *, indent: bool = True) -> None:
    """Writes a JSON file."""
    with whole_file(Path(path)) as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 if indent else None))
