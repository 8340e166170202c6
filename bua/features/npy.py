"""Reads arrays from npy and npz files of other programs, after checking the sizes that they claim."""

import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bua.features.checks import check_expansion
from bua.regular_files import open_regular

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an npy file, and returns the shape, whether columns come first, and the dtype.

    Args:
        file: Positioned at the start of the npy file.
        size: Number of bytes of the npy file.

    Raises:
        Exception: Almost any, if the header is damaged.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"has the version {version} of npy, but bua reads 1.0 and 2.0")
    shape, column_major, dtype = _HEADERS[version](file)
    needed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (not dtype.hasobject and needed > size):
        raise ValueError(f"claims the shape {shape} of {dtype}, but has only {size} bytes")
    return shape, column_major, dtype


def read_array(file: BinaryIO, size: int) -> np.ndarray:
    """Returns the array of an npy file, which is not an array of objects; arguments and errors as ``read_header``."""
    shape, column_major, dtype = read_header(file, size)
    if dtype.hasobject:
        raise ValueError("holds objects instead of numbers")
    needed = math.prod(shape) * dtype.itemsize
    data = bytearray(file.read(needed))  # a bytearray, so that the array can be written to
    if len(data) < needed:
        raise ValueError(f"is truncated: the shape {shape} of {dtype} needs {needed} bytes, and {len(data)} are there")
    return np.frombuffer(data, dtype, math.prod(shape)).reshape(shape, order="F" if column_major else "C")


class NpzFile:
    """An npz file, whose members are read one by one. Use it with ``with``.

    Args:
        source: The path of the file, or the open file.

    Attributes:
        names: The names of its arrays.

    Raises:
        Exception: Almost any, if the file is damaged, also when a member is read.
    """

    def __init__(self, source: Path | BinaryIO):
        self._file = open_regular(source) if isinstance(source, Path) else source
        try:
            self._archive = zipfile.ZipFile(self._file)
        except BaseException:
            self._file.close()
            raise
        self.names = {name.removesuffix(".npy") for name in self._archive.namelist()}

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()
        self._file.close()

    def array(self, name: str) -> np.ndarray:
        """Returns one array.

        Raises:
            KeyError: There is none with this name.
        """
        info = self._member(name)
        with self._archive.open(info) as member:
            return read_array(member, info.file_size)  # type: ignore[arg-type]

    def pickled(self, name: str) -> tuple[tuple[int, ...], np.dtype, bytes]:
        """Returns the shape, the dtype and the pickle of an array of objects."""
        info = self._member(name)
        with self._archive.open(info) as member:
            shape, _, dtype = read_header(member, info.file_size)  # type: ignore[arg-type]
            return shape, dtype, member.read()

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self.names:
            raise KeyError(f"{name} is not a file in the archive")
        info = self._archive.getinfo(f"{name}.npy")
        check_expansion(name, info.file_size, info.compress_size)
        return info
