"""Reads and writes features in bua's own format, flat arrays in a folder (``bua.features.flat_files``)."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bua.errors import InputError
from bua.features.checks import check_regions
from bua.features.flat_files import (
    DATA_FILES,
    LOOKUP_FILE,
    RECORD,
    REGION,
    SYNCED_FILE,
    FlatFiles,
    checksum,
    create_or_read_header,
    key_and_text,
    load_lookup,
    make_lookup,
    read_header,
    region_rows,
    save_lookup,
    write_at,
    write_header,
)
from bua.features.ids import parse_id
from bua.features.labels import LABEL_FIELDS
from bua.io.files import check_in_place
from bua.regular_files import open_regular
from bua.structures import Regions

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The regions of B images, padded with zeros to M, the largest number of regions among them.

    Attributes:
        features: [B, M, dim] in the store's dtype.
        boxes: [B, M, 4] float32 x1y1x2y2 in pixels.
        counts: [B] int64, number of regions of each image.
        sizes: [B, 2] int64, width and height of the images in pixels.
    """

    features: np.ndarray
    boxes: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray


class FlatFeatures(Mapping[int | str, Regions]):
    """The features in a folder of the flat format, as they are when the folder is opened.

    ``store[image_id]`` returns copies, with features in float32. ``features``, ``boxes`` and ``read`` return the stored
    values without conversion. Threads and processes can use the same store.

    Attributes:
        format: "flat" or "flat-fp16".
        dtype: Dtype of the stored features, float32 or float16.
        dim: Feature dimension; 0 while there are no regions.
        about: What the writer was told about the features (vocabularies, configuration, hash of the weights).
        all_features: [R, dim], all_boxes: [R, 4] float32: the regions of all images, mapped from the files.
        offsets, counts: [N] the first region and the number of regions of each image, by row.
        widths, heights: [N] sizes of the images in pixels, by row.

    Raises:
        InputError: The folder or its header cannot be read, or has another format or version.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        header = read_header(self.path)
        self.dtype, self.dim, self.about = np.dtype(header["dtype"]), header["dim"] or 0, header["about"]
        self.format = "flat-fp16" if self.dtype == np.float16 else "flat"
        self._files = FlatFiles(self.path, self.dtype, self.dim)
        count = self._files.whole_records()
        if incomplete := len(self._files.index) - count:
            logger.warning("%s: its last %d images are incomplete and are left out", self.path, incomplete)
        if lost := self._files.lost_records():
            logger.warning(
                "%s: has lost the last %d records of index.bin, whose images are left out; copy it again",
                self.path,
                lost,
            )
        self._damaged = frozenset(self._files.damaged_records())
        self._index = self._files.index[:count]
        self.all_features, self._regions = self._files.features, self._files.regions
        self.all_boxes = self._regions["box"]
        self.offsets, self.counts = self._index["offset"], self._index["count"]
        self.widths, self.heights = self._index["width"], self._index["height"]
        self._keys, self._rows = load_lookup(self.path, self._index)
        self._files.check_unique(self._keys, self._rows)
        # The methods are kept, since looking them up would take a notable part of the microsecond that a look-up takes.
        self._search, self._key_at = self._keys.searchsorted, self._keys.item
        self._row_at: Callable[[int], int] = self._rows.item
        self._only_integers = self._files.ends(count)["ids.bin"] == 0
        self._feature_file = self._files.open("features.bin")

    def __getitem__(self, image_id: int | str) -> Regions:
        row = self._row(image_id)
        record, span = self._index[row], self._span(row)
        regions = self._regions[span]
        labels = {
            name: regions[name].astype(np.int64 if name.endswith("ids") else np.float32)
            for bit, name in enumerate(LABEL_FIELDS)
            if int(record["labels"]) >> bit & 1
        }
        return Regions(
            image_id=self._files.id(row),
            width=int(record["width"]),
            height=int(record["height"]),
            boxes=regions["box"].copy(),
            features=self.all_features[span].astype(np.float32),
            **labels,
        )

    def __iter__(self) -> Iterator[int | str]:
        for row in range(len(self._index)):
            image_id = self._files.id(row)
            if self._files.text_lengths.item(row) and key_and_text(image_id)[0] != self._index["key"].item(row):
                raise InputError(f"{self.path}: record {row + 1}: its id in ids.bin is damaged; copy the folder again")
            yield image_id

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, image_id: object) -> bool:
        try:
            self._row(image_id)
        except KeyError:
            return False
        return True

    def __reduce__(self) -> tuple[type["FlatFeatures"], tuple[Path]]:
        return FlatFeatures, (self.path,)

    def features(self, image_id: int | str) -> np.ndarray:
        """Returns the features [n, dim] of an image in the store's dtype, as a read-only view of the mapped file."""
        return self.all_features[self._span(self._row(image_id))]

    def boxes(self, image_id: int | str) -> np.ndarray:
        """Returns the boxes [n, 4] of an image, float32 x1y1x2y2 in pixels, as a read-only view of the mapped file."""
        return self.all_boxes[self._span(self._row(image_id))]

    def object_scores(self, row: int) -> np.ndarray | None:
        """Returns the scores [n] float32 of the object classes of the image in a row, or None if it has none."""
        if not int(self._index[row]["labels"]) >> LABEL_FIELDS.index("object_scores") & 1:
            return None
        scores: np.ndarray = self._regions["object_scores"][self._span(row)]
        return scores

    def rows(self, image_ids: Sequence[int | str]) -> np.ndarray:
        """Returns [B] int64: the rows of images in ``offsets``, ``counts``, ``widths`` and ``heights``.

        Raises:
            KeyError: There is no image with one of the ids.
        """
        ids = np.asarray(image_ids)
        if ids.dtype.kind != "i" or not len(self._keys):
            return np.array([self._row(image_id) for image_id in image_ids], np.int64)
        places = np.minimum(np.searchsorted(self._keys, ids), len(self._keys) - 1)
        rows: np.ndarray = self._rows[places]
        found = (self._keys[places] == ids) & (self._index["text_length"][rows] == 0)
        for i in np.flatnonzero(~found):  # the image is not there, or its key is also that of a text
            rows[i] = self._row(int(ids[i]))
        return rows

    def read(self, image_ids: Sequence[int | str], out: np.ndarray | None = None) -> Batch:
        """Reads a batch of images, for training.

        Args:
            out: [>= B, >= M, dim] in the store's dtype, contiguous: memory that the features are read into, such as
                pinned memory, which then need not be allocated for every batch. The batch's features are
                ``out[:B, :M]``.

        Raises:
            KeyError: There is no image with one of the ids.
        """
        rows = self.rows(image_ids)
        offsets, counts = self.offsets[rows].astype(np.int64), self.counts[rows].astype(np.int64)
        outside = (offsets < 0) | (offsets + counts > len(self._regions))
        if outside.any() or not self._damaged.isdisjoint(rows.tolist()):
            for row in rows.tolist():
                self._span(row)  # raises the error for the first of them
        most = int(counts.max(initial=0))
        if out is None:
            out = np.empty((len(rows), most, self.dim), self.dtype)
        features, boxes = out[: len(rows), :most], np.zeros((len(rows), most, 4), np.float32)
        row_bytes, file = self.dim * self.dtype.itemsize, self._feature_file.fileno()
        for i, (start, count) in enumerate(zip(offsets.tolist(), counts.tolist())):
            # The mapped memory is not used here, since its pages would count as memory of this process.
            if count and os.preadv(file, [features[i, :count].data], start * row_bytes) != count * row_bytes:
                raise InputError(f"{self.path}/features.bin: was shortened while it was open; open it again")
            features[i, count:] = 0
            boxes[i, :count] = self.all_boxes[start : start + count]
        sizes = np.stack([self.widths[rows], self.heights[rows]], axis=1).astype(np.int64)
        return Batch(features, boxes, counts, sizes)

    def problems(self) -> Iterator[str]:
        """Reads everything, and yields a message for each image whose bytes have changed since they were written."""
        for row in range(len(self)):
            if not self._files.is_whole(row):
                yield f"record {row + 1}: image {self._files.id(row)}: its bytes are not those that were written"
        if len(self._files.index) > len(self):
            yield f"records {len(self) + 1} to {len(self._files.index)}: are incomplete and left out"
        if lost := self._files.lost_records():
            yield f"index.bin: has lost its last {lost} records, whose images are left out"

    def _span(self, row: int) -> slice:
        """Returns where the regions of an image are among those of all images."""
        start = self.offsets.item(row)
        end = start + self.counts.item(row)
        if row in self._damaged or end > len(self._regions) or (end > start and end > len(self.all_features)):
            raise InputError(
                f"{self.path}: image {self._files.id(row)}: its record in index.bin is damaged; copy the folder again"
            )
        return slice(start, end)

    def _row(self, image_id: object) -> int:
        if type(image_id) is int and self._only_integers:
            place = self._search(image_id)
            if place < len(self._keys) and self._key_at(place) == image_id:
                return self._row_at(place)
            raise KeyError(image_id)
        parsed = image_id if type(image_id) is int else parse_id(image_id)
        key, text = key_and_text(parsed)
        place = self._keys.searchsorted(key)
        while place < len(self._keys) and self._keys.item(place) == key:
            row = self._row_at(place)
            if self._text(row) == text:
                return row
            place += 1
        raise KeyError(parsed)

    def _text(self, row: int) -> bytes:
        length = self._files.text_lengths.item(row)
        return self._files.text(row) if length else b""


class FlatWriter:
    """Appends images to a folder of the flat format.

    Args:
        path: The folder, which is created if it does not exist.
        dtype: Dtype of the stored features, "float32" or "float16".
        about: What to store about the features in the header, as JSON.

    Attributes:
        done: Ids of the images in the folder.

    Raises:
        InputError: The folder holds something else, or features with another dtype or another ``about``.
    """

    def __init__(self, path: str | Path, dtype: str = "float32", about: Mapping[str, object] | None = None):
        self.path = Path(path)
        self._header = create_or_read_header(self.path, dtype, about)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        (self.path / LOOKUP_FILE).unlink(missing_ok=True)
        for name in (*DATA_FILES, SYNCED_FILE):
            (self.path / name).touch()
        files = FlatFiles(self.path, self.dtype, self._header["dim"] or 0)
        self._records = files.whole_records()
        if damaged := files.damaged_records():
            raise InputError(
                f"{self.path}: index.bin: record {damaged[0] + 1}, or the data of its image, is damaged; nothing was "
                "deleted; copy the folder again, or choose another output"
            )
        files.check_unique(*make_lookup(files.index[: self._records]))
        self._ends = files.ends(self._records)
        self.done: set[int | str] = files.ids(self._records)
        if incomplete := len(files.index) - self._records:
            logger.warning("%s: its last %d images are incomplete and are deleted", self.path, incomplete)
        if lost := files.lost_records():
            logger.warning(
                "%s: has lost the last %d records of index.bin, whose images are written again", self.path, lost
            )
        del files
        self._handles = {name: _open_for_writing(self.path / name) for name in (*DATA_FILES, SYNCED_FILE)}
        self._truncate()
        self.sync()

    def append(self, regions: Regions) -> None:
        """Writes one image.

        Raises:
            InputError: The id is empty or already in the folder, the features have another dimension than those of the
                images before, they are outside the range of the dtype, or a number is not finite.
        """
        check_regions(regions)
        image_id = parse_id(regions.image_id)
        if image_id in self.done or image_id == "":
            raise InputError(f"image id {image_id!r}: is {'already in the output' if image_id else 'empty'}")
        features, rows = self._features_of(regions).tobytes(), region_rows(regions).tobytes()
        record, text = self._record_of(image_id, regions)
        record["checksum"] = checksum(features, rows, text, record.tobytes())
        self._append([image_id], (features, rows, text, record.tobytes()))

    def merge(self, part: Path) -> None:
        """Adds the images of another folder of the same format that are not in ``done``, by copying their bytes.

        Raises:
            InputError: The folder is incomplete, or its features have another dtype or dimension.
        """
        header = read_header(part)
        files = FlatFiles(part, self.dtype, header["dim"] or 0)
        ids = [files.id(row) for row in range(len(files.index))]
        new = np.array([image_id not in self.done for image_id in ids], bool)
        if not new.any():
            return
        if header["dim"]:
            self._take_first_dim(header["dim"])
        for name in ("dtype", "dim"):
            if header[name] not in (self._header[name], None):
                raise InputError(f"{part}: {name} is {header[name]}; {self.path} needs {self._header[name]}")
        if not files.has_ends(len(ids)) or files.damaged_records():
            raise InputError(f"{part}: is incomplete; extract its images again")
        bounds = np.flatnonzero(np.diff(new, prepend=False, append=False)).tolist()
        for first, last in zip(bounds[::2], bounds[1::2]):
            self._append(ids[first:last], files.contents(first, last, self._ends))

    def sync(self) -> None:
        """Syncs everything that was appended to the disk."""
        for name, handle in self._handles.items():
            check_in_place(self.path / name, handle)
        for name in DATA_FILES:
            os.fsync(self._handles[name])
        write_at(self._handles[SYNCED_FILE], self._records.to_bytes(8, "little"), 0)
        os.fsync(self._handles[SYNCED_FILE])

    def finish(self) -> None:
        """Syncs, and writes the sorted ids for readers."""
        self.sync()
        files = FlatFiles(self.path, self.dtype, self._header["dim"] or 0)
        save_lookup(self.path, make_lookup(files.index))

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def _features_of(self, regions: Regions) -> np.ndarray:
        features = np.asarray(regions.features)
        if not len(features):
            return np.empty((0, 0), self.dtype)
        self._take_first_dim(features.shape[1])
        if features.shape != (len(regions), self._header["dim"]):
            raise InputError(
                f"image {regions.image_id}: features have the shape {features.shape}; "
                f"{self.path} needs {(len(regions), self._header['dim'])}"
            )
        try:
            with np.errstate(over="raise"):
                return np.ascontiguousarray(features, self.dtype)
        except FloatingPointError:
            message = f"image {regions.image_id}: features are outside the range of float16; use the format flat"
            raise InputError(message) from None

    def _take_first_dim(self, dim: int) -> None:
        """Writes the feature dimension into the header, unless there are features."""
        if self._records == 0 or not self._header["dim"]:
            header = {**self._header, "dim": dim}
            write_header(self.path, header)
            self._header = header

    def _append(self, ids: list[int | str], contents: tuple[bytes | memoryview, ...]) -> None:
        """Appends to each of DATA_FILES what images with these ids have in it."""
        try:
            for name, content in zip(DATA_FILES, contents):
                write_at(self._handles[name], content, self._ends[name])
        except BaseException:
            self._truncate()
            raise
        for name, content in zip(DATA_FILES, contents):
            self._ends[name] += len(content)
        self._records += len(ids)
        self.done.update(ids)

    def _record_of(self, image_id: int | str, regions: Regions) -> tuple[np.ndarray, bytes]:
        key, text = key_and_text(image_id)
        record = np.zeros((), RECORD)
        record["offset"] = self._ends["regions.bin"] // REGION.itemsize
        record["text_offset"], record["text_length"] = self._ends["ids.bin"], len(text)
        record["key"], record["count"] = key, len(regions)
        record["width"], record["height"] = regions.width, regions.height
        record["labels"] = sum(1 << bit for bit, name in enumerate(LABEL_FIELDS) if getattr(regions, name) is not None)
        return record, text

    def _truncate(self) -> None:
        for name in DATA_FILES:
            os.ftruncate(self._handles[name], self._ends[name])


def _open_for_writing(path: Path) -> int:
    open_regular(path).close()  # a named pipe would be waited for
    return os.open(path, os.O_WRONLY)
