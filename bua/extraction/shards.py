"""Images in WebDataset's tar shards: found by the archive's headers alone, to be read where they lie."""

import logging
import os
import tarfile
from collections.abc import Iterator

from bua.errors import InputError

BLOCK = 512  # bytes of a tar header

logger = logging.getLogger(__name__)


def images_in_shard(path: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """Yields (key, offset, size) of the images in a tar archive, in its order; offset and size in bytes.

    The key is WebDataset's: the member's name, with its folder, up to the first dot after it; what follows that dot
    says what the member is. Members are images if that is one of ``suffixes`` as a whole: ``a.jpg`` is the image
    of ``a``, while ``a.b.jpg`` is the ``b.jpg`` of ``a`` and is left out, with a warning. So are links.

    An archive that is cut short gives a warning and the images before that; one of which only the beginning is
    there is among them, so that reading it fails where failures are listed.

    Args:
        suffixes: with their dot, in lower case.

    Raises:
        InputError: no such file, or not an uncompressed tar archive.
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
            "%s: %d images are left out, such as %s: a link, or its name has a dot before the one of the suffix, "
            "which WebDataset takes for another part of the sample; repack the shard if you want them",
            path,
            len(left_out),
            left_out[0],
        )
    logger.debug("%s: %d images", path, count)


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as archive:
            yield from _members_of(archive, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except tarfile.TarError as error:
        raise InputError(
            f"{path}: not an uncompressed tar archive ({error}); uncompress it if it is compressed, "
            "since images are read from where they lie"
        ) from error


def _members_of(archive: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    try:
        while (member := archive.next()) is not None:
            # It remembers all members otherwise.
            archive.members.clear()
            yield member
        whole = _ends_there(archive)
    except tarfile.ReadError:
        whole = False
    if not whole:
        end = min(archive.offset, os.path.getsize(path))
        logger.warning("%s: cut short or damaged at byte %d: what follows is left out; fetch it again", path, end)


def _ends_there(archive: tarfile.TarFile) -> bool:
    """Whether zeros, or the end of the file, follow the last member. tarfile takes any other rubbish for the end."""
    archive.fileobj.seek(archive.offset)
    return not any(archive.fileobj.read(BLOCK))
