"""What is known about a data set that can be fetched: its parts, and their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class File:
    """A file on a server.

    Attributes:
        url: Its address.
        target: Path below the folder of all data sets to which it is written.
        size: Its size in bytes.
        checksum: "sha256:", "md5:" or "git:" and a hexadecimal number. The last is the id that git gives to a file.
        members: For an archive, what is unpacked: pattern of the end of a path in the archive -> folder below the
            folder of all data sets. An empty mapping means that the file is used as it is.
        unpacked: About how many bytes unpacking gives, if it differs much from ``size``.
        count: Number of files that unpacking gives at least. Files that were unpacked in another way are recognised by
            it.
    """

    url: str
    target: str
    size: int | None = None
    checksum: str | None = None
    members: Mapping[str, str] = field(default_factory=dict)
    unpacked: int | None = None
    count: int | None = None

    @property
    def name(self) -> str:
        return self.target.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """A part of a data set that can be fetched alone.

    Attributes:
        about: What it is, in a few words.
        files: Its files.
        optional: Whether it is fetched only if it is asked for.
    """

    about: str
    files: tuple[File, ...]
    optional: bool = False


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        about: What it is, in a few words.
        parts: Its parts by name.
        notes: Lines that say what cannot be fetched, and where to ask for it; {root} stands for the folder of all data
            sets.
        next: For each name of a part, or several names joined by "+", the command that uses it; {root} as above.
    """

    about: str
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()
    next: Mapping[str, str] = field(default_factory=dict)
