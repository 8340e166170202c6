"""Reads the official files of Flickr30k Entities (Plummer et al., ICCV 2015): sentences with marked phrases, and boxes.

A line of ``Sentences/<id>.txt`` is a sentence whose phrases are marked as ``[/EN#<chain>/<type>/... words]``. All
phrases about the same thing, or group of things, have the same chain number. ``Annotations/<id>.xml`` has the boxes of
each chain.
"""

import re
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from bua.errors import InputError
from bua.regular_files import open_regular, read_regular
from bua.tasks.words import tokenize

TYPES = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")

_MARKED = re.compile(r"\[([^\] ]*) ([^\]]*)\]")
# No number of an image, of a chain or of a pixel has more digits, and Python refuses to convert very many.
_MAX_DIGITS = 18
_CHAIN = re.compile(rf"/EN#(\d{{1,{_MAX_DIGITS}}})(?!\d)")


class Phrase(NamedTuple):
    """A marked phrase.

    Attributes:
        chain: Number of the chain; 0 where the phrase means nothing in the image.
        types: Usually some of ``TYPES``, or "notvisual".
        text: The phrase as it is written.
        start, end: The words of the phrase are ``words[start:end]`` of the sentence; empty where the phrase consists of
            commas.
    """

    chain: int
    types: tuple[str, ...]
    text: str
    start: int
    end: int


class Sentence(NamedTuple):
    """A sentence without marks, its words as ``tokenize`` splits them, and its phrases from left to right."""

    text: str
    words: list[str]
    phrases: list[Phrase]


class Boxes(NamedTuple):
    """The boxes of an image.

    Attributes:
        width, height: Size of the image in pixels.
        of_chain: For each chain that has boxes [g, 4] float32 x1y1x2y2, as in the file.
    """

    width: int
    height: int
    of_chain: dict[int, np.ndarray]


def parse_sentence(line: str) -> Sentence:
    """Parses a line of ``Sentences/<id>.txt``.

    Raises:
        InputError: There are brackets without the mark of a phrase.
    """
    text, done = "", 0
    marks: list[tuple[str, str, int]] = []
    for match in _MARKED.finditer(line):
        text += line[done : match.start()] + match[2]
        marks.append((match[1], match[2], len(text)))
        done = match.end()
    text += line[done:]
    return Sentence(text, tokenize(text), [_phrase(mark, words, text[:end]) for mark, words, end in marks])


def authors_span(text: str, phrase: str) -> tuple[int, int]:
    """Returns the place of a phrase in a sentence as ban-vqa's code finds it (utils.py, find_sublist).

    The code has two errors. It counts the parts between blanks, so that commas count as words, and the place may lie
    behind the last word. It also takes the first occurrence of the words, even for a phrase that occurs a second time.

    Returns:
        The place of the first word, and the place behind the last word.

    Raises:
        InputError: The phrase does not begin and end at a blank.
    """
    every, wanted = text.split(" "), phrase.split(" ")
    for first in range(len(every) - len(wanted) + 1):
        if every[first : first + len(wanted)] == wanted:
            return first, first + len(wanted)
    raise InputError(f"[{phrase}]: no blanks around it, which --authors-positions needs; prepare without this option")


def load_sentences(path: str | Path) -> list[Sentence]:
    """Reads the sentences of ``Sentences/<id>.txt``.

    Raises:
        InputError: There is no such file, or a line is damaged.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; unpack annotations.zip again") from error
    sentences = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                sentences.append(parse_sentence(line))
        except InputError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
    return sentences


def load_boxes(path: str | Path) -> Boxes:
    """Reads the boxes of ``Annotations/<id>.xml``. Chains of scenes and of things without a box are left out.

    Raises:
        InputError: There is no such file, or it is damaged; the message names the field.
    """
    try:
        root = ElementTree.fromstring(read_regular(path))
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path}: cannot be read: {error}; unpack annotations.zip again") from error
    of_chain: dict[int, list[list[int]]] = {}
    for thing in root.iterfind("object"):
        corners = thing.find("bndbox")
        if corners is None or not len(corners):
            continue
        box = [_integer(path, corners, field) for field in ("xmin", "ymin", "xmax", "ymax")]
        for name in thing.iterfind("name"):
            of_chain.setdefault(_integer(path, name, "."), []).append(box)
    width, height = (_integer(path, root, f"size/{field}") for field in ("width", "height"))
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise InputError(f"{path}: size is {width}x{height} pixels, which no image has; unpack annotations.zip again")
    return Boxes(width, height, {chain: np.array(boxes, np.float32) for chain, boxes in of_chain.items()})


def load_split(path: str | Path) -> list[int]:
    """Reads the ids of the images of a split, a file with one number per line.

    Raises:
        InputError: There is no such file, it has other lines, or an image occurs twice.
    """
    try:
        ids = [_number(line) for line in read_regular(path).decode(errors="replace").split()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; take it from flickr30k_entities") from error
    except ValueError as error:
        raise InputError(f"{path}: must have one number per line ({error}); take it from flickr30k_entities") from error
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: has an image twice; take it from flickr30k_entities")
    return ids


def _phrase(mark: str, words: str, text_up_to_end: str) -> Phrase:
    chain = _CHAIN.match(mark)
    if chain is None:
        raise InputError(f"[{mark} {words}]: no mark /EN#<chain>/<type>; unpack annotations.zip again")
    # Places are counted in the words that ``tokenize`` makes of the text: a comma is not a word, and "'s" is one.
    end = len(tokenize(text_up_to_end))
    return Phrase(int(chain[1]), tuple(mark.split("/")[2:]), words, end - len(tokenize(words)), end)


def _integer(path: str | Path, node: ElementTree.Element, field: str) -> int:
    found = node.find(field)
    text = None if found is None else found.text
    try:
        return _number(text or "")
    except ValueError:
        name = node.tag if field == "." else f"{node.tag}/{field}"
        raise InputError(f"{path}: {name} is {text!r:.40}, not a number; unpack annotations.zip again") from None


def _number(text: str) -> int:
    """Returns a number, or raises a ValueError."""
    if len(text.strip()) > _MAX_DIGITS:
        raise ValueError(f"{text.strip()[:_MAX_DIGITS]}... is too long for a number")
    return int(text)
