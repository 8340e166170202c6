"""Evaluation of objects and attributes on a detection data set, whichever engine detects them."""

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
    """Collects the detections of images, then scores them; its methods are those of Detectron2's DatasetEvaluator.

    Objects are detected anywhere in the image. Attributes are detected at the boxes of the ground truth: each box
    in each attribute is a detection, right when it overlaps a box that has the attribute. Only images that were
    processed count, so that a part of the data set can be evaluated; one that is processed twice counts once.

    Args:
        dataset: a ``DetectionDataset``, or what has its ``name``, ``image_ids``, ``objects``, ``attribute_names`` and
            ``boxes(i)``, ``classes(i)``, ``attributes(i)``, boxes in pixels of the original image.
        protocols: which of ``bua.detection.evaluation.average_precision.PROTOCOLS``; the first has the plain metric
            names.
        convention, nms_threshold, max_detections, score_threshold: as ``object_detections`` takes them.
        output_dir: where ``evaluate`` writes ``objects_<protocol>.tsv`` and ``attributes_<protocol>.tsv``, a line a
            class with its name, average precision and boxes in the ground truth; None writes nothing.
        coco: whether ``evaluate`` also computes COCO's AP of objects.
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
            raise InputError(f"protocols: {', '.join(unknown) or 'none'} given; use some of {', '.join(PROTOCOLS)}")
        self.dataset = dataset
        self.protocols = tuple(protocols)
        self.max_detections = max_detections
        self.output_dir = None if output_dir is None else make_folder(output_dir)
        self.coco = coco
        self._suppression = {
            "convention": convention,
            "nms_threshold": nms_threshold,
            "score_threshold": score_threshold,
        }
        self._index = {image_id: index for index, image_id in enumerate(np.asarray(dataset.image_ids).tolist())}
        self.reset()

    def reset(self) -> None:
        """Forgets all detections."""
        self._detections: dict[str, dict[int, np.ndarray]] = {"objects": {}, "attributes": {}}

    def process(self, inputs: Iterable, outputs: Iterable[dict]) -> None:
        """Takes in the detections of some images.

        Args:
            inputs: what the detector was given: a ``DetectorInput`` or a dict with ``image_id`` for each image.
            outputs: for each image a dict with ``objects``: its ``RegionPredictions``, and, where attributes are to
                be evaluated, ``attributes``: its ``RegionPredictions`` at the boxes of the ground truth.

        Raises:
            InputError: an image that is not in the data set.
        """
        for image, output in zip(inputs, outputs):
            image_id = image["image_id"] if isinstance(image, dict) else image.image_id
            if image_id not in self._index:
                raise InputError(
                    f"{self.dataset.name}: no image_id {image_id!r}; evaluate on the data set's own images"
                )
            index = self._index[image_id]
            self._detections["objects"][index] = object_detections(
                output["objects"], max_detections=self.max_detections, **self._suppression
            )
            if "attributes" in output:
                self._detections["attributes"][index] = attribute_detections(
                    output["attributes"], max_detections=self.max_detections
                )

    def evaluate(self) -> dict[str, float]:
        """Scores what was processed and writes the tables.

        Returns:
            ``objects/mAP50`` and ``objects/weighted_mAP50`` of the first protocol, ``objects/<protocol>/mAP50`` and
            ``objects/<protocol>/weighted_mAP50`` of the others, ``objects/coco_AP``; the same for ``attributes``,
            without COCO's, where attributes were detected. All are 0 to 1.

        Raises:
            InputError: no image was processed.
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
        """The precision-recall curves, under the first protocol, of what was processed.

        Args:
            kind: ``"objects"`` or ``"attributes"``.
            names: of the wanted classes, as the vocabulary displays them; all by default.
        """
        all_names = self._names(kind)
        curves = precision_recall(*self._rows(kind), len(all_names), protocol=self.protocols[0])
        by_name = dict(zip(all_names, curves))
        return by_name if names is None else {name: by_name[name] for name in names}

    def _kinds(self) -> list[str]:
        if not self._detections["objects"]:
            raise InputError(f"{self.dataset.name}: no image was processed; give the detector at least one")
        return [kind for kind, detections in self._detections.items() if detections]

    def _names(self, kind: str) -> list[str]:
        return (self.dataset.objects if kind == "objects" else self.dataset.attribute_names).names

    def _rows(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Detections [N, 7] and ground truth [M, 6] of the processed images, in the data set's order."""
        indices = sorted(self._detections["objects"])
        detected = self._detections[kind]
        detections = [_with_image(index, detected[index]) for index in indices if index in detected]
        ground_truth_of = self._object_ground_truth if kind == "objects" else self._attribute_ground_truth
        ground_truth = [_with_image(index, ground_truth_of(index)) for index in indices]
        return np.concatenate(detections or [np.empty((0, 7))]), np.concatenate(ground_truth)

    def _object_ground_truth(self, index: int) -> np.ndarray:
        return np.column_stack((self.dataset.classes(index), self.dataset.boxes(index)))

    def _attribute_ground_truth(self, index: int) -> np.ndarray:
        # An attribute that is given to a box twice is there once.
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
