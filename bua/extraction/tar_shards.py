"""Finds the images in WebDataset's tar shards from the headers of the archive, so that they can be read in place."""

import logging
import os
import tarfile
from collections.abc import Iterator

from bua.errors import InputError
from bua.regular_files import open_regular

TAR_BLOCK = 512  # bytes of a tar header

# What tarfile raises for damaged headers beside its own errors: it takes numbers and lengths in them on trust.
DAMAGE = (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError)

logger = logging.getLogger(__name__)


def images_in_shard(path: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """Yields (key, offset, size) of the images in a tar archive, in its order; offset and size in bytes.

    The key is WebDataset's: the member's name, with its folder, up to the first dot of the name. The part after that
    dot is the kind of the member. A member is an image if its kind as a whole is one of ``suffixes``: ``a.jpg`` is the
    image of ``a``, whereas ``a.b.jpg`` is the ``b.jpg`` of ``a`` and is left out, with a warning. Links are left out
    too.

    If the archive is truncated, this logs a warning and yields the images before that point, including one of which
    only the beginning is there, so that reading it fails and it is listed as failed.

    Args:
        suffixes: File name suffixes with their dot, in lower case.

    Raises:
        InputError: The file does not exist, or is not an uncompressed tar archive.
    """
    left_out: list[str] = []
    count = 0
    for member in _members(path):
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, *kinds = name.split(".")
        if not stem or not name.lower().endswith(suffixes) or member.isdir():
            continue
        if len(kinds) > 1 or not member.isreg() or member.issparse():
            left_out.append(member.name)
            continue
        count += 1
        yield folder + slash + stem, member.offset_data, member.size
    if left_out:
        logger.warning(
            "%s: %d images are left out, such as %s, which is a link or has a second dot in its name, so that "
            "WebDataset regards it as another part of the sample; repack the shard if you need them",
            path,
            len(left_out),
            left_out[0],
        )
    logger.debug("%s: %d images", path, count)


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield from _members_of(archive, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except DAMAGE as error:
        raise InputError(
            f"{path}: not an uncompressed tar archive ({error}); uncompress it if it is compressed, "
            "since images are read from the archive in place"
        ) from error


def _members_of(archive: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    end = 0
    try:
        while (member := archive.next()) is not None:
            if archive.offset <= end or member.size < 0:
                # It would lead back to members that have been read, again and again.
                raise tarfile.ReadError("a negative size")
            end = archive.offset
            # Otherwise the archive object keeps all members in memory.
            archive.members.clear()  # type: ignore[attr-defined]  # typeshed does not list it
            yield member
        whole = _is_complete(archive)
    except DAMAGE:
        whole = False
    if not whole:
        end = min(max(end, archive.offset), os.path.getsize(path))
        logger.warning("%s: truncated or damaged at byte %d; the rest is left out; download it again", path, end)


def _is_complete(archive: tarfile.TarFile) -> bool:
    """Returns whether zeros, or the end of the file, follow the last member. For tarfile, any other bytes are the end
    too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    return not any(archive.fileobj.read(TAR_BLOCK))
