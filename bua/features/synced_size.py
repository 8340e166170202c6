"""Records how much of a growing file is certainly on the disk. The rest must be checked after the machine crashed."""

import os
from pathlib import Path

from bua.io.files import sync_folder, whole_file
from bua.regular_files import read_regular


class SyncedSize:
    """The file ``<file>.synced``, which holds the size in bytes of another file when that was last synced."""

    def __init__(self, path: Path):
        self._path = path.with_name(f"{path.name}.synced")

    def exists(self) -> bool:
        return self._path.exists()

    def read(self, size: int) -> int:
        """Returns how many of the file's ``size`` bytes are certainly on the disk: all if there is no record, and none
        if the record cannot be read."""
        try:
            return int(read_regular(self._path))
        except FileNotFoundError:
            return size
        except (OSError, ValueError):
            return 0

    def sync(self, file: int) -> None:
        """Syncs the file (a descriptor) to the disk, and then records its size."""
        os.fsync(file)
        with whole_file(self._path, durable=True, locked=True) as record:
            record.write(b"%d\n" % os.fstat(file).st_size)

    def finish(self, file: int) -> None:
        """Syncs the file (a descriptor), which is complete now, and deletes the record."""
        os.fsync(file)
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)
