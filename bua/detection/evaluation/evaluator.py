"""Evaluates objects and attributes on a detection data set. Both engines use it."""

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
from bua.errors import InputError, make_folder


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
            ``attribute_names``, ``boxes(i)``, ``classes(i)`` and ``attributes(i)``. Boxes are in pixels of the original
            image.
        protocols: One or more of ``bua.detection.evaluation.average_precision.PROTOCOLS``. Metrics of the first
            protocol are named without it.
        convention, nms_threshold, max_detections, score_threshold: Arguments of ``object_detections``.
        output_dir: Folder that ``evaluate`` writes ``objects_<protocol>.tsv`` and ``attributes_<protocol>.tsv`` to.
            These have a line for each class with its name, average precision and number of boxes in the ground truth.
            With None, nothing is written.
        coco: Whether ``evaluate`` also computes COCO's AP of objects.
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
    ):
        unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
        if unknown or not protocols:
            given = f"unknown: {', '.join(unknown)}" if unknown else "none given"
            raise InputError(f"protocols: {given}; use one or more of {', '.join(PROTOCOLS)}")
        self.dataset = dataset
        self.protocols = tuple(protocols)
        self.convention, self.nms_threshold = convention, nms_threshold
        self.max_detections, self.score_threshold = max_detections, score_threshold
        self.output_dir = None if output_dir is None else make_folder(output_dir)
        self.coco = coco
        self._index = {image_id: index for index, image_id in enumerate(np.asarray(dataset.image_ids).tolist())}
        self.reset()

    def reset(self) -> None:
        """Removes all detections."""
        self._detections: dict[str, dict[int, np.ndarray]] = {"objects": {}, "attributes": {}}

    def process(self, inputs: Iterable, outputs: Iterable[dict]) -> None:
        """Adds the detections of some images.

        Args:
            inputs: The detector's inputs: for each image a ``DetectorInput``, or a dict with ``image_id``.
            outputs: For each image a dict with ``objects``, the image's ``RegionPredictions``, or with ``detections``,
                the ``DetectedBoxes`` of a detector that suppresses and limits its boxes itself. If attributes are to be
                evaluated, it also has ``attributes``, the ``RegionPredictions`` for the boxes of the ground truth.

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
                self._detections["attributes"][index] = attribute_detections(
                    output["attributes"], max_detections=self.max_detections
                )

    @property
    def detections(self) -> dict[str, dict[int, np.ndarray]]:
        """The detections so far, in a form that ``add_detections`` takes in another process."""
        return self._detections

    def add_detections(self, detections: dict[str, dict[int, np.ndarray]]) -> None:
        """Adds the ``detections`` of an evaluator of the same data set, which processed other images."""
        for kind, found in detections.items():
            self._detections[kind].update(found)

    def evaluate(self) -> dict[str, float]:
        """Scores the processed images and writes the tables.

        Returns:
            Metrics from 0 to 1: ``objects/mAP50`` and ``objects/weighted_mAP50`` for the first protocol,
            ``objects/<protocol>/mAP50`` and ``objects/<protocol>/weighted_mAP50`` for the others, and
            ``objects/coco_AP``. If attributes were detected, there are the same metrics for ``attributes``, except
            COCO's.

        Raises:
            InputError: No image was processed.
        """
        metrics = {}
        for kind in self._kinds():
            detections, ground_truth = self._rows(kind)
            names = self._names(kind)
            for protocol in self.protocols:
                curves = precision_recall(detections, ground_truth, len(names), protocol=protocol)
                ap = np.array([curve.average_precision for curve in curves])
                count = np.array([curve.count for curve in curves])
                prefix = kind if protocol == self.protocols[0] else f"{kind}/{protocol}"
                metrics[f"{prefix}/mAP50"], metrics[f"{prefix}/weighted_mAP50"] = mean_average_precision(ap, count)
                if self.output_dir is not None:
                    _write_table(self.output_dir / f"{kind}_{protocol}.tsv", names, ap, count)
            if self.coco and kind == "objects":
                metrics["objects/coco_AP"] = coco_average_precision(detections, ground_truth)
        return metrics

    def precision_recall(self, kind: str, names: Iterable[str] | None = None) -> dict[str, PrecisionRecall]:
        """Returns the precision-recall curves of the processed images under the first protocol.

        Args:
            kind: ``"objects"`` or ``"attributes"``.
            names: Names of classes, as the vocabulary displays them. By default the curves of all classes are returned.
        """
        all_names = self._names(kind)
        curves = precision_recall(*self._rows(kind), len(all_names), protocol=self.protocols[0])
        by_name = dict(zip(all_names, curves))
        return by_name if names is None else {name: by_name[name] for name in names}

    def _kinds(self) -> list[str]:
        if not self._detections["objects"]:
            raise InputError(f"{self.dataset.name}: no image was processed; evaluate at least one image")
        return [kind for kind, detections in self._detections.items() if detections]

    def _names(self, kind: str) -> list[str]:
        return (self.dataset.objects if kind == "objects" else self.dataset.attribute_names).names

    def _rows(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns detections [N, 7] and ground truth [M, 6] of the processed images, in the data set's order."""
        indices = sorted(self._detections["objects"])
        detected = self._detections[kind]
        detections = [_with_image(index, detected[index]) for index in indices if index in detected]
        ground_truth_of = self._object_ground_truth if kind == "objects" else self._attribute_ground_truth
        ground_truth = [_with_image(index, ground_truth_of(index)) for index in indices]
        return np.concatenate(detections or [np.empty((0, 7))]), np.concatenate(ground_truth)

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
    path.write_text("class\tap\tnpos\n" + "".join(lines), encoding="utf-8")
