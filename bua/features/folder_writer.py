"""What the writers of formats with files of their own for each image share."""

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from bua.errors import InputError, make_folder
from bua.features.ids import ENCODED, MissedIds, id_of_file_stem, parse_id
from bua.io.files import check_in_place, move_file, sync_folder


class FolderWriter(ABC):
    """Writes the files of images into a folder. A subclass adds ``append``, which writes each file completely or not at
    all, even if the machine crashes, and calls ``_add``.

    Args:
        folder: The folder, which is created if it does not exist.
        suffix: The end of the name that each image has a file with.
        missed: What is wrong with the ids that readers will not find.

    Attributes:
        done: Ids of the images in the folder.

    Raises:
        InputError: The path is a file, or a folder that holds other files and none with this suffix.
    """

    def __init__(self, folder: str | Path, suffix: str, missed: str = ENCODED):
        self.path = make_folder(folder)
        self._folder = os.open(self.path, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._folder)
        self._missed = MissedIds(self.path, missed)
        names = sorted(os.listdir(self.path))
        others = [name for name in names if not name.endswith(".tmp")]
        if others and not any(name.endswith(suffix) for name in names):
            raise InputError(f"{self.path}: holds {others[0]}, and no {suffix} files; choose another output")
        self.done: set[int | str] = set(self._files(self.path))

    def merge(self, part: Path) -> None:
        """Moves the files of another folder here, except those of images in ``done``."""
        for image_id, names in self._files(part).items():
            if image_id not in self.done:
                for name in names:
                    move_file(part / name, self.path / name)
                self.done.add(image_id)
        sync_folder(self.path)

    def sync(self) -> None:
        """Checks that the folder is still there. ``append`` syncs each file."""
        check_in_place(self.path, self._folder)

    def finish(self) -> None:
        """Checks that the folder is still there. These formats have no other files."""
        self.sync()
        self._missed.report()

    def close(self) -> None:
        """Closes the folder."""
        self._release()

    @staticmethod
    @abstractmethod
    def _files(folder: Path) -> dict[int | str, Sequence[str]]:
        """Returns the names of each image's files in a folder, in the order in which they are written."""

    def _add(self, image_id: int | str, *, found: bool) -> None:
        """Records an image that was written.

        Args:
            found: Whether readers will find it by its id.
        """
        self.done.add(parse_id(image_id))
        if not found:
            self._missed.add(image_id)


def files_by_id(folder: Path, suffix: str) -> dict[int | str, str]:
    """Returns the names of the files in a folder that end with ``suffix`` by the ids of their images, in the order of
    the names.

    Raises:
        InputError: The folder cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(suffix))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return {id_of_file_stem(name.removesuffix(suffix)): name for name in names}
