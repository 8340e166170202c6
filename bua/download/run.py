"""Fetches data sets: says first what it will do and how much space that takes, and afterwards what to do next."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bua.download.archives import unpack
from bua.download.catalog import CATALOG
from bua.download.data_set import DataSet, File
from bua.download.http import ATTEMPTS, TIMEOUT, WAIT, fetch
from bua.download.space import NoSpace, existing, free_space, readable, writing
from bua.errors import InputError, make_folder
from bua.io.files import exclusive, whole_file
from bua.regular_files import read_regular


def download(
    names: Sequence[str],
    root: str | Path,
    *,
    only: Sequence[str] = (),
    keep_archives: bool = False,
    dry_run: bool = False,
    catalog: Mapping[str, DataSet] = CATALOG,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    wait: float = WAIT,
    progress: bool = True,
    show: Callable[[str], object] = print,
) -> None:
    """Fetches data sets from their official addresses, and unpacks them into the folders that bua expects.

    What is there and complete is not fetched again, and what was cut goes on where it was cut. If one file fails, the
    others are fetched nevertheless.

    Args:
        names: Names of data sets.
        root: Folder of all data sets.
        only: Names of their parts; by default all that are not optional.
        keep_archives: Whether archives stay after they are unpacked.
        dry_run: Whether only to say what would be fetched, and how much space that takes.
        catalog: The data sets.
        timeout, attempts, wait: As for ``bua.download.fetch``.
        progress: Whether to show progress bars, if standard error is a terminal.
        show: What is called with each line about the files, the space and the next commands.

    Raises:
        InputError: A name is unknown, the space on the disk does not suffice, or files could not be fetched. The
            message of the last says which, and why.
    """
    root = Path(root)
    steps = []
    for name, part, files in _choose(names, only, catalog):
        for file in files:
            step = _Step.plan(file, root, keep_archives)
            steps.append(step)
            show(f"{name:14} {part:12} {file.name:30} {_size(file):>8}  {step.state}")
    _check_space([step for step in steps if not step.is_done], root, keep_archives, show)
    if dry_run:
        return
    failures = []
    for step in steps:
        if step.is_done:
            continue
        show(f"fetching {step.file.url}")
        try:
            step.run(root, keep_archives, timeout, attempts, wait, progress)
        except NoSpace:
            raise
        except InputError as error:
            show(f"failed: {error}")
            failures.append((step.file.name, error))
    for name in dict.fromkeys(names):
        _say_what_is_next(catalog[name], root, show)
    if failures:
        names_of_files = ", ".join(name for name, _ in failures)
        raise InputError(
            f"{len(failures)} of {len(steps)} files could not be fetched, and the same command tries them again: "
            f"{names_of_files} (the first: {failures[0][1]})"
        )


@dataclass
class _Step:
    """What is to do for one file.

    Attributes:
        file: The file.
        state: What is there, in a few words.
        is_done: Whether nothing is to do.
        to_fetch, to_unpack: Numbers of bytes that are still to fetch and to unpack, as far as they are known.
    """

    file: File
    state: str
    is_done: bool = False
    to_fetch: int = 0
    to_unpack: int = 0

    @classmethod
    def plan(cls, file: File, root: Path, keep_archive: bool) -> "_Step":
        target = root / file.target
        if not file.members:
            # The programs that prepare data read compressed lists, too.
            found = next((path for path in (target, target.with_name(f"{target.name}.gz")) if path.is_file()), None)
            if found:
                differs = found == target and file.size not in (None, target.stat().st_size)
                return cls(
                    file, "is there, but is another file; delete it to fetch it" if differs else "is there", True
                )
            return cls(file, *_to_fetch(file, target))
        if _is_recorded(file, root):
            return cls(file, "is there", True)
        count, size = _unpacked(file, root)
        if not _record(file, root).is_file() and file.count is not None and count >= file.count:
            return cls(file, "is there (its files were only counted)", True)
        to_unpack = max(0, (file.unpacked or file.size or 0) - size)
        if target.is_file() and file.size in (None, target.stat().st_size):
            return cls(file, "to unpack" if keep_archive else "to unpack and then to delete", to_unpack=to_unpack)
        return cls(file, *_to_fetch(file, target), to_unpack=to_unpack)

    def run(self, root: Path, keep_archive: bool, timeout: float, attempts: int, wait: float, progress: bool) -> None:
        """Fetches the file and unpacks it."""
        file, target, record = self.file, root / self.file.target, _record(self.file, root)
        make_folder(target.parent)
        # Another process that does the same must wait until all is unpacked.
        with exclusive(record):
            fetch(
                file.url,
                target,
                size=file.size,
                checksum=file.checksum,
                timeout=timeout,
                attempts=attempts,
                wait=wait,
                progress=progress,
            )
            if not file.members:
                return
            files = unpack(target, root, file.members, progress=progress)
            with writing(record), whole_file(record, locked=True) as listing:
                for path, size in files.items():
                    listing.write(f"{size}\t{path.relative_to(root)}\n".encode())
            if not keep_archive:
                target.unlink()


def _choose(
    names: Sequence[str], only: Sequence[str], catalog: Mapping[str, DataSet]
) -> list[tuple[str, str, tuple[File, ...]]]:
    """Returns the parts to fetch: name of the data set, name of the part, files."""
    for name in names:
        if name not in catalog:
            raise InputError(f"{name}: is not a data set that can be fetched; the names are {', '.join(catalog)}")
    parts = [(name, part) for name in dict.fromkeys(names) for part in catalog[name].parts]
    known = list(dict.fromkeys(part for _, part in parts))
    for part in only:
        if part not in known:
            raise InputError(f"--only {part}: {', '.join(names)} has no such part; the parts are {', '.join(known)}")
    return [
        (name, part, catalog[name].parts[part].files)
        for name, part in parts
        if (part in only if only else not catalog[name].parts[part].optional)
    ]


def _to_fetch(file: File, target: Path) -> tuple[str, bool, int]:
    """Returns state, is_done and to_fetch of a file that is not there, or only its beginning."""
    partial = target.with_name(f"{target.name}.part")
    have = partial.stat().st_size if partial.is_file() else 0
    state = f"to fetch, from {readable(have)} on" if have else "to fetch"
    return state, False, max(0, (file.size or 0) - have)


def _record(file: File, root: Path) -> Path:
    """Returns the path of the file that lists what was unpacked: sizes and paths."""
    target = root / file.target
    return target.with_name(f".{target.name}.unpacked")


def _is_recorded(file: File, root: Path) -> bool:
    """Returns whether everything that was unpacked is still there, with its size."""
    try:
        lines = read_regular(_record(file, root)).decode().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    for line in lines:
        size, _, name = line.partition("\t")
        path = root / name
        if not path.is_file() or str(path.stat().st_size) != size:
            return False
    return bool(lines)


def _unpacked(file: File, root: Path) -> tuple[int, int]:
    """Returns the number, and the size in bytes, of the files that are there of those that unpacking gives."""
    sizes = [
        path.stat().st_size
        for pattern, folder in file.members.items()
        for path in (root / folder).glob(PurePosixPath(pattern).name)
    ]
    return len(sizes), sum(sizes)


def _check_space(steps: Sequence[_Step], root: Path, keep_archives: bool, show: Callable[[str], object]) -> None:
    """Says how much is to fetch, and how much space that takes on each disk until all is unpacked.

    Raises:
        NoSpace: A disk has less.
    """
    used: dict[int, int] = {}
    most: dict[int, int] = {}
    places: dict[int, Path] = {}
    # The folder that holds all of a disk's places, for messages. A part of it may lie on another disk.
    shown: dict[int, str] = {}

    def take(place: Path, size: int) -> None:
        disk = existing(place).stat().st_dev
        places.setdefault(disk, place)
        shown[disk] = os.path.commonpath((shown.get(disk, place), place))
        used[disk] = used.get(disk, 0) + size
        most[disk] = max(most.get(disk, 0), used[disk])

    for step in steps:
        archive = (root / step.file.target).parent
        take(archive, step.to_fetch)
        if step.file.members:
            take(root / next(iter(step.file.members.values())), step.to_unpack)
            if not keep_archives:
                take(archive, -(step.file.size or 0))
    if not most:
        show("everything is there")
    else:
        show(f"to fetch: {readable(sum(step.to_fetch for step in steps))}")
    for disk, size in most.items():
        free = free_space(places[disk])
        show(f"{shown[disk]}: needs about {readable(size)} of disk space, and {readable(free)} are free")
        if size > free:
            raise NoSpace(
                f"{shown[disk]}: {readable(size - free)} of disk space are missing; free them, choose another folder "
                "with --root, or fetch parts with --only"
            )


def _size(file: File) -> str:
    return "?" if file.size is None else readable(file.size)


def _say_what_is_next(data_set: DataSet, root: Path, show: Callable[[str], object]) -> None:
    there = {
        name
        for name, part in data_set.parts.items()
        if all(_Step.plan(file, root, True).is_done for file in part.files)
    }
    for note in data_set.notes:
        show(f"note: {note.format(root=root)}")
    for parts, command in data_set.next.items():
        if there.issuperset(parts.split("+")):
            show(f"next: {command.format(root=root)}")
