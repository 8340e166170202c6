"""Opening features, whatever the format, for reading and for writing."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from bua.errors import InputError
from bua.features.flat import FlatFeatures, FlatWriter
from bua.features.flat_files import HEADER
from bua.features.npz import NpzFeatures, NpzWriter
from bua.features.tsv import TsvFeatures, TsvWriter
from bua.io.files import exclusive
from bua.structures import Regions

# image id -> Regions, read when asked for; may be handed to many processes.
FeatureStore = Mapping[int | str, Regions]


class FeatureWriter(Protocol):
    """Adds images to a file or folder of features.

    Every image is written whole or not at all, also where the process is killed or the disk full, and what was
    written is never lost; a writer on the same path goes on at any time.
    """

    done: set[int | str]
    """The ids of the images that are there."""

    def append(self, regions: Regions) -> None:
        """Writes one image; InputError where the format cannot hold it, OSError where there is no room."""

    def sync(self) -> None:
        """Returns when what was appended is on the disk: a machine that dies then costs nothing of it."""

    def finish(self) -> None:
        """After the last image: syncs, and makes the files that readers want beside the features."""

    def close(self) -> None:
        """Gives handles back."""


def open_features(path: str | Path) -> FeatureStore:
    """The features in a file or folder of any of the formats, which is told from its content.

    Ids that read as integers are integers; ``store[42]`` and ``store["42"]`` are the same.

    Raises:
        InputError: names the path, and what was expected there.
    """
    path = Path(path)
    return _open_folder(path) if path.is_dir() else _open_file(path)


@contextmanager
def open_writer(path: str | Path, format: str, about: dict | None = None) -> Iterator[FeatureWriter]:
    """A writer that makes ``path`` (a file or folder) or goes on with it; closed when the block ends.

    Args:
        format: one of FORMATS.
        about: what the flat formats keep about the features: vocabularies, configuration, weights' hash.

    Raises:
        InputError: the path cannot be written, holds something else, or another process writes to it.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; use one of {', '.join(FORMATS)}")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    with exclusive(path):
        try:
            writer = FORMATS[format](path, format, about)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            yield writer
        finally:
            writer.close()


# h5py and lmdb are imported when a file asks for them, so that the others can be read without.


def _open_folder(path: Path) -> FeatureStore:
    try:
        suffixes = {os.path.splitext(name)[1] for name in os.listdir(path)}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if (path / HEADER).exists():
        return FlatFeatures(path)
    if (path / "data.mdb").exists():
        from bua.features.lmdb import LmdbFeatures

        return LmdbFeatures(path)
    if ".npz" in suffixes:
        return NpzFeatures(path)
    if ".npy" in suffixes:
        from bua.features.mmf import MmfFeatures

        return MmfFeatures(path)
    raise InputError(f"{path}: no features in this folder: no {HEADER}, data.mdb, .npz or .npy files")


def _open_file(path: Path) -> FeatureStore:
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        from bua.features.hdf5 import Hdf5Features

        return Hdf5Features(path)
    if start[16:20] == b"\xde\xc0\xef\xbe":  # LMDB's magic number behind the header of its first page
        from bua.features.lmdb import LmdbFeatures

        return LmdbFeatures(path)
    cells = start.partition(b"\n")[0].split(b"\t")
    if cells[1:] and (cells[1].lstrip().startswith((b"{", b"[")) or (len(cells) == 3 and cells[1].isdigit())):
        from bua.features.vinvl import VinvlFeatures

        return VinvlFeatures(path)
    return TsvFeatures(path)


def _tsv(path: Path, format: str, about: dict | None) -> FeatureWriter:
    return TsvWriter(path, format)


def _npz(path: Path, format: str, about: dict | None) -> FeatureWriter:
    return NpzWriter(path)


def _hdf5(path: Path, format: str, about: dict | None) -> FeatureWriter:
    from bua.features.hdf5 import Hdf5Writer

    return Hdf5Writer(path, format)


def _lmdb(path: Path, format: str, about: dict | None) -> FeatureWriter:
    from bua.features.lmdb import LmdbWriter

    return LmdbWriter(path)


def _vinvl(path: Path, format: str, about: dict | None) -> FeatureWriter:
    from bua.features.vinvl import VinvlWriter

    return VinvlWriter(path, format, about)


def _mmf(path: Path, format: str, about: dict | None) -> FeatureWriter:
    from bua.features.mmf import MmfWriter

    return MmfWriter(path)


def _flat(path: Path, format: str, about: dict | None) -> FeatureWriter:
    return FlatWriter(path, "float16" if format == "flat-fp16" else "float32", about)


FORMATS: dict[str, Callable[[Path, str, dict | None], FeatureWriter]] = {
    "tsv": _tsv,
    "lxmert-tsv": _tsv,
    "npz": _npz,
    "hdf5": _hdf5,
    "ban-hdf5": _hdf5,
    "vilbert-lmdb": _lmdb,
    "vinvl-tsv": _vinvl,
    "oscar-tsv": _vinvl,
    "mmf": _mmf,
    "flat": _flat,
    "flat-fp16": _flat,
}
