"""Unpacks archives: only what is asked for, into the folders that are named, and nothing else.

Each file gets its name when it is complete. So what was unpacked before an interruption is known by its size, and is
not unpacked again.
"""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from tqdm import tqdm

from bua.download.space import NoSpace, free_space, readable, writing
from bua.errors import InputError, make_folder
from bua.io.files import whole_file

_BLOCK = 1 << 20


def unpack(
    archive: str | Path, folder: str | Path, members: Mapping[str, str], *, progress: bool = True
) -> dict[Path, int]:
    """Unpacks files of a zip or tar archive, or a file that is compressed by gzip.

    Files that are there with the size that the archive says are kept.

    Args:
        archive: A .zip, a .tar (also .tar.gz, .tgz, .tar.bz2 and .tar.xz), or a .gz, which has one file, named like it.
        folder: What the folders of ``members`` are relative to.
        members: Pattern of the end of a path in the archive, such as "VG_100K/*.jpg" -> the folder to which such files
            are written, under their own names. Other files of the archive are left out.
        progress: Whether to show a progress bar, if standard error is a terminal.

    Returns:
        The paths of the files that are there now, and their sizes in bytes.

    Raises:
        InputError: The archive is damaged, has no file for a pattern, or has a path that leaves the folder; or a file
            cannot be written. The message names the archive or the file.
    """
    archive, folder = Path(archive), Path(folder)
    with _reading(archive), _open(archive) as entries:
        chosen = list(_chosen(archive, entries, members, folder))
        missing = [entry for entry, path in chosen if not _is_there(path, entry.size)]
        needed = sum(entry.size or 0 for entry in missing)
        if (lacking := needed - free_space(chosen[0][1])) > 0:
            raise NoSpace(
                f"{archive}: unpacking needs {readable(needed)}, of which {readable(lacking)} are missing on the disk; "
                "free them, and run the same command to go on"
            )
        for parent in {path.parent for _, path in chosen}:
            make_folder(parent)
        unpacked = {}
        total = sum(entry.size or 0 for entry, _ in chosen)
        disable = None if progress else True  # None: unless standard error is a terminal
        with tqdm(desc=f"unpacking {archive.name}", total=total, unit="B", unit_scale=True, disable=disable) as bar:
            for entry, path in chosen:
                if not _is_there(path, entry.size):
                    _write(entry, path)
                unpacked[path] = path.stat().st_size
                bar.update(unpacked[path])
    return unpacked


class _Entry(NamedTuple):
    """A file in an archive. ``size`` is None where the archive does not say it."""

    name: str
    size: int | None
    open: Callable[[], IO[bytes]]


class _Unreadable(Exception):
    """Raised when a file in an archive cannot be read, with an OSError as the cause: one of gzip, or of the disk."""


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turns the errors of reading an archive into one line that names it."""
    damages = (_Unreadable, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError, zlib.error)
    try:
        yield
    except damages as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{archive}: is damaged, or is another file ({reason}); delete it and fetch it again") from (
            error
        )


@contextmanager
def _open(archive: Path) -> Iterator[list[_Entry]]:
    """Opens an archive and gives its files. Links and devices are left out."""
    suffixes = [suffix.lower() for suffix in archive.suffixes]
    if suffixes[-1:] == [".zip"]:
        with zipfile.ZipFile(archive) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            yield [_Entry(info.filename, info.file_size, partial(file.open, info)) for info in infos]
    elif suffixes[-1:] == [".gz"] and suffixes[-2:-1] != [".tar"]:
        yield [_Entry(archive.stem, None, partial(_open_gzip, archive))]
    else:
        with tarfile.open(archive) as tar:
            regular = [info for info in tar if info.isreg()]
            # The checksum of a compressed archive is compared when its end is read.
            while tar.fileobj is not None and tar.fileobj.read(_BLOCK):
                pass
            yield [_Entry(info.name, info.size, partial(_open_in_tar, tar, info)) for info in regular]


def _open_gzip(archive: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(archive))


def _open_in_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    return cast(IO[bytes], tar.extractfile(info))  # None for what is not a regular file


def _chosen(
    archive: Path, entries: list[_Entry], members: Mapping[str, str], folder: Path
) -> Iterator[tuple[_Entry, Path]]:
    """Gives the files that are asked for, with the paths to which they are written."""
    found = set()
    for entry in entries:
        path = PurePosixPath(entry.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            raise InputError(
                f"{archive}: has a file {entry.name!r}, which would be written outside its folder; do not use it"
            )
        # macOS adds a file "._<name>" for each file.
        pattern = next((pattern for pattern in members if path.match(pattern)), None)
        if pattern is not None and not path.name.startswith("._"):
            found.add(pattern)
            yield entry, folder / members[pattern] / path.name
    if absent := [pattern for pattern in members if pattern not in found]:
        raise InputError(f"{archive}: has no {', no '.join(absent)}; it is another file than was expected")


def _is_there(path: Path, size: int | None) -> bool:
    return size is not None and path.is_file() and path.stat().st_size == size


def _write(entry: _Entry, path: Path) -> None:
    with entry.open() as source, writing(path), whole_file(path) as file:
        while block := _read(source):
            file.write(block)


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(_BLOCK)
    except OSError as error:  # it must not be taken for an error of writing
        raise _Unreadable(str(error)) from error
