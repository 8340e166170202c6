"""Features as VinVL's and Oscar's tab-separated rows, with where each row begins in ``<name>.lineidx``.

VinVL (microsoft/scene_graph_benchmark, maskrcnn_benchmark/engine/inference.py) has a row of id and JSON an image:
``{"objects": [{"rect": [x1, y1, x2, y2], "bbox_id", "class", "conf", "feature", "attributes", "attr_scores"}, ...],
"relations": null}``, with classes and attributes by name and ``feature`` base64 of float32 [d]. Which number a name has
stands in ``<name>.labelmap.json``, in the layout of VinVL's own dictionaries (``label_to_idx`` and
``attribute_to_idx``, from 1). The sizes of the images are in ``<name>.hw.tsv``, and, as Oscar reads them from such a
file (oscar/run_retrieval.py), in ``image_h`` and ``image_w`` of each row.

Oscar's captioning (microsoft/Oscar, oscar/run_captioning.py) has ``{"num_boxes", "features"}``, base64 of float32
[n, d + 6]. No code of Oscar's makes them; that the six columns are x1/w, y1/h, x2/w, y2/h, (x2-x1)/w and (y2-y1)/h is
from MMF's extraction for VinVL's checkpoints (tools/scripts/features/extract_features_vinvl.py). Its readers leave
alone what bua adds: ``image_h``, ``image_w``, ``boxes`` (the columns are not exact) and the labels under LXMERT's
names. The rows of three columns (id, num_boxes, features) that Oscar's retrieval and pre-training read are read here,
and not written.
"""

import logging
import mmap
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from bua.errors import InputError
from bua.features.ids import parse_id
from bua.features.synced import SyncedMark
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
from bua.io.files import whole_file
from bua.structures import Regions

FORMATS = ("vinvl-tsv", "oscar-tsv")

logger = logging.getLogger(__name__)


class VinvlFeatures(Mapping[int | str, Regions]):
    """The features in a TSV file of VinVL's or Oscar's, read a row at a time.

    ``<name>.lineidx`` is made anew where it is missing or does not fit the file. Many processes and threads may read
    from one object, also one that was forked or pickled to them.

    Raises:
        InputError: when opened: no such file, or rows of neither format; when a row is read: names its line and the
            field that does not decode, or that the size of the image is not known.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = _open(self.path)
        self.format = _format_of(self._file)
        if self.format is None:
            raise InputError(f"{self.path}: line 1: neither VinVL's objects nor Oscar's features")
        self._names = Names.read(_beside(self.path, ".labelmap.json"))
        self._rows: dict[int | str, int] = {}
        sizes_in_rows = True
        with _mapped(self._file) as content:
            self._offsets, fits = _offsets(self.path, content)
            for row, (key, start) in enumerate(_heads(content, self._offsets)):
                if key:
                    self._rows.setdefault(parse_id(key), row)
                    sizes_in_rows &= size_of(content[start : start + 80]) is not None
        self._sizes = {} if sizes_in_rows else _read_sizes(_beside(self.path, ".hw.tsv"))
        if not fits:
            self._keep_lineidx()
        self._leave_out_incomplete_row()

    def __getitem__(self, image_id: int | str) -> Regions:
        return self._read(self._rows[parse_id(image_id)])

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self._rows

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _file=_open(state["path"]))

    @property
    def about(self) -> dict[str, list[str]]:
        """The names in ``<name>.labelmap.json``, as ``VinvlWriter`` takes them."""
        known = {"object_vocabulary": self._names.objects, "attribute_vocabulary": self._names.attributes}
        return {kind: names for kind, names in known.items() if names is not None}

    def problems(self) -> Iterator[str]:
        """A line for each row that is not read: one without an id or with that of an earlier row, or incomplete."""
        with _mapped(self._file) as content:
            for row, (key, _) in enumerate(_heads(content, self._offsets)):
                earlier = self._rows.get(parse_id(key))
                if not key:
                    yield f"line {row + 1}: no columns"
                elif earlier is None:
                    yield f"line {row + 1}: incomplete"
                elif earlier != row:
                    yield f"line {row + 1}: image {key} again, which line {earlier + 1} has"

    def _read(self, row: int) -> Regions:
        start, end = self._offsets[row], self._offsets[row + 1]
        # pread has no file position that processes and threads would have to share.
        line = os.pread(self._file.fileno(), end - start, start)
        try:
            return decode_row(line, self._names, self._sizes)
        except ValueError as error:
            raise InputError(f"{self.path}: line {row + 1}: {error}") from error

    def _keep_lineidx(self) -> None:
        lineidx = _beside(self.path, ".lineidx")
        try:
            with whole_file(lineidx, shared=True) as file:
                file.writelines(b"%d\n" % offset for offset in self._offsets[:-1])
        except OSError as error:
            logger.debug("%s: not kept: %s", lineidx, error)

    def _leave_out_incomplete_row(self) -> None:
        """A last row without its line end is being written, or its writer was stopped; unless nothing else of it is
        missing, as in files that went through an editor."""
        last = len(self._offsets) - 2
        if os.pread(self._file.fileno(), 1, self._offsets[-1] - 1) == b"\n":
            return
        try:
            self._read(last)
        except InputError:
            logger.warning("%s: line %d is incomplete and is left out", self.path, last + 1)
            self._rows = {image_id: row for image_id, row in self._rows.items() if row != last}


class VinvlWriter:
    """Appends rows to a TSV file, each whole or not at all; an incomplete last row, which a killed writer leaves, is
    cut off first.

    Args:
        path: the file; made where it does not exist.
        format: "vinvl-tsv" or "oscar-tsv".
        about: "object_vocabulary" and "attribute_vocabulary", lists of names, for the labels in vinvl-tsv. Without
            them, those of ``<name>.labelmap.json`` hold.

    Attributes:
        done: the ids in the file.

    Raises:
        InputError: the file holds something else, or was written with other names.
    """

    def __init__(self, path: str | Path, format: str = "vinvl-tsv", about: dict | None = None):
        self.path = Path(path)
        self.format = format
        self.done: set[int | str] = set()
        self._offsets = array("q", [0])
        self._mark = SyncedMark(self.path)
        if self.path.exists():
            self._continue()
        self._names = self._start_names(about or {}) if format == "vinvl-tsv" else None
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self.sync()

    def append(self, regions: Regions) -> None:
        """Writes one image's row.

        Raises:
            InputError: the id cannot stand in a TSV file, or there are no names for the labels.
        """
        row = memoryview(encode_row(regions, self.format, self._names))
        start, size = self._offsets[-1], len(row)
        try:
            while row:
                row = row[os.write(self._file, row) :]
        except BaseException:
            os.ftruncate(self._file, start)
            raise
        self._offsets.append(start + size)
        self.done.add(parse_id(regions.image_id))

    def sync(self) -> None:
        """Returns when all rows so far are on the disk."""
        self._mark.sync(self._file)

    def finish(self) -> None:
        """Writes ``<name>.lineidx``, and for VinVL ``<name>.hw.tsv`` with its own ``<name>.hw.lineidx``."""
        self.sync()
        with whole_file(_beside(self.path, ".lineidx"), durable=True) as file:
            file.writelines(b"%d\n" % offset for offset in self._offsets[:-1])
        if self.format == "vinvl-tsv" and len(self._offsets) > 1:
            self._write_sizes()
        self._mark.finish(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _write_sizes(self) -> None:
        rows, offset = [], 0
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
            for key, start in _heads(content, self._offsets):
                size = size_of(content[start : start + 80])
                if size is None:
                    logger.info("%s: has rows of another program; no sizes of images are written", self.path)
                    return
                rows.append(b'%s\t[{"height": %d, "width": %d}]\n' % (os.fsencode(key), size[1], size[0]))
        with whole_file(_beside(self.path, ".hw.tsv"), durable=True) as file:
            file.writelines(rows)
        with whole_file(_beside(self.path, ".hw.lineidx"), durable=True) as file:
            for row in rows:
                file.write(b"%d\n" % offset)
                offset += len(row)

    def _continue(self) -> None:
        with _open(self.path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return
            with _mapped(file) as content:
                offsets, _ = _offsets(self.path, content)
                whole = len(offsets) - 1 - (content[-1] != ord("\n"))
                first_unsure = bisect_left(offsets, self._mark.read(len(content)))
                for row in range(first_unsure, whole):
                    if not is_whole(content[offsets[row] : offsets[row + 1]]):
                        whole = row
                        break
                keys = [key for key, _ in _heads(content, offsets[: whole + 1])]
                first = content[: offsets[1]]
        ours = self._mark.exists() or begins_row(first)
        if row_format(first) != self.format if keys else not ours:
            raise InputError(f"{self.path}: line 1: not the rows of {self.format}; choose another output or format")
        if whole < len(offsets) - 1:
            logger.warning("%s: not whole from line %d on; cut off and extracted again", self.path, whole + 1)
            os.truncate(self.path, offsets[whole])
        self._offsets, self.done = offsets[: whole + 1], {parse_id(key) for key in keys if key}

    def _start_names(self, about: dict) -> Names:
        labelmap = _beside(self.path, ".labelmap.json")
        kept = Names.read(labelmap)
        names = Names(about.get("object_vocabulary"), about.get("attribute_vocabulary"))
        if not names:
            return kept
        if not kept:
            with whole_file(labelmap, durable=True) as file:
                file.write(names.encode())
        elif kept != names:
            raise InputError(f"{labelmap}: has other names than the detector; choose another output")
        return names


def vinvl_format(path: Path) -> str | None:
    """Which of FORMATS a file has by its first row, or None."""
    try:
        with open(path, "rb") as file:
            return _format_of(file)
    except OSError:
        return None


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(os.path.splitext(path.name)[0] + suffix)


def _format_of(file: BinaryIO) -> str | None:
    file.seek(0)
    start = file.readline(LONGEST_ID + 1)
    # Only what begins as a row is read to its end: other files may have no lines.
    return row_format(start if start.endswith(b"\n") else start + file.readline()) if b"\t" in start else None


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _offsets(path: Path, content: mmap.mmap) -> tuple[array, bool]:
    """Where the rows begin and the last ends, and whether ``.lineidx`` says so.

    What it says is taken where every row that it names begins after a line end; the rows after its last are found.
    """
    try:
        kept = array("q", map(int, _beside(path, ".lineidx").read_bytes().split()))
    except (OSError, ValueError, OverflowError) as error:
        logger.debug("%s: no lineidx: %s", path, error)
        kept = array("q")
    offsets = kept[:]
    if not _begin_rows(offsets, content):
        offsets = array("q", [0])
    while (end := content.find(b"\n", offsets[-1]) + 1) and end < len(content):
        offsets.append(end)
    fits = offsets == kept
    offsets.append(len(content))
    return offsets, fits


def _begin_rows(offsets: array, content: mmap.mmap) -> bool:
    if not offsets or offsets[0] != 0 or offsets[-1] >= len(content):
        return False
    return all(before < offset and content[offset - 1] == ord("\n") for before, offset in pairwise(offsets))


def _heads(content: mmap.mmap, offsets: array) -> Iterator[tuple[str, int]]:
    """Of each row the id, "" for lines without a tab, and where the next column begins."""
    for start, end in pairwise(offsets):
        tab = content.find(b"\t", start, end)
        yield content[start : max(tab, start)].decode(errors="surrogateescape"), tab + 1


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """(width, height) of each image by its id, as far as there is such a file."""
    if not path.is_file():
        return {}
    try:
        return row_sizes(path.read_bytes().splitlines())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; every line has an id, a tab and its height and width") from error
