"""Opens HDF5 files of other programs, and checks what is read from them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from bua.errors import InputError
from bua.features.checks import check_expansion
from bua.features.hdf5_heaps import check_heaps


def open_hdf5(path: Path) -> h5py.File:
    """Opens a file for reading.

    Raises:
        InputError: bua has not finished the file.
        OSError: It cannot be read, or is not HDF5.
    """
    if not path.exists() and path.with_name(f"{path.name}.partial").exists():
        raise InputError(f"{path}: is not finished; run the extraction again, or read {path.name}.partial")
    check_heaps(path)
    file = h5py.File(path, "r")
    try:
        # Where the table of names is damaged, looking for one would take all memory, while this fails at once.
        len(file)
    except RuntimeError as error:
        file.close()
        raise OSError(str(error)) from error
    return file


def data_set(group: h5py.Group, name: str, kinds: str = "fiu") -> h5py.Dataset | None:
    """Returns a data set of a file or group, or None if it has none with this name.

    Args:
        kinds: The allowed kinds of numpy's dtypes.

    Raises:
        ValueError: It takes its values from other files, which the author of this one may not be allowed to read, or
            has values of another kind.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], h5py.Dataset):
        return None
    item = group[name]
    if item.external is not None or item.is_virtual:
        raise ValueError(f"{name} takes its values from other files, which is not allowed")
    if item.dtype.kind not in kinds:
        raise ValueError(f"{name} has values of the type {item.dtype}")
    return item


def check_bytes(data: h5py.Dataset, name: str, size: int | None = None) -> None:
    """Checks the number of bytes that are about to be read, which are those of the whole data set by default. Parts of
    a data set that were never written, or that are compressed, take no place in the file.

    Raises:
        ValueError: The size is out of proportion. The message names ``name``.
    """
    if size is None:
        size = data.dtype.itemsize * math.prod(data.shape)
    chunk = data.dtype.itemsize * math.prod(data.chunks or ())  # HDF5 reads whole chunks
    check_expansion(name, max(size, chunk), data.id.get_storage_size())


@contextmanager
def report_damage(what: str, advice: str = "copy or write this file again") -> Iterator[None]:
    """Raises an InputError in one line, which begins with ``what`` and ends with ``advice``, for an error of HDF5."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        # Messages of HDF5 may have several lines.
        reason = str(error).partition("\n")[0]
        raise InputError(f"{what}: cannot be read as HDF5: {reason}; {advice}") from error
