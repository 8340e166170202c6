"""The flavours of formats: what the code of other authors reads, where it differs from a format.

A reader is known by a name, which ``open_writer`` and ``--for`` take. What it needs is written beside the format, in
the format's module. ``docs/formats.md`` says of each reader which version was read, and what of it was run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bua.errors import InputError

# Formats that hold ``Regions.class_probs``.
FORMATS_WITH_PROBABILITIES = ("npz", "vilbert-lmdb", "mmf")


@dataclass(frozen=True)
class Reader:
    """The needs of one reader.

    Attributes:
        formats: The formats of which it has a flavour. The first is the one for which no format need be named.
        numbers: Which ids it finds: "any"; "last", ids that end with a number after an underscore, or are one, as in
            COCO's file names, by this number; or "only", numbers.
        file_names: Whether its ids are whole file names such as ``COCO_val2014_000000000042``.
        labels: Whether it needs the objects of all regions.
        names: Whether it needs the names of objects.
        any_number: Whether images may have different numbers of boxes, where the format needs the same.
        probabilities: Whether its flavour holds ``Regions.class_probs``, where the format does not.
    """

    formats: tuple[str, ...]
    numbers: str = "any"
    file_names: bool = False
    labels: bool = False
    names: bool = False
    any_number: bool = False
    probabilities: bool = False


READERS: dict[str, Reader] = {
    "m2": Reader(("hdf5",), numbers="only", any_number=True, probabilities=True),
    "mcan": Reader(("npz",), numbers="last"),
    "mmf": Reader(("mmf", "vilbert-lmdb"), file_names=True),
    "openvqa": Reader(("npz",), numbers="last"),
    "openvqa-gqa": Reader(("npz",)),
    "oscar-captioning": Reader(("oscar-tsv",), labels=True, names=True),
    "oscar-retrieval": Reader(("oscar-tsv",), numbers="only", labels=True, names=True),
    "uniter": Reader(("npz",), file_names=True, labels=True),
    "vilbert-multi-task": Reader(("vilbert-lmdb",)),
    "volta": Reader(("vilbert-lmdb",)),
}


def format_for(reader: str | None, format: str | None, default: str | None = None) -> str:
    """Returns the format that is written: the one that is named, or else the reader's own, or ``default``.

    Raises:
        InputError: The reader is unknown or has no flavour of the format, or neither is named.
    """
    if reader is None:
        if format is None and default is None:
            raise InputError("format: none given; name one (--format), or a reader (--for)")
        return format or default or ""
    if reader not in READERS:
        raise InputError(f"reader {reader!r}: is unknown; use one of {', '.join(READERS)}")
    formats = READERS[reader].formats
    if format is not None and format not in formats:
        known = " and ".join(formats)
        raise InputError(f"reader {reader}: reads {known}, not {format}; leave out the format, or the reader")
    return format or formats[0]


def holds_probabilities(format: str, reader: str | None) -> bool:
    """Whether a format, or a reader's flavour of it, has a place for the probabilities of all classes."""
    return format in FORMATS_WITH_PROBABILITIES or (reader is not None and READERS[reader].probabilities)


class FoundIds:
    """The ids of an output that a reader finds its images by.

    Args:
        reader: One of READERS, or None, for which any id is found.
        ids: The first ids.

    Raises:
        InputError: As ``add``.
    """

    def __init__(self, reader: str | None, ids: Iterable[int | str] = ()):
        self._reader = reader
        self._numbers = "any" if reader is None else READERS[reader].numbers
        self._by_number: dict[str, int | str] = {}
        for image_id in ids:
            self.add(image_id)

    def add(self, image_id: int | str) -> None:
        """Adds an id.

        Raises:
            InputError: The reader does not find it, or takes it for an earlier one. The message names it.
        """
        if self._numbers == "any":
            return
        text = str(image_id) if self._numbers == "only" else str(image_id).rpartition("_")[2]
        if not text.isascii() or not text.isdigit() or (self._numbers == "only" and type(image_id) is not int):
            raise InputError(
                f"image id {str(image_id)[:40]!r}: {self._reader} finds images by their numbers; give other ids "
                "(--ids number, or a list file)"
            )
        if self._numbers == "only":
            return
        # Python refuses to convert text of many digits. Without leading zeros, equal text is the same number.
        earlier = self._by_number.setdefault(text.lstrip("0"), image_id)
        if earlier != image_id:
            raise InputError(
                f"image ids {str(earlier)[:40]!r} and {str(image_id)[:40]!r}: {self._reader} finds images by their "
                "numbers, which are equal; give other ids in a list file"
            )


def check_ids(reader: str | None, ids: Iterable[int | str]) -> None:
    """Checks that a reader finds images with these ids.

    Raises:
        InputError: It does not find one of them, or takes two of them for the same. The message names it.
    """
    FoundIds(reader, ids)
