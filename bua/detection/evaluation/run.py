"""Runs a detector over a data set and evaluates its predictions."""

from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bua.detection.evaluation.evaluator import VisualGenomeEvaluator
from bua.errors import InputError
from bua.io.images import read_image


def evaluate_detector(
    detector,
    evaluator: VisualGenomeEvaluator,
    *,
    batch_size: int = 1,
    num_workers: int = 2,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Detects objects, and attributes at the boxes of the ground truth, in the evaluator's data set, and scores them.

    Args:
        detector: A ``bua.modeling.Detector``, or an object with its methods ``prepare`` and ``infer``. It should use
            the same box convention as the evaluator.
        evaluator: Evaluator of the data set. It is reset first and contains the detections afterwards.
        batch_size: Number of images that the detector processes at a time.
        num_workers: Number of processes that decode and resize images. With 0, this process does it.
        limit: Number of images to evaluate, from the start of the data set. None evaluates all.
        progress: Whether to show a progress bar with images per second and the time left.

    Returns:
        The metrics of ``evaluator.evaluate()``.

    Raises:
        InputError: An image, which the message names, cannot be read.
    """
    dataset = evaluator.dataset
    number = len(dataset) if limit is None else min(limit, len(dataset))
    loader = DataLoader(
        _Images(dataset, detector.prepare, number),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
    )
    evaluator.reset()
    indices = iter(range(number))
    with tqdm(total=number, desc=f"evaluate {dataset.name}", unit="image", disable=not progress) as bar:
        for batch in loader:
            for item in batch:
                if isinstance(item, InputError):
                    raise item
            evaluator.process(batch, _detect(detector, batch, dataset, list(islice(indices, len(batch)))))
            bar.update(len(batch))
    return evaluator.evaluate()


def _detect(detector, batch: list, dataset, indices: list[int]) -> list[dict]:
    outputs = [{"objects": predictions} for predictions in detector.infer(batch)]
    boxes = [torch.as_tensor(dataset.boxes(index)) for index in indices]
    annotated = [i for i in range(len(batch)) if len(boxes[i]) and outputs[i]["objects"].attribute_probs is not None]
    if annotated:
        at_boxes = detector.infer([batch[i] for i in annotated], boxes=[boxes[i] for i in annotated])
        for i, predictions in zip(annotated, at_boxes):
            outputs[i]["attributes"] = predictions
    return outputs


class _Images(Dataset):
    """The first images of a data set, prepared for the detector.

    If an image cannot be read, its item is the InputError, because a data loader would add the worker's traceback to an
    error that is raised in a worker.
    """

    def __init__(self, dataset, prepare, number: int):
        self.dataset, self.prepare, self.number = dataset, prepare, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int):
        try:
            image = read_image(self.dataset.file_name(index))
        except InputError as error:
            return error
        return self.prepare(image, int(self.dataset.image_ids[index]))
