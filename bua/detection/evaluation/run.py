"""Runs a detector over a data set for an evaluator."""

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
        detector: has ``prepare`` and ``infer`` as ``bua.modeling.Detector`` has them. Its convention should be the
            evaluator's.
        evaluator: new or in use; it is reset first, and holds the detections afterwards.
        batch_size: images that the detector gets at a time.
        num_workers: processes that decode and resize images; 0 does it in this one.
        limit: only the first so many images of the data set.
        progress: whether to show a bar with images a second and the time left.

    Returns:
        the metrics of ``evaluator.evaluate()``.

    Raises:
        InputError: names an image that cannot be read.
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
            for image in batch:
                if isinstance(image, InputError):
                    raise image
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
    """The first images of a data set, ready for the detector. An InputError is an item, because a data loader would
    turn one that is raised in a worker into many lines."""

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
