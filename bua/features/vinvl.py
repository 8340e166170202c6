"""Reads and writes features as VinVL's and Oscar's tab-separated rows. ``<name>.lineidx`` has the offset of each row.

VinVL (microsoft/scene_graph_benchmark, maskrcnn_benchmark/engine/inference.py) has one row per image, with its id and
JSON: ``{"objects": [{"rect": [x1, y1, x2, y2], "bbox_id", "class", "conf", "feature", "attributes", "attr_scores"},
...], "relations": null}``. Classes and attributes are given by name, and ``feature`` is base64 of float32 [d]. The
numbers of the names are in ``<name>.labelmap.json``, in the layout of VinVL's own dictionaries (``label_to_idx`` and
``attribute_to_idx``, counted from 1). The sizes of the images are in ``<name>.hw.tsv``, from which Oscar reads them
(oscar/run_retrieval.py), and in ``image_h`` and ``image_w`` of each row.

Oscar's captioning (microsoft/Oscar, oscar/run_captioning.py) has ``{"num_boxes", "features"}``, with base64 of float32
[n, d + 6]. Oscar has no code that writes them. That the last six columns are x1/w, y1/h, x2/w, y2/h, (x2-x1)/w and
(y2-y1)/h is taken from MMF's extraction for VinVL's checkpoints (tools/scripts/features/extract_features_vinvl.py).
Oscar's readers ignore what bua adds: ``image_h``, ``image_w``, ``boxes`` (the columns are not exact), and the labels
under LXMERT's names. ``bua.features.oscar_labels`` has what the other readers of Oscar expect: rows of three columns
(id, num_boxes, features), and files of labels.
"""

import logging
import mmap
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from bua.errors import InputError
from bua.features.checks import check_regions
from bua.features.ids import NOT_UTF8, MissedIds, is_utf8, parse_id
from bua.features.indexed import IndexedFeatures
from bua.features.oscar_labels import FLAVOURS, LabelRows, three_column_row, write_rows_by_id
from bua.features.row_merging import append_rows_of
from bua.features.synced_size import SyncedSize
from bua.features.text_rows import append_line, open_for_reading, read_line, unread_lines
from bua.features.vinvl_rows import (
    LONGEST_ID,
    Names,
    begins_row,
    decode_row,
    encode_row,
    is_whole,
    row_format,
    row_sizes,
    size_of,
)
from bua.io.files import check_in_place, whole_file
from bua.regular_files import open_regular, read_regular
from bua.structures import Regions

FORMATS = ("vinvl-tsv", "oscar-tsv")

logger = logging.getLogger(__name__)


class VinvlFeatures(IndexedFeatures[int]):
    """The features in a TSV file of VinVL or Oscar, which are read row by row.

    ``<name>.lineidx`` is created again if it is missing or does not fit the file. Many processes and threads can read
    from the same object, also after it was forked or pickled to them.

    Attributes:
        format: "vinvl-tsv" or "oscar-tsv".

    Raises:
        InputError: When it is opened: there is no such file, or its rows have neither format. When a row is read: a
            field cannot be decoded, or the size of the image is unknown; the message names the line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = open_for_reading(self.path)
        self.format = _format_of(self._file)
        if self.format is None:
            raise InputError(
                f"{self.path}: line 1: has neither VinVL's objects nor Oscar's features; name another file"
            )
        self._names = Names.read(_beside(self.path, ".labelmap.json"))
        self._places = {}
        sizes_in_rows = True
        with _mapped(self._file) as content:
            self._offsets, fits = _offsets(self.path, content)
            for row, (key, start) in enumerate(_ids_and_starts(content, self._offsets)):
                if key:
                    self._places.setdefault(parse_id(key), row)
                    sizes_in_rows &= size_of(content[start : start + 80]) is not None
        # Oscar's features for retrieval have the sizes of the images in predictions.tsv, in the same folder.
        places = () if sizes_in_rows else (_beside(self.path, ".hw.tsv"), self.path.with_name("predictions.tsv"))
        self._sizes = next(filter(None, map(_read_sizes, places)), {})
        if not fits:
            self._save_lineidx()
        self._leave_out_incomplete_row()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=open_for_reading(state["path"]))

    @property
    def about(self) -> dict[str, list[str]]:
        """The names in ``<name>.labelmap.json``, in the form that ``VinvlWriter`` takes."""
        known = {"object_vocabulary": self._names.objects, "attribute_vocabulary": self._names.attributes}
        return {kind: names for kind, names in known.items() if names is not None}

    def problems(self) -> Iterator[str]:
        """Yields a message for each row that is not read: it has no id, the id of an earlier row, or is incomplete."""
        with _mapped(self._file) as content:
            yield from unread_lines((key for key, _ in _ids_and_starts(content, self._offsets)), self._places)

    def _read(self, image_id: int | str, place: int) -> Regions:
        return self._read_row(place)

    def _read_row(self, row: int) -> Regions:
        line = read_line(self._file, self._offsets[row], self._offsets[row + 1])
        try:
            return decode_row(line, self._names, self._sizes)
        except ValueError as error:
            raise InputError(f"{self.path}: line {row + 1}: {error}") from error

    def _save_lineidx(self) -> None:
        lineidx = _beside(self.path, ".lineidx")
        try:
            with whole_file(lineidx) as file:
                file.writelines(b"%d\n" % offset for offset in self._offsets[:-1])
        except OSError as error:
            logger.debug("%s: cannot be saved: %s", lineidx, error)

    def _leave_out_incomplete_row(self) -> None:
        """Leaves out a last row that is still being written, or whose writer was stopped.

        Such a row lacks its line end. If only the line end is missing, as in files that were saved by an editor, the
        row is read.
        """
        last = len(self._offsets) - 2
        if read_line(self._file, self._offsets[-1] - 1, self._offsets[-1]) == b"\n":
            return
        try:
            self._read_row(last)
        except InputError:
            logger.warning("%s: line %d is incomplete and is left out", self.path, last + 1)
            self._places = {image_id: row for image_id, row in self._places.items() if row != last}


class VinvlWriter:
    """Appends rows to a TSV file, each of them completely or not at all.

    Incomplete rows at the end, which are left when a writer is killed or the machine crashes, are deleted first.

    Args:
        path: The file, which is created if it does not exist.
        format: "vinvl-tsv" or "oscar-tsv".
        about: "object_vocabulary" and "attribute_vocabulary", lists of names, for the labels in vinvl-tsv. Without
            them, the names in ``<name>.labelmap.json`` are used.
        reader: One of the readers of ``bua.features.oscar_labels.FLAVOURS``, for oscar-tsv.

    Attributes:
        done: Ids of the images in the file.

    Raises:
        InputError: The file holds something else, or was written with other names.
    """

    def __init__(
        self,
        path: str | Path,
        format: str = "vinvl-tsv",
        about: Mapping[str, Any] | None = None,
        reader: str | None = None,
    ):
        self.path = Path(path)
        self.format = format
        self.done: set[int | str] = set()
        self._missed = MissedIds(self.path, NOT_UTF8)
        self._offsets = array("q", [0])
        self._synced_size = SyncedSize(self.path)
        begun = self._synced_size.exists()
        keys = self._continue() if self.path.exists() else []
        self._flavour = None if reader is None else FLAVOURS[reader]
        self._labels: LabelRows | None = None
        if self._flavour is not None:
            self._labels = LabelRows(self._flavour.labels_file(self.path), keys, begun)
            if self._labels.number < len(keys):
                self._keep_rows(keys[: self._labels.number])
        with_names = format == "vinvl-tsv" or self._flavour is not None
        self._names = self._read_or_write_names(about or {}) if with_names else Names()
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self.sync()

    def append(self, regions: Regions) -> None:
        """Writes one image's row.

        Raises:
            InputError: The id is not possible in a TSV file, the names of the labels are unknown, or a number is not
                finite.
        """
        check_regions(regions)
        if self._flavour is None:
            self._append(regions.image_id, encode_row(regions, self.format, self._names))
        else:
            label_row = self._flavour.label_row(regions, self._names)
            columns = self._flavour.three_columns
            row = three_column_row(regions) if columns else encode_row(regions, self.format, self._names)
            self._append(regions.image_id, row, label_row)

    def merge(self, part: Path) -> None:
        """Appends the rows of another file of the same format and with the same names, as they are, except those of
        images in ``done``."""
        if self._flavour is not None:
            # Rows of labels are in step with those of features.
            with open_for_reading(part) as rows, open_for_reading(self._flavour.labels_file(part)) as labels:
                for row, label_row in zip(rows, labels):
                    image_id = parse_id(_id_text(row.partition(b"\t")[0]))
                    if image_id not in self.done:
                        self._append(image_id, row, label_row.partition(b"\t")[2].rstrip(b"\n"))
            return
        for lengths in append_rows_of(part, self._file, self.done, _id_text):
            for length in lengths.values():
                self._offsets.append(self._offsets[-1] + length)

    def sync(self) -> None:
        """Syncs all rows to the disk."""
        check_in_place(self.path, self._file)
        if self._labels is not None:
            self._labels.sync()
        self._synced_size.sync(self._file)

    def finish(self) -> None:
        """Writes ``<name>.lineidx``, and for VinVL ``<name>.hw.tsv`` with its own ``<name>.hw.lineidx``."""
        self.sync()
        with whole_file(_beside(self.path, ".lineidx"), durable=True, locked=True) as file:
            file.writelines(b"%d\n" % offset for offset in self._offsets[:-1])
        if self.format == "vinvl-tsv" and len(self._offsets) > 1:
            self._write_sizes()
        if self._labels is not None:
            self._labels.finish()
        if self._flavour is not None and self._flavour.three_columns:
            self._write_rows_by_id()
        self._synced_size.finish(self._file)
        self._missed.report()

    def close(self) -> None:
        if self._labels is not None:
            self._labels.close()
        os.close(self._file)

    def _append(self, image_id: int | str, row: bytes, label_row: bytes = b"") -> None:
        if self._labels is not None:
            self._labels.append(image_id, label_row)
        try:
            append_line(self._file, row)
        except OSError:
            if self._labels is not None:
                self._labels.drop_last()
            raise
        self._offsets.append(self._offsets[-1] + len(row))
        self.done.add(parse_id(image_id))
        if not is_utf8(image_id):
            self._missed.add(image_id)

    def _write_rows_by_id(self) -> None:
        if len(self._offsets) == 1:  # an empty file cannot be mapped
            write_rows_by_id(self.path, iter(()))
            return
        with open_for_reading(self.path) as file, _mapped(file) as content:
            write_rows_by_id(self.path, (key for key, _ in _ids_and_starts(content, self._offsets)))

    def _write_sizes(self) -> None:
        rows, offset = [], 0
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
            for key, start in _ids_and_starts(content, self._offsets):
                size = size_of(content[start : start + 80])
                if size is None:
                    logger.info("%s: has rows of another program; the sizes of the images are not written", self.path)
                    return
                rows.append(b'%s\t[{"height": %d, "width": %d}]\n' % (os.fsencode(key), size[1], size[0]))
        with whole_file(_beside(self.path, ".hw.tsv"), durable=True, locked=True) as file:
            file.writelines(rows)
        with whole_file(_beside(self.path, ".hw.lineidx"), durable=True, locked=True) as file:
            for row in rows:
                file.write(b"%d\n" % offset)
                offset += len(row)

    def _continue(self) -> list[str]:
        """Takes over the complete rows, deletes the rest, and returns the ids."""
        with open_for_reading(self.path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return []
            with _mapped(file) as content:
                offsets, _ = _offsets(self.path, content)
                whole = len(offsets) - 1 - (content[-1] != ord("\n"))
                first_unsure = bisect_left(offsets, self._synced_size.read(len(content)))
                for row in range(first_unsure, whole):
                    if not is_whole(content[offsets[row] : offsets[row + 1]]):
                        whole = row
                        break
                keys = [key for key, _ in _ids_and_starts(content, offsets[: whole + 1])]
                first = content[: offsets[1]]
        ours = self._synced_size.exists() or begins_row(first)
        if row_format(first) != self.format if keys else not ours:
            raise InputError(f"{self.path}: line 1: is not a row of {self.format}; choose another output or format")
        if whole < len(offsets) - 1:
            logger.warning("%s: the rows from line %d on are incomplete and are deleted", self.path, whole + 1)
            os.truncate(self.path, offsets[whole])
        self._offsets, self.done = offsets[: whole + 1], {parse_id(key) for key in keys if key}
        return keys

    def _keep_rows(self, keys: list[str]) -> None:
        """Deletes all rows but the first ones, with these ids."""
        logger.warning("%s: the rows from line %d on lack their labels and are deleted", self.path, len(keys) + 1)
        self._offsets = self._offsets[: len(keys) + 1]
        os.truncate(self.path, self._offsets[-1])
        self.done = {parse_id(key) for key in keys if key}

    def _read_or_write_names(self, about: Mapping[str, Any]) -> Names:
        labelmap = _beside(self.path, ".labelmap.json")
        saved = Names.read(labelmap)
        names = Names(about.get("object_vocabulary"), about.get("attribute_vocabulary"))
        if not names:
            return saved
        if not saved:
            with whole_file(labelmap, durable=True, locked=True) as file:
                file.write(names.encode())
        elif saved != names:
            raise InputError(f"{labelmap}: its names are not those of the detector; choose another output")
        return names


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(os.path.splitext(path.name)[0] + suffix)


def _format_of(file: BinaryIO) -> str | None:
    file.seek(0)
    start = file.readline(LONGEST_ID + 1)
    # Only the start of a row is read to its end, since other files may have no line ends.
    return row_format(start if start.endswith(b"\n") else start + file.readline()) if b"\t" in start else None


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _offsets(path: Path, content: mmap.mmap) -> "tuple[array[int], bool]":
    """Returns the offsets of the rows and of the end of the file, and whether ``.lineidx`` has all of them.

    The offsets in ``.lineidx`` are used if a row begins at each of them. Rows after the last of them are looked for.
    """
    try:
        saved = array("q", map(int, read_regular(_beside(path, ".lineidx")).split()))
    except (OSError, ValueError, OverflowError) as error:
        logger.debug("%s: no lineidx: %s", path, error)
        saved = array("q")
    offsets = saved[:]
    if not _begin_rows(offsets, content):
        offsets = array("q", [0])
    while (end := content.find(b"\n", offsets[-1]) + 1) and end < len(content):
        offsets.append(end)
    fits = offsets == saved
    offsets.append(len(content))
    return offsets, fits


def _begin_rows(offsets: "array[int]", content: mmap.mmap) -> bool:
    if not offsets or offsets[0] != 0 or offsets[-1] >= len(content):
        return False
    size = len(content)
    return all(before < offset < size and content[offset - 1] == ord("\n") for before, offset in pairwise(offsets))


def _ids_and_starts(content: mmap.mmap, offsets: "array[int]") -> Iterator[tuple[str, int]]:
    """Yields the id of each row ("" for lines without a tab), and the position at which the next column begins."""
    for start, end in pairwise(offsets):
        tab = content.find(b"\t", start, end)
        yield _id_text(content[start : max(tab, start)]), tab + 1


def _id_text(cell: bytes) -> str:
    return cell.decode(errors="surrogateescape")


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Returns the (width, height) of each image by its id, or nothing if there is no such file."""
    if not path.is_file():
        return {}
    try:
        with open_regular(path) as file:
            return row_sizes(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; every line must have an id, a tab, and height and width") from error
