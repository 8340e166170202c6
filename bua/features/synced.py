"""How much of a file that grows is on the disk for certain: what a machine that dies leaves beyond is to be checked."""

import os
from pathlib import Path

from bua.io.files import sync_folder, whole_file


class SyncedMark:
    """``<file>.synced``, which says how many bytes of a file were on the disk when it was last synced."""

    def __init__(self, path: Path):
        self._path = path.with_name(f"{path.name}.synced")

    def exists(self) -> bool:
        return self._path.exists()

    def read(self, size: int) -> int:
        """How many of ``size`` bytes are known to be whole: all where no mark says otherwise."""
        try:
            return int(self._path.read_bytes())
        except FileNotFoundError:
            return size
        except ValueError:
            return 0

    def sync(self, file: int) -> None:
        """Returns when all of the file (a descriptor) is on the disk, and the mark says so."""
        os.fsync(file)
        with whole_file(self._path, durable=True) as mark:
            mark.write(b"%d\n" % os.fstat(file).st_size)

    def finish(self, file: int) -> None:
        """As ``sync``, for a file that is complete: it needs no mark."""
        os.fsync(file)
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)
