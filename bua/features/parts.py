"""Writes an output in parts, by several processes, and merges the parts: by copying or renaming, where the format of
the output allows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from bua.errors import InputError
from bua.features.store import FeatureWriter, open_features

# Formats whose files cannot be joined. Their parts are flat features, or npz, which can hold the probabilities of all
# classes, and are appended image by image.
_WITHOUT_MERGING = ("hdf5", "ban-hdf5", "vilbert-lmdb")


@runtime_checkable
class MergingWriter(FeatureWriter, Protocol):
    """A writer that takes the images of a part as they are, without decoding them."""

    def merge(self, part: Path) -> None:
        """Adds the images of ``part``, complete features of the same format, that are not in ``done``. A part of npz
        or npy files loses the files that are moved."""


def part_format(format: str, about: Mapping[str, object] | None = None) -> str:
    """Returns the format of the parts of an output, one of ``bua.features.FORMATS``.

    Args:
        about: What is known about the features, as for ``bua.features.open_writer``.
    """
    if format not in _WITHOUT_MERGING:
        return format
    settings = (about or {}).get("settings")
    return "npz" if isinstance(settings, dict) and settings.get("keep_probabilities") else "flat"


def merge_part(part: Path, writer: FeatureWriter) -> dict[int | str, str]:
    """Adds the images of a part that ``writer`` does not have. If this is interrupted, it can be done again.

    Args:
        part: Features in the ``part_format`` of the writer's format, without incomplete images at the end: either all
            of them have been written, or ``bua.features.open_writer`` has opened them since.

    Returns:
        The reason for each image that the writer's format cannot hold, by its id.
    """
    if isinstance(writer, MergingWriter):
        writer.merge(part)
        return {}
    reasons = {}
    store = open_features(part)
    for image_id in store:
        if image_id not in writer.done:
            try:
                writer.append(store[image_id])
            except InputError as error:
                reasons[image_id] = str(error)
    return reasons
