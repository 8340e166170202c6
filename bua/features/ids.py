"""How image ids are written in files.

Files of features contain ids as text. The same rule applies to all formats: text that is an integer in decimal notation
becomes an integer, any other text stays a string. ``42`` and ``"42"`` are the same id; ``"042"`` is another one. Text
of more than 640 digits stays a string: Python may refuse to convert it.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from bua.errors import InputError

# Bytes of a file name: file systems have 255, and temporary names are longer.
_LONGEST_NAME = 230
# Characters that some file system does not allow in names, the escape character, and a leading dot (hidden files).
_RESERVED = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.')
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,639}")
# Reasons for MissedIds.
NOT_UTF8 = "are not UTF-8, so that programs that read the file as text cannot read any of it"
ENCODED = "are percent-encoded in file names, so that programs that look for files by the ids do not find them"

logger = logging.getLogger(__name__)

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})")


def parse_id(value: object) -> int | str:
    """Returns the id for a value or text: an integer if the text is an integer in decimal notation, or a string."""
    text = str(value)
    return int(text) if _INTEGER.fullmatch(text) else text


def image_id_of(path: str | Path) -> int | str:
    """Returns the id of an image from its file name.

    For names such as ``COCO_train2014_000000084002.jpg`` and ``000000084002.jpg`` this is COCO's number, otherwise the
    name without its last suffix.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    coco = _COCO_NAME.fullmatch(stem)
    return int(coco[1]) if coco else parse_id(stem)


def stem_of(path: str | Path) -> int | str:
    """Returns the file name without its last suffix as the id of an image, as LXMERT's readers expect it.

    In contrast to ``image_id_of``, COCO's file names are not converted to numbers.
    """
    return parse_id(os.path.splitext(os.path.basename(path))[0])


def file_stem(image_id: int | str) -> str:
    """Returns a file name for an id, different for each id. Characters that are not allowed are percent-encoded."""
    return _RESERVED.sub(lambda match: f"%{ord(match[0]):02X}", str(image_id))


def file_name(image_id: int | str, suffix: str) -> str:
    """Returns ``file_stem`` with a suffix, as the name of a file to write.

    Raises:
        InputError: The id is empty, or too long for a file name.
    """
    name = file_stem(image_id) + suffix
    if name == suffix or len(os.fsencode(name)) > _LONGEST_NAME:
        raise InputError(f"image id {str(image_id)[:40]!r}: is empty or too long for a file name; change it")
    return name


def id_of_file_stem(stem: str) -> int | str:
    """Returns the id for a file name from ``file_stem``. Names without percent signs, of other programs, stay as is."""
    return parse_id(unquote(stem))


def is_utf8(image_id: int | str) -> bool:
    """Whether an id can be written as UTF-8. Names of files that are not UTF-8 contain surrogates."""
    return (
        not isinstance(image_id, str) or image_id.isascii() or not any("\ud800" <= one <= "\udfff" for one in image_id)
    )


@contextmanager
def warnings_off() -> Iterator[None]:
    """Leaves out the messages of ``MissedIds`` in a block that writes to a place where nobody reads."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class MissedIds:
    """Logs the ids of an output that readers of its format will not find: the first one at once, and the others when
    ``report`` is called.

    Args:
        path: The output.
        reason: What is wrong with the ids.
    """

    def __init__(self, path: Path, reason: str):
        self._path, self._reason = path, reason
        self._ids: list[str] = []

    def add(self, image_id: int | str) -> None:
        """Adds an id."""
        self._ids.append(ascii(str(image_id)[:60]))
        if len(self._ids) == 1:
            logger.warning(
                "%s: ids such as %s %s; give other ids in a list file", self._path, self._ids[0], self._reason
            )

    def report(self) -> None:
        """Logs how many ids were added if there are several, and the first ones."""
        if len(self._ids) > 1:
            listed = ", ".join(self._ids[:10]) + (", ..." if len(self._ids) > 10 else "")
            logger.warning("%s: %d ids %s: %s", self._path, len(self._ids), self._reason, listed)
        self._ids = []
