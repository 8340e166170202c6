"""How image ids are written in files.

Files of features hold ids as text, so one rule for all of them: what reads as an integer is an integer, anything
else a string. ``42`` and ``"42"`` are one id; ``"042"`` is another.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

# What some file system cannot hold in a name, the escape character itself, and a leading dot (hidden files).
_RESERVED = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.')
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})")


def parse_id(value: int | str) -> int | str:
    """The id that ``value`` stands for: an integer where its text reads as one, otherwise a string."""
    text = str(value)
    return int(text) if _INTEGER.fullmatch(text) else text


def image_id_of(path: str | Path) -> int | str:
    """The id of an image by its file name: COCO's number for names like ``COCO_train2014_000000084002.jpg`` and
    ``000000084002.jpg``, otherwise the name without its last suffix."""
    stem = os.path.splitext(os.path.basename(path))[0]
    coco = _COCO_NAME.fullmatch(stem)
    return int(coco[1]) if coco else parse_id(stem)


def stem_of(path: str | Path) -> int | str:
    """The id of an image by its file name, without its last suffix, COCO's too: what LXMERT's readers look for."""
    return parse_id(os.path.splitext(os.path.basename(path))[0])


def file_stem(image_id: int | str) -> str:
    """A file name for an id, another for each id: what a file system cannot hold is percent-encoded."""
    return _RESERVED.sub(lambda match: f"%{ord(match[0]):02X}", str(image_id))


def id_of_file_stem(stem: str) -> int | str:
    """The inverse of ``file_stem``; names without percent signs, as other programs write them, stay as they are."""
    return parse_id(unquote(stem))
