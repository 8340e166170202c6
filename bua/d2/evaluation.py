"""The evaluation of ``bua.detection.evaluation`` over Detectron2's processes."""

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

import bua.detection.evaluation


class VisualGenomeEvaluator(bua.detection.evaluation.VisualGenomeEvaluator, DatasetEvaluator):
    """Scores the outputs of ``AttributeRCNN``, of which each process has seen a part."""

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The metrics of ``bua.detection.evaluation.VisualGenomeEvaluator`` as Detectron2 nests them,
        ``{"objects": {"mAP50": ...}}``, in the main process; an empty dictionary in the others. All processes must
        call it."""
        parts = comm.gather(self._detections)
        if not comm.is_main_process():
            return {}
        for part in parts:
            for kind, detections in part.items():
                self._detections[kind].update(detections)
        nested = {}
        for name, value in super().evaluate().items():
            kind, _, metric = name.partition("/")
            nested.setdefault(kind, {})[metric] = value
        return nested
