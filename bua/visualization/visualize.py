"""Draws images with their annotations, a detector's predictions, or both side by side, and saves them in a folder."""

from collections.abc import Sequence, Sized
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bua.checkpoint import load_weights
from bua.detection.annotations import DetectionDataset
from bua.errors import InputError
from bua.io.images import read_image
from bua.modeling import Detector, build_detector
from bua.visualization.draw import save_image
from bua.visualization.labels import draw_labelled, labelled_annotations, labelled_detections
from bua.vocabulary import Vocabulary

GAP = 12  # pixels between two images


def load_detector(cfg, dataset: DetectionDataset) -> Detector:
    """Returns the detector of ``cfg`` with the weights that MODEL.WEIGHTS names.

    Raises:
        InputError: MODEL.WEIGHTS is empty, the weights do not fit, or the detector does not have as many classes as
            ``dataset``.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError("--weights: is missing; give a checkpoint such as output/model_final.pth")
    sizes = {"MODEL.ROI_HEADS.NUM_CLASSES": (cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(dataset.objects))}
    if cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        configured = cfg.MODEL.BUA.ATTRIBUTES.NUM_CLASSES
        sizes["MODEL.BUA.ATTRIBUTES.NUM_CLASSES"] = (configured, len(dataset.attribute_names))
    for key, (configured, in_dataset) in sizes.items():
        if configured != in_dataset:
            raise InputError(
                f"{dataset.name}: its vocabulary has {in_dataset} classes, {key} is {configured}; "
                "use the data set that the detector was trained on"
            )
    detector = build_detector(cfg)
    load_weights(detector, cfg.MODEL.WEIGHTS)
    return detector.eval()


def evenly(items: Sized, number: int) -> list[int]:
    """Returns ``number`` indices that are spread evenly over the items, or all indices if there are fewer items."""
    return np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int).tolist()


def draw_dataset(
    dataset: DetectionDataset,
    indices: Sequence[int],
    output: str | Path,
    *,
    detector: Detector | None = None,
    annotations: bool = True,
    threshold: float = 0.4,
) -> list[Path]:
    """Draws images of a data set, and saves them in a folder.

    Args:
        dataset: The data set.
        indices: Indices of the images to draw.
        output: The folder.
        detector: Detector whose predictions are drawn, if any.
        annotations: Whether to draw the annotations; they are on the left if predictions are drawn, too.
        threshold: Least probability of a predicted object.

    Returns:
        The files that were written: ``0001_<name of the image>.jpg`` and so on.

    Raises:
        InputError: There are no indices, an image cannot be read, or a file cannot be written.
    """
    if not len(indices):
        raise InputError(f"{dataset.name}: has no images to draw; choose another data set")
    files = []
    for number, index in enumerate(tqdm(indices, desc=f"draw {dataset.name}", unit="image"), start=1):
        file_name = dataset.file_name(index)
        image = read_image(file_name)
        sides = []
        if annotations:
            sides.append(draw_labelled(image, labelled_annotations(dataset, index)))
        if detector is not None:
            sides.append(draw_predictions(image, detector, dataset.objects, dataset.attribute_names, threshold))
        files.append(_save(output, number, file_name, _side_by_side(sides)))
    return files


def draw_files(
    file_names: Sequence[str | Path],
    output: str | Path,
    *,
    detector: Detector,
    objects: Vocabulary,
    attributes: Vocabulary,
    threshold: float = 0.4,
) -> list[Path]:
    """Draws a detector's predictions on image files, and saves the images in a folder.

    Args:
        file_names: The image files.
        objects, attributes: Names of the detector's classes.
        output, detector, threshold: As for ``draw_dataset``.

    Returns:
        The files that were written, as ``draw_dataset`` names them.
    """
    files = []
    for number, file_name in enumerate(tqdm(file_names, desc="draw", unit="image"), start=1):
        drawn = draw_predictions(read_image(file_name), detector, objects, attributes, threshold)
        files.append(_save(output, number, file_name, drawn))
    return files


def draw_predictions(
    image: np.ndarray, detector: Detector, objects: Vocabulary, attributes: Vocabulary, threshold: float
) -> np.ndarray:
    """Returns the image ([H, W, 3] uint8 BGR) with the objects that the detector finds: [H', W', 3] uint8 BGR."""
    found = labelled_detections(
        detector.predict([image])[0], objects, attributes, threshold, convention=detector.convention
    )
    return draw_labelled(image, found)


def _side_by_side(sides: list[np.ndarray]) -> np.ndarray:
    gap = np.full((sides[0].shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([part for side in sides for part in (gap, side)][1:])


def _save(output: str | Path, number: int, source: str | Path, image: np.ndarray) -> Path:
    path = Path(output) / f"{number:04d}_{Path(source).stem}.jpg"
    save_image(path, image)
    return path
