"""Evaluates objects and attributes on a detection data set. Both engines use it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bua.detection.evaluation.average_precision import (
    PROTOCOLS,
    PrecisionRecall,
    mean_average_precision,
    precision_recall,
)
from bua.detection.evaluation.coco import coco_average_precision
from bua.detection.evaluation.detections import attribute_detections, object_detections
from bua.detection.evaluation.output import write_results
from bua.detection.evaluation.zero_rows import numbers_of_zero_rows, with_zero_rows
from bua.errors import InputError, make_folder

# Detections of attributes at the annotated boxes and at the original's rows of zeros.
_AT_ZERO_ROWS_TOO = "attributes_with_zero_rows"


class VisualGenomeEvaluator:
    """Collects the detections of images and scores them.

    It has the methods of Detectron2's ``DatasetEvaluator`` but does not need Detectron2. The class of the same name in
    ``bua.d2`` is a subclass of this one, which also derives from ``DatasetEvaluator``.

    Objects are detected anywhere in the image. Attributes are detected at the boxes of the ground truth: each pair of a
    box and an attribute is a detection, which is correct if it overlaps a box that has the attribute. Only the images
    that were processed are scored, so that a part of the data set can be evaluated. An image that is processed twice is
    scored once.

    Args:
        dataset: A ``DetectionDataset``, or an object with its ``name``, ``image_ids``, ``objects``,
            ``attribute_names``, ``boxes(i)``, ``classes(i)`` and ``attributes(i)``; also ``category_ids`` if files are
            written, and ``zero_rows`` if these are wanted. Boxes are in pixels of the original image.
        protocols: One or more of ``bua.detection.evaluation.average_precision.PROTOCOLS``. Metrics of the first
            protocol are named without it.
        convention, nms_threshold, max_detections, score_threshold: Arguments of ``object_detections``.
        output_dir: Folder of the files that ``evaluate`` writes, see ``write_to``. With None, nothing is written.
        coco: Whether ``evaluate`` also computes COCO's AP of objects.
        keep_detections: Whether ``objects.json`` and ``attributes.json`` are among the files.
        zero_rows: Whether attributes are also detected at the original's rows of zeros, of which
            ``bua.detection.evaluation.zero_rows`` tells. Only the metrics of attributes by the protocol ``original``
            change, and are usually a little lower. The detector must predict attributes for ``attribute_boxes``.

    Raises:
        InputError: A protocol is unknown, the folder cannot be written to, or the data set's file has no rows of zeros.
    """

    def __init__(
        self,
        dataset,
        protocols: Sequence[str] = ("corrected", "original"),
        *,
        convention: str = "caffe",
        nms_threshold: float = 0.3,
        max_detections: int = 400,
        score_threshold: float = -np.inf,
        output_dir: str | Path | None = None,
        coco: bool = True,
        keep_detections: bool = True,
        zero_rows: bool = False,
    ):
        unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
        if unknown or not protocols:
            given = f"unknown: {', '.join(unknown)}" if unknown else "none given"
            raise InputError(f"protocols: {given}; use one or more of {', '.join(PROTOCOLS)}")
        self.dataset = dataset
        self.protocols = tuple(protocols)
        self.convention, self.nms_threshold = convention, nms_threshold
        self.max_detections, self.score_threshold = max_detections, score_threshold
        self.coco, self.keep_detections = coco, keep_detections
        self.zero_rows = numbers_of_zero_rows(dataset) if zero_rows else None
        self.write_to(output_dir)
        self._index = {image_id: index for index, image_id in enumerate(np.asarray(dataset.image_ids).tolist())}
        self.reset()

    def write_to(self, folder: str | Path | None) -> None:
        """Sets the folder that ``evaluate`` writes to, and creates it. With None, nothing is written.

        The files are

        - ``objects_<protocol>.tsv`` and ``attributes_<protocol>.tsv``: a line for each class with its name, average
          precision and number of boxes in the ground truth.
        - ``objects.json``: the detections of objects in COCO's results format. Ids are those of the annotation file, so
          that ``pycocotools.coco.COCO(annotation file).loadRes`` reads it.
        - ``attributes.json``: the detections of attributes at annotated boxes in the same form, where ``category_id``
          is the attribute: its ``id`` in ``attribute_categories`` of the annotation file, which is its row in
          ``attributes_<protocol>.tsv``, counted from 0 without the header.

        Raises:
            InputError: The folder cannot be created or written to.
        """
        self.output_dir = None if folder is None else make_folder(folder)
        if self.output_dir is not None and not os.access(self.output_dir, os.W_OK):
            raise InputError(f"{self.output_dir}: no permission to write to this folder; name another place")

    def reset(self) -> None:
        """Removes all detections."""
        self._detections: dict[str, dict[int, np.ndarray]] = {"objects": {}, "attributes": {}}
        if self.zero_rows is not None:
            self._detections[_AT_ZERO_ROWS_TOO] = {}

    def attribute_boxes(self, index: int) -> np.ndarray:
        """Returns the boxes of an image that attributes are to be predicted for: those of the ground truth and, if
        these are wanted, the original's rows of zeros after them, [G, 4] float32 x1y1x2y2 in pixels."""
        boxes: np.ndarray = self.dataset.boxes(index)
        return boxes if self.zero_rows is None else with_zero_rows(boxes, self.zero_rows[index])

    def process(self, inputs: Iterable, outputs: Iterable[dict]) -> None:
        """Adds the detections of some images.

        Args:
            inputs: The detector's inputs: for each image a ``DetectorInput``, or a dict with ``image_id``.
            outputs: For each image a dict with ``objects``, the image's ``RegionPredictions``, or with ``detections``,
                the ``DetectedBoxes`` of a detector that suppresses and limits its boxes itself. If attributes are to be
                evaluated, it also has ``attributes``, the ``RegionPredictions`` for ``attribute_boxes``.

        Raises:
            InputError: An image is not in the data set.
        """
        for image, output in zip(inputs, outputs):
            image_id = image["image_id"] if isinstance(image, dict) else image.image_id
            if image_id not in self._index:
                raise InputError(
                    f"{self.dataset.name}: has no image_id {image_id!r}; evaluate on images of this data set"
                )
            index = self._index[image_id]
            if "detections" in output:
                found = output["detections"]
                rows = np.column_stack((found.classes, found.scores, found.boxes)).astype(np.float32)
            else:
                rows = object_detections(
                    output["objects"],
                    convention=self.convention,
                    nms_threshold=self.nms_threshold,
                    max_detections=self.max_detections,
                    score_threshold=self.score_threshold,
                )
            self._detections["objects"][index] = rows
            if "attributes" in output:
                predictions, limit = output["attributes"], self.max_detections
                self._detections["attributes"][index] = attribute_detections(
                    predictions, max_detections=limit, num_boxes=len(self.dataset.boxes(index))
                )
                if self.zero_rows is not None:
                    self._detections[_AT_ZERO_ROWS_TOO][index] = attribute_detections(predictions, max_detections=limit)

    @property
    def detections(self) -> dict[str, dict[int, np.ndarray]]:
        """The detections so far, in a form that ``add_detections`` takes in another process."""
        return self._detections

    def add_detections(self, detections: dict[str, dict[int, np.ndarray]]) -> None:
        """Adds the ``detections`` of an evaluator of the same data set, which processed other images."""
        for kind, found in detections.items():
            self._detections[kind].update(found)

    def evaluate(self) -> dict[str, float]:
        """Scores the processed images and writes the files.

        Returns:
            Metrics from 0 to 1, first those of the protocol ``original``: ``objects/mAP50`` and
            ``objects/weighted_mAP50`` for the first protocol, ``objects/<protocol>/mAP50`` and
            ``objects/<protocol>/weighted_mAP50`` for the others, and ``objects/coco_AP``. If attributes were detected,
            there are the same metrics for ``attributes``, except COCO's.

        Raises:
            InputError: No image was processed, or a file cannot be written.
        """
        metrics = {}
        for kind in self._kinds():
            names, ground_truth = self._names(kind), self._ground_truth(kind)
            for protocol in sorted(self.protocols, key=lambda name: name != "original"):
                detections = self._detected(kind, protocol)
                curves = precision_recall(detections, ground_truth, len(names), protocol=protocol)
                ap = np.array([curve.average_precision for curve in curves])
                count = np.array([curve.count for curve in curves])
                prefix = kind if protocol == self.protocols[0] else f"{kind}/{protocol}"
                metrics[f"{prefix}/mAP50"], metrics[f"{prefix}/weighted_mAP50"] = mean_average_precision(ap, count)
                if self.output_dir is not None:
                    _write_table(self.output_dir / f"{kind}_{protocol}.tsv", names, ap, count)
            if self.output_dir is not None and self.keep_detections:
                self._write_detections(self.output_dir / f"{kind}.json", kind)
            if self.coco and kind == "objects":
                metrics["objects/coco_AP"] = coco_average_precision(detections, ground_truth)
        return metrics

    def precision_recall(self, kind: str, names: Iterable[str] | None = None) -> dict[str, PrecisionRecall]:
        """Returns the precision-recall curves of the processed images under the first protocol.

        Args:
            kind: ``"objects"`` or ``"attributes"``.
            names: Names of classes, as the vocabulary displays them. By default the curves of all classes are returned.
        """
        all_names, protocol = self._names(kind), self.protocols[0]
        detections, ground_truth = self._detected(kind, protocol), self._ground_truth(kind)
        curves = precision_recall(detections, ground_truth, len(all_names), protocol=protocol)
        by_name = dict(zip(all_names, curves))
        return by_name if names is None else {name: by_name[name] for name in names}

    def _kinds(self) -> list[str]:
        if not self._detections["objects"]:
            raise InputError(f"{self.dataset.name}: no image was processed; evaluate at least one image")
        return [kind for kind in ("objects", "attributes") if self._detections[kind]]

    def _names(self, kind: str) -> list[str]:
        return (self.dataset.objects if kind == "objects" else self.dataset.attribute_names).names

    def _detected(self, kind: str, protocol: str) -> np.ndarray:
        """Returns the detections [N, 7] that a protocol scores, in the data set's order of images."""
        if kind == "attributes" and protocol == "original" and self.zero_rows is not None:
            kind = _AT_ZERO_ROWS_TOO
        detected = self._detections[kind]
        rows = [_with_image(index, detected[index]) for index in sorted(detected)]
        return np.concatenate(rows or [np.empty((0, 7))])

    def _ground_truth(self, kind: str) -> np.ndarray:
        """Returns the ground truth [M, 6] of the processed images, in the data set's order."""
        ground_truth_of = self._object_ground_truth if kind == "objects" else self._attribute_ground_truth
        indices = sorted(self._detections["objects"])
        return np.concatenate([_with_image(index, ground_truth_of(index)) for index in indices])

    def _write_detections(self, path: Path, kind: str) -> None:
        detected = self._detections[kind]
        images = ((int(self.dataset.image_ids[index]), detected[index]) for index in sorted(detected))
        write_results(path, images, self.dataset.category_ids if kind == "objects" else None)

    def _object_ground_truth(self, index: int) -> np.ndarray:
        return np.column_stack((self.dataset.classes(index), self.dataset.boxes(index)))

    def _attribute_ground_truth(self, index: int) -> np.ndarray:
        # An attribute that is annotated twice for the same box is counted once.
        rows = [
            (attribute, *box)
            for box, attributes in zip(self.dataset.boxes(index), self.dataset.attributes(index))
            for attribute in np.unique(attributes[attributes >= 0])
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _with_image(index: int, rows: np.ndarray) -> np.ndarray:
    return np.column_stack((np.full(len(rows), float(index)), rows))


def _write_table(path: Path, names: list[str], ap: np.ndarray, count: np.ndarray) -> None:
    lines = [f"{name}\t{precision:.4f}\t{number}\n" for name, precision, number in zip(names, ap, count)]
    try:
        path.write_text("class\tap\tnpos\n" + "".join(lines), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror}; free some space or name another place"
        ) from error
