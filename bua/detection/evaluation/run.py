"""Runs a detector over a data set and evaluates its predictions."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bua.detection.evaluation.evaluator import VisualGenomeEvaluator
from bua.engine.collectives import gather_to_main, num_processes
from bua.errors import InputError
from bua.io.images import naming_image, read_image
from bua.modeling.detector import Detector
from bua.modeling.efficientdet import EfficientDet, EfficientDetBoxes
from bua.modeling.optimize import OptimizedDetector, optimize_for_inference

# Number of images that the detector processes at a time, by the type of its device.
BATCH_SIZES = {"cpu": 1, "cuda": 8}


def evaluate_detector(
    detector,
    evaluator: VisualGenomeEvaluator,
    *,
    batch_size: int | None = None,
    num_workers: int = 2,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Detects objects, and attributes at the boxes of the ground truth, in the evaluator's data set, and scores them.

    If several processes are connected (``bua.engine.connect``), all of them must call it. They share the images, and
    the main process scores the detections of all; the metrics are those of a single process.

    Args:
        detector: A ``bua.modeling.Detector``, of which an optimised copy detects, an EfficientDet, which detects
            objects only, or an object with the methods ``prepare`` and ``infer`` of a ``Detector``. It should use the
            same box convention as the evaluator.
        evaluator: Evaluator of the data set. It is reset first and contains the detections afterwards, in the main
            process those of all processes.
        batch_size: Number of images that the detector processes at a time. By default it is 8 on a GPU and 1 on a CPU.
        num_workers: Number of processes that decode and resize images, for each process. With 0, this process does it.
        limit: Number of images to evaluate, from the start of the data set. None evaluates all.
        progress: Whether to show a progress bar with images per second and the time left.

    Returns:
        The metrics of ``evaluator.evaluate()``. In all processes but the main one, the dict is empty.

    Raises:
        InputError: An image, which the message names, cannot be read.
    """
    if isinstance(detector, EfficientDet):
        _share_statistics(detector)
        detector = detector.for_inference()
    elif isinstance(detector, Detector) and not isinstance(detector, OptimizedDetector):
        _share_statistics(detector)
        detector = optimize_for_inference(detector)
    device = detector.device.type if isinstance(detector, Detector | EfficientDetBoxes) else "cpu"
    if batch_size is None:
        batch_size = BATCH_SIZES.get(device, 1)
    dataset = evaluator.dataset
    number = len(dataset) if limit is None else min(limit, len(dataset))
    rank = dist.get_rank() if num_processes() > 1 else 0
    indices = range(rank, number, num_processes())
    loader = DataLoader(
        _Images(dataset, detector.prepare, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=device == "cuda",
    )
    evaluator.reset()
    done = 0
    with tqdm(
        total=len(indices), desc=f"evaluate {dataset.name}", unit="image", disable=not progress or rank > 0
    ) as bar:
        for batch in loader:
            for item in batch:
                if isinstance(item, InputError):
                    raise item
            rows = indices[done : done + len(batch)]
            boxes = [torch.as_tensor(evaluator.attribute_boxes(index)) for index in rows]
            evaluator.process(batch, _detect(detector, batch, boxes))
            done += len(batch)
            bar.update(len(batch))
    parts = gather_to_main(evaluator.detections)
    if parts is None:
        return {}
    for part in parts:
        evaluator.add_detections(part)
    return evaluator.evaluate()


def _share_statistics(detector: nn.Module) -> None:
    """Copies the statistics of trained normalisation layers from the main process, whose are in checkpoints."""
    if num_processes() == 1:
        return
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def _detect(detector, batch: list, boxes: list[torch.Tensor]) -> list[dict]:
    """Returns the detector's predictions for a batch of images, as ``VisualGenomeEvaluator.process`` takes them.

    Args:
        boxes: [G, 4] boxes of each image for which attributes are predicted.
    """
    if isinstance(detector, EfficientDetBoxes):
        return [{"detections": found} for found in detector.detect_boxes(batch)]
    if isinstance(detector, Detector) and detector.roi_heads.attribute_predictor is not None:
        both = zip(boxes, *detector.infer_both(batch, boxes))
        return [{"objects": found} | ({"attributes": at} if len(given) else {}) for given, found, at in both]
    outputs = [{"objects": predictions} for predictions in detector.infer(batch)]
    annotated = [i for i in range(len(batch)) if len(boxes[i]) and outputs[i]["objects"].attribute_probs is not None]
    if annotated:
        at_boxes = detector.infer([batch[i] for i in annotated], boxes=[boxes[i] for i in annotated])
        for i, predictions in zip(annotated, at_boxes):
            outputs[i]["attributes"] = predictions
    return outputs


class _Images(Dataset):
    """Images of a data set, prepared for the detector.

    If an image cannot be read, its item is the InputError, because a data loader would add the worker's traceback to an
    error that is raised in a worker.
    """

    def __init__(self, dataset, prepare, indices: Sequence[int]):
        self.dataset, self.prepare, self.indices = dataset, prepare, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int):
        index = self.indices[position]
        file_name = self.dataset.file_name(index)
        try:
            with naming_image(file_name):
                return self.prepare(read_image(file_name), int(self.dataset.image_ids[index]))
        except InputError as error:
            return error
