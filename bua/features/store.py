"""Opens features of any format for reading and for writing."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from bua.errors import InputError
from bua.features.flat import FlatFeatures, FlatWriter
from bua.features.flat_files import HEADER_FILE
from bua.features.npz import NpzFeatures, NpzWriter
from bua.features.readers import format_for
from bua.features.tsv import TsvFeatures, TsvWriter
from bua.io.files import exclusive
from bua.regular_files import open_regular
from bua.structures import Regions

# Maps image ids to Regions, which are read when they are asked for. Many processes can use the same store.
FeatureStore = Mapping[int | str, Regions]

# What is known about features, as for ``open_writer``.
About = Mapping[str, object] | None


class FeatureWriter(Protocol):
    """Adds images to a file or folder of features.

    Each image is written completely or not at all, even if the process is killed or the disk is full. Images that were
    written before are never lost, and a new writer can continue with the same path at any time.

    Attributes:
        done: Ids of the images that were written.
    """

    done: set[int | str]

    def append(self, regions: Regions) -> None:
        """Writes one image.

        Raises:
            InputError: The format cannot hold the image.
            OSError: The image cannot be written, for example because the disk is full.
        """

    def sync(self) -> None:
        """Syncs all images so far to the disk, so that they are not lost if the machine crashes."""

    def finish(self) -> None:
        """Is called after the last image: syncs, and writes the files that readers expect next to the features."""

    def close(self) -> None:
        """Closes open files."""


def open_features(path: str | Path) -> FeatureStore:
    """Opens the features in a file or folder of any format. The format is recognised from the content.

    Ids that are integers in text form become integers: ``store[42]`` and ``store["42"]`` are the same.

    Raises:
        InputError: The path cannot be read, or does not hold features.
    """
    path = Path(path)
    return _open_folder(path) if path.is_dir() else _open_file(path)


@contextmanager
def open_writer(
    path: str | Path, format: str, about: About = None, reader: str | None = None
) -> Iterator[FeatureWriter]:
    """Opens a writer that creates ``path`` (a file or folder) or adds to it, and closes it when the block ends.

    Args:
        format: One of FORMATS.
        about: What is known about the features. The flat formats store it (vocabularies, configuration, hash of the
            weights); VinVL's format takes the vocabularies from it.
        reader: One of ``bua.features.readers.READERS`` for which to write the format, if its code reads another flavour
            of it.

    Raises:
        InputError: The path cannot be written, holds something else, or another process is writing to it.
    """
    check_format(format)
    format_for(reader, format)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    with exclusive(path), _labels_locked(path, reader):
        try:
            writer = FORMATS[format](path, format, about, reader)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            yield writer
        except BaseException:
            # The first error is the one to report. After a full disk, writing what is left would fail again.
            with suppress(OSError):
                writer.close()
            raise
        try:
            writer.close()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written: {error.strerror}; fix this and run the same command again to continue"
            ) from error


def check_format(format: str) -> None:
    """Raises an InputError if ``format`` is not one of FORMATS."""
    if format not in FORMATS:
        raise InputError(f"format {format!r}: is unknown; use one of {', '.join(FORMATS)}")


# The modules for HDF5, LMDB, VinVL and MMF are imported when they are needed, so that the other formats can be used
# without h5py and lmdb.


def _labels_locked(path: Path, reader: str | None) -> AbstractContextManager[None]:
    """Returns the lock on the file of labels beside features for Oscar, which those for retrieval share with all other
    features in the folder."""
    if reader is None or not reader.startswith("oscar-"):
        return nullcontext()
    from bua.features.oscar_labels import FLAVOURS

    return exclusive(FLAVOURS[reader].labels_file(path))


def _open_folder(path: Path) -> FeatureStore:
    try:
        suffixes = {os.path.splitext(name)[1] for name in os.listdir(path)}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if (path / HEADER_FILE).exists():
        return FlatFeatures(path)
    if (path / "data.mdb").exists():
        from bua.features.lmdb import LmdbFeatures

        return LmdbFeatures(path)
    if ".npz" in suffixes:
        return NpzFeatures(path)
    if ".npy" in suffixes:
        from bua.features.mmf import MmfFeatures

        return MmfFeatures(path)
    if ".pth" in suffixes:
        from bua.features.grid_pth import GridPthFeatures

        return GridPthFeatures(path)
    raise InputError(
        f"{path}: has no features: the folder has no {HEADER_FILE}, data.mdb, .npz, .npy or .pth files; name another "
        "folder"
    )


def _open_file(path: Path) -> FeatureStore:
    try:
        with open_regular(path) as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        from bua.features.hdf5 import open_hdf5_features

        return open_hdf5_features(path)
    if start[16:20] == b"\xde\xc0\xef\xbe":  # LMDB's magic number, after the header of its first page
        from bua.features.lmdb import LmdbFeatures

        return LmdbFeatures(path)
    cells = start.partition(b"\n")[0].split(b"\t")
    if cells[1:] and (cells[1].lstrip().startswith((b"{", b"[")) or (len(cells) == 3 and cells[1].isdigit())):
        from bua.features.vinvl import VinvlFeatures

        return VinvlFeatures(path)
    return TsvFeatures(path)


def _tsv(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    return TsvWriter(path, format)


def _npz(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    return NpzWriter(path, reader)


def _hdf5(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    if reader is not None:
        from bua.features.detections_hdf5 import DetectionsWriter

        return DetectionsWriter(path)
    from bua.features.hdf5 import Hdf5Writer

    return Hdf5Writer(path, format, _num_boxes(about))


def _num_boxes(about: About) -> int | None:
    """Returns the number of boxes of each image if the settings of the extraction fix it."""
    settings = (about or {}).get("settings")
    # Cells of a grid and given boxes are as many as there are.
    if not isinstance(settings, dict) or settings.get("grid") or settings.get("boxes"):
        return None
    least, most = settings.get("min_boxes"), settings.get("max_boxes")
    return least if type(least) is int and least == most else None


def _lmdb(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    from bua.features.lmdb import LmdbWriter

    return LmdbWriter(path, reader)


def _vinvl(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    from bua.features.vinvl import VinvlWriter

    return VinvlWriter(path, format, about, reader)


def _mmf(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    from bua.features.mmf import MmfWriter

    return MmfWriter(path)


def _grid_pth(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    from bua.features.grid_pth import GridPthWriter

    return GridPthWriter(path)


def _flat(path: Path, format: str, about: About, reader: str | None) -> FeatureWriter:
    return FlatWriter(path, "float16" if format == "flat-fp16" else "float32", about)


FORMATS: dict[str, Callable[[Path, str, About, str | None], FeatureWriter]] = {
    "tsv": _tsv,
    "lxmert-tsv": _tsv,
    "npz": _npz,
    "hdf5": _hdf5,
    "ban-hdf5": _hdf5,
    "vilbert-lmdb": _lmdb,
    "vinvl-tsv": _vinvl,
    "oscar-tsv": _vinvl,
    "mmf": _mmf,
    "grid-pth": _grid_pth,
    "flat": _flat,
    "flat-fp16": _flat,
}
# Those that hold the cells of feature maps only, not regions.
GRID_FORMATS = ("grid-pth",)
