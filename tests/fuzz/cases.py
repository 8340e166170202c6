"""What a target of the fuzzers is, and how one case of it is made and judged."""

import contextlib
import io
import os
import resource
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from mutations import Files

from bua.errors import InputError

# What a case may take in memory beyond what the process had before, and what ends it, so that it does not harm others.
MEMORY_BOUND = 1 << 30
MEMORY_LIMIT = 3 << 30
# The scratch folders lie in memory where that is possible: removing them from a disk takes longer than most cases.
SCRATCH = next((folder for folder in ("/dev/shm",) if os.access(folder, os.W_OK)), None)
# A pickle that is meant to run code creates a folder of this name.
EXECUTED = "executed"


class Finding(AssertionError):
    """Raised when a case ends in another way than the documents say."""


@dataclass(frozen=True)
class Target:
    """A part of bua that reads files, and how to damage them.

    Attributes:
        kind: The group of targets that it belongs to: "images", "features", "checkpoints", "json" or "commands".
        samples: Returns the undamaged cases: files by their names.
        mutate: Returns a damaged case.
        check: Reads a case, in the current folder, and returns what it found in one word. An InputError is the outcome
            "refused", and every other exception is a finding. Its argument is the undamaged case.
        memory: What a case may take beyond what the process had before, in bytes. None is MEMORY_BOUND.
    """

    kind: str
    samples: Callable[[], Sequence[Files]]
    mutate: Callable[[Random, Files], Files]
    check: Callable[[Files], str]
    memory: int | None = None


@cache
def undamaged(target: Target) -> Sequence[Files]:
    """Returns the undamaged cases of a target, which are made once."""
    return target.samples()


def make_case(target: Target, seed: int) -> tuple[Files, Files]:
    """Returns the damaged case of a seed, and the undamaged one that it was made of."""
    random = Random(seed)
    sample = random.choice(undamaged(target))
    return target.mutate(random, sample), sample


def run_case(target: Target, files: Files, sample: Files, within: str | None = SCRATCH) -> str:
    """Writes a case into a new folder, reads it, and returns its outcome.

    Args:
        files, sample: The damaged and the undamaged files.
        within: Where the folder is made; it is removed at the end, except if the process does not survive.

    Raises:
        Finding: The case ended in another way than the documents say.
    """
    with tempfile.TemporaryDirectory(prefix="bua_fuzz_", dir=within) as scratch:
        # Files that are written to ../ or ../../ lie in the scratch folder, too.
        folder = Path(scratch, "above", "case")
        folder.mkdir(parents=True)
        write_files(folder, files)
        with contextlib.chdir(folder), _quiet(), _limited_memory() as peak:
            try:
                outcome = target.check(sample)
            except InputError as error:
                outcome = "refused"
                _check_message(str(error))
            except Finding:
                raise
            except (Exception, SystemExit) as error:  # what is raised is what is looked for
                raise Finding(f"{type(error).__name__}: {error}") from error
            used = peak()
        if used > (target.memory or MEMORY_BOUND):
            raise Finding(f"took {used >> 20} MiB of memory")
        outside = [path for path in Path(scratch).rglob("*") if folder not in (path, *path.parents)]
        if stray := [path for path in outside if path != folder.parent]:
            raise Finding(f"wrote outside of its folder: {stray[0]}")
        if any(folder.rglob(EXECUTED)):
            raise Finding("executed code of the file")
    return outcome


def write_files(folder: Path, files: Files) -> None:
    """Writes the files of a case. A name with "/" at its end is an empty folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_files(folder: Path) -> Files:
    """Returns all files below a folder by their relative names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_in_folder(make: Callable[[Path], object]) -> Files:
    """Returns the files that ``make`` writes into the folder that it is given."""
    with tempfile.TemporaryDirectory(prefix="bua_fuzz_", dir=SCRATCH) as folder, _quiet():
        make(Path(folder))
        return read_files(Path(folder))


def _check_message(message: str) -> None:
    """Checks that an error is one line, which a terminal shows as it is."""
    # ``str.isprintable`` is false for the no-break space and for code points without a character, too, which names of
    # files and images may have.
    acting = any(unicodedata.category(mark) in ("Cc", "Cs", "Zl", "Zp") for mark in message)
    if not message or acting:
        raise Finding(f"the message is not one printable line: {message[:300]!r}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _limited_memory() -> Iterator[Callable[[], int]]:
    """Limits the memory of this process for the duration of the block. The block gets a function that returns by how
    many bytes the process has grown at most."""
    sizes = Path("/proc/self/statm").read_text().split()
    pages, resident = int(sizes[0]), int(sizes[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_LIMIT, before[1]))
    try:
        yield lambda: _peak() - resident
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _peak() -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
