"""Unpacks archives: only what is asked for, into the folders that are named, and nothing else.

Each file gets its name when it is complete. So what was unpacked before an interruption is known by its size, and is
not unpacked again.
"""

import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from tqdm import tqdm

from bua.download.space import NoSpace, free_space, readable, writing
from bua.errors import InputError, make_folder
from bua.io.files import whole_file

_BLOCK = 1 << 20
# Archives of data sets have fewer files, and do not grow as much. Others could fill the memory and the disk.
_MAX_FILES = 1_000_000
_MAX_GROWTH = 100
_SMALL = 1_000_000_000  # bytes; what is unpacked may be as large in any case
_MAX_NAME = 4096
# What the standard library raises for damaged and encrypted archives of each kind, beside errors of its own.
_DAMAGES = (
    *(OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


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
        InputError: The archive is damaged or encrypted, has no file for a pattern, a path that leaves the folder or is
            not printable, or far more content than its size allows; or a file cannot be written. The message names the
            archive or the file.
    """
    archive, folder = Path(archive), Path(folder)
    most = max(_SMALL, _MAX_GROWTH * archive.stat().st_size) if archive.is_file() else 0
    with _reading(archive), _open(archive) as entries:
        chosen = list(_chosen(archive, entries, members, folder))
        missing = [entry for entry, path in chosen if not _is_there(path, entry.size)]
        needed = sum(entry.size or 0 for entry in missing)
        if needed > most:
            raise _TooLarge
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
                    _write(entry, path, most)
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


class _TooLarge(Exception):
    """Raised when an archive has far more content than an archive of its size has."""


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turns the errors of reading an archive into one line that names it."""
    try:
        yield
    except InputError:  # it is a ValueError
        raise
    except _TooLarge:
        raise InputError(
            f"{archive}: unpacks to more than {_MAX_GROWTH} times its size, as no archive of a data set does; do not "
            "use it"
        ) from None
    except (_Unreadable, *_DAMAGES) as error:
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
            if len(file.infolist()) > _MAX_FILES:
                raise _TooLarge
            infos = [info for info in file.infolist() if not info.is_dir()]
            yield [_Entry(info.filename, info.file_size, partial(file.open, info)) for info in infos]
    elif suffixes[-1:] == [".gz"] and suffixes[-2:-1] != [".tar"]:
        yield [_Entry(archive.stem, None, partial(_open_gzip, archive))]
    else:
        with open(archive, "rb") as packed, _Tar.open(fileobj=packed) as tar:
            regular = list(_regular(tar))
            # The checksum of a compressed archive is compared when its end is read.
            while tar.fileobj is not None and tar.fileobj.read(_BLOCK):
                pass
            yield [_Entry(info.name, info.size, partial(_open_in_tar, tar, info)) for info in regular]


class _Tar(tarfile.TarFile):
    """A tar archive that cannot make tarfile read more than a block into memory at once."""

    def __init__(self, name: Any, mode: Any, fileobj: Any, **options: Any):
        super().__init__(name, mode, _Blocks(fileobj), **options)


class _Blocks:
    """A file that is read in blocks. tarfile reads a header in one piece, whose size the header itself claims."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _regular(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Gives the regular files of a tar archive, without what else its headers hold."""
    count, end = 0, -1
    while (info := tar.next()) is not None:
        if info.size < 0 or tar.offset <= end:  # tarfile would read the same headers for ever
            raise tarfile.ReadError("a header has a negative size")
        count, end = count + 1, tar.offset
        if count > _MAX_FILES:
            raise _TooLarge
        if len(info.name) > _MAX_NAME:
            raise tarfile.ReadError(f"a name has {len(info.name)} characters")
        tar.members.clear()  # type: ignore[attr-defined] # tarfile collects all that it has read
        info.pax_headers = {}
        if info.isreg():
            yield info


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
                f"{archive}: has a file {entry.name[:200]!r}, which would be written outside its folder; do not use it"
            )
        # macOS adds a file "._<name>" for each file.
        pattern = next((pattern for pattern in members if path.match(pattern)), None)
        if pattern is not None and not path.name.startswith("._"):
            if not path.name.isprintable():  # it could not be listed
                raise InputError(
                    f"{archive}: has a file {entry.name[:200]!r}, whose name is not printable; do not use it"
                )
            found.add(pattern)
            yield entry, folder / members[pattern] / path.name
    if absent := [pattern for pattern in members if pattern not in found]:
        raise InputError(f"{archive}: has no {', no '.join(absent)}; it is another file than was expected")


def _is_there(path: Path, size: int | None) -> bool:
    return size is not None and path.is_file() and path.stat().st_size == size


def _write(entry: _Entry, path: Path, most: int) -> None:
    with entry.open() as source, writing(path), whole_file(path, locked=True) as file:
        while block := _read(source):
            file.write(block)
            if file.tell() > most:
                raise _TooLarge


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(_BLOCK)
    except OSError as error:  # it must not be taken for an error of writing
        raise _Unreadable(str(error)) from error
