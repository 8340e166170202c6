"""The shards of an output: parts that processes on several devices, or tasks on Ray, write next to it.

A shard is a folder in ``<output>.shards``. As long as a process writes a shard, it is the only one to do so, and no
other process ever continues it. The main process merges a shard into the output when it is complete, and removes it
when the output has its images on the disk. Shards of a run that was killed are merged by the next run, whatever devices
that has. Therefore an image of which a process has said that it is written is in a shard or in the output at any time.
An image can be in two shards, if a process dies between writing it and saying so; then the first one is taken.
"""

import errno
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bua.errors import InputError
from bua.extraction.extractor import Outcome
from bua.extraction.sources import ImageFile
from bua.features import FeatureWriter, open_writer
from bua.features.parts import merge_part, part_format

# Seconds until a process starts its next shard. They are not synced, so that small ones may never get to the disk: if
# the machine crashes, the work of this time is lost in addition to that since the last sync of the output.
SHARD_SECONDS = 10

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = {
    errno.ENOENT: "put back what was deleted or moved,",
    errno.ENOTDIR: "put back what was deleted or moved,",
    errno.EACCES: "give yourself the permission",
    errno.EPERM: "give yourself the permission",
    errno.EROFS: "make the disk writable",
}

_FEATURES, _SHARD, _MERGED = "features", ".shard", ".merged"

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """An image whose regions are in a shard."""

    image: ImageFile


class Shard(NamedTuple):
    """A shard that is complete, so that it can be merged."""

    path: Path


@dataclass(frozen=True)
class ShardFolder:
    """The folder of an output's shards, also in other processes and on other machines.

    Attributes:
        path: The folder.
        format: The output's format. The shards have its ``bua.features.parts.part_format``.
        about, reader: As for ``bua.features.open_writer``.
    """

    path: Path
    format: str
    about: Mapping[str, object]
    reader: str | None = None

    def new(self) -> Path:
        """Returns the path of a shard that does not exist."""
        return self.path / f"{uuid.uuid4().hex}{_SHARD}"

    def shards(self) -> list[Path]:
        return sorted(self.path.glob(f"*{_SHARD}"))

    def open(self, shard: Path) -> AbstractContextManager[FeatureWriter]:
        """Opens a writer for a shard, which deletes an incomplete image at its end."""
        format = part_format(self.format, self.about)
        # A part in another format than the output's has nothing of the reader's flavour.
        return open_writer(shard / _FEATURES, format, self.about, self.reader if format == self.format else None)


class ShardWriter:
    """Writes outcomes into one shard after another."""

    def __init__(self, folder: ShardFolder):
        self._folder = folder
        self._path: Path | None = None

    def write(self, outcome: Outcome) -> Outcome | Written:
        """Writes the regions of an outcome, if it has any, into the open shard or a new one.

        Returns:
            The outcome if the image failed, or if the format cannot hold it.

        Raises:
            InputError: The shard cannot be written.
        """
        if outcome.regions is None:
            return outcome
        with explaining_write_errors(self._folder.path):
            if self._path is None:
                self._path, self._opened = self._folder.new(), time.monotonic()
                self._context = self._folder.open(self._path)
                self._writer = self._context.__enter__()
            return write_outcome(self._writer, outcome)

    def close(self, min_seconds: float = 0) -> Shard | None:
        """Completes the open shard, if there is one and it was begun at least ``min_seconds`` ago, and returns it.

        Raises:
            InputError: The shard cannot be written.
        """
        if self._path is None or time.monotonic() - self._opened < min_seconds:
            return None
        path, self._path = self._path, None
        with explaining_write_errors(self._folder.path):
            self._context.__exit__(None, None, None)
        return Shard(path)


class ShardMerger:
    """Merges shards into the output, and removes them."""

    def __init__(self, folder: ShardFolder, writer: FeatureWriter):
        """
        Args:
            writer: The output's writer.
        """
        self.folder, self.writer = folder, writer
        self._merged: list[Path] = []

    def merge(self, shard: Shard) -> dict[int | str, str]:
        """Adds the images of a complete shard to the output.

        Returns:
            The reason for each image that the output's format cannot hold, by its id.
        """
        reasons = merge_part(shard.path / _FEATURES, self.writer)
        self._merged.append(shard.path)
        return reasons

    def merge_rest(self) -> dict[int | str, str]:
        """Merges all shards that have not been merged, which processes left that died, without an image that is
        incomplete. A shard that is damaged is left out, with a warning. Returns what ``merge`` returns.

        Raises:
            InputError: The disk is full.
        """
        reasons: dict[int | str, str] = {}
        for shard in self.folder.shards():
            if shard not in self._merged:
                try:
                    with self.folder.open(shard):
                        reasons |= self.merge(Shard(shard))
                except InputError as error:
                    if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
                        raise  # it is not damaged
                    logger.warning("%s; this shard is left out", error)
        return reasons

    def sync(self) -> None:
        """Syncs the output, and then removes the shards that it has."""
        self.writer.sync()
        for shard in self._merged:
            # Another name first, since a folder that is partly removed is not a shard.
            shutil.rmtree(shard.rename(shard.with_suffix(_MERGED)))
        self._merged.clear()

    def remove(self) -> None:
        """Removes the whole folder, when the output is complete and synced."""
        shutil.rmtree(self.folder.path, ignore_errors=True)


def write_outcome(writer: FeatureWriter, outcome: Outcome) -> Outcome | Written:
    """Writes the regions of an outcome, if it has any. Returns the outcome if the image failed, or if the writer's
    format cannot hold it."""
    if outcome.regions is None:
        return outcome
    try:
        writer.append(outcome.regions)
    except InputError as error:
        return Outcome(outcome.image, None, str(error))
    return Written(outcome.image)


@contextmanager
def explaining_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        first = "make room" if error.errno in _NO_ROOM else _ADVICE.get(error.errno or 0, "fix this")
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; {first} and run the same command again to continue"
        ) from error
