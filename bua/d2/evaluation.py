"""The evaluation of ``bua.detection.evaluation`` in Detectron2's processes."""

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

import bua.detection.evaluation


class VisualGenomeEvaluator(bua.detection.evaluation.VisualGenomeEvaluator, DatasetEvaluator):
    """A ``DatasetEvaluator`` of the outputs of ``AttributeRCNN``.

    It is a subclass of the class of the same name in ``bua.detection.evaluation``, which computes all scores. This one
    adds what Detectron2 needs: it gathers the detections of all processes and nests the metrics.
    """

    # Detectron2 wants the metrics in nested dicts, where bua's own evaluator returns a flat one.
    def evaluate(self) -> dict[str, dict[str, float]]:  # type: ignore[override]
        """Scores the images that all processes have processed. All processes must call it.

        Returns:
            The metrics of ``bua.detection.evaluation.VisualGenomeEvaluator`` in Detectron2's form, ``{"objects":
            {"mAP50": ...}}``, in the main process, and an empty dict in the others.
        """
        parts = comm.gather(self.detections)
        if not comm.is_main_process():
            return {}
        for part in parts:
            self.add_detections(part)
        nested: dict[str, dict[str, float]] = {}
        for name, value in super().evaluate().items():
            kind, _, metric = name.partition("/")
            nested.setdefault(kind, {})[metric] = value
        return nested
