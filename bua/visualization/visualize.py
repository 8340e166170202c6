"""Draws images with their annotations, a detector's predictions, or both side by side, and saves them in a folder."""

from collections.abc import Sequence, Sized
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bua.checkpoint import load_weights
from bua.detection.annotations import DetectionDataset
from bua.detection.found_objects import detect_objects
from bua.errors import InputError
from bua.io.images import naming_image, read_image
from bua.modeling import Detector, build_detector
from bua.modeling.region_detector import RegionDetector
from bua.visualization.draw import add_text, save_image
from bua.visualization.labels import draw_labelled, labelled_annotations, labelled_objects, relation_labels

GAP = 12  # pixels between two images
# Number of an image's relations that are listed above it.
MAX_RELATIONS = 20
# Factor of the letter size for them.
RELATION_SIZE = 0.7


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
    detector: RegionDetector | None = None,
    objects: Sequence[str] | None = None,
    attributes: Sequence[str] | None = None,
    annotations: bool = True,
    threshold: float = 0.4,
) -> list[Path]:
    """Draws images of a data set, and saves them in a folder.

    Args:
        dataset: The data set.
        indices: Indices of the images to draw.
        output: The folder.
        detector: Detector whose predictions are drawn, if any.
        objects, attributes: Names of the detector's classes; by default those of the data set.
        annotations: Whether to draw the annotations, and to list the annotated relations above them. If predictions
            are drawn, too, annotations are on the left, and both halves have titles.
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
        titled = annotations and detector is not None
        sides = []
        if annotations:
            sides.append(_draw_annotations(image, dataset, index, titled))
        if detector is not None:
            object_names = dataset.objects.names if objects is None else objects
            attribute_names = dataset.attribute_names.names if attributes is None else attributes
            with naming_image(file_name):
                sides.append(draw_predictions(image, detector, object_names, attribute_names, threshold, titled=titled))
        files.append(_save(output, number, file_name, _side_by_side(sides)))
    return files


def draw_files(
    file_names: Sequence[str | Path],
    output: str | Path,
    *,
    detector: RegionDetector,
    objects: Sequence[str],
    attributes: Sequence[str],
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
        with naming_image(file_name):
            drawn = draw_predictions(read_image(file_name), detector, objects, attributes, threshold)
        files.append(_save(output, number, file_name, drawn))
    return files


def draw_predictions(
    image: np.ndarray,
    detector: RegionDetector,
    objects: Sequence[str],
    attributes: Sequence[str],
    threshold: float,
    *,
    titled: bool = False,
) -> np.ndarray:
    """Draws the objects that the detector finds on a copy of an image. If it finds none, a line above the image says
    so.

    Args:
        image: [H, W, 3] uint8 BGR.
        objects, attributes: Names of the detector's classes.
        threshold: Least probability of an object.
        titled: Whether to write above the image what is drawn.

    Returns:
        [H', W', 3] uint8 BGR.
    """
    (found,) = detect_objects(detector, [detector.prepare(image)], threshold)
    drawn = draw_labelled(image, labelled_objects(found, objects, attributes))
    if not found:
        return add_text(drawn, [f"Detections: none has a probability of at least {threshold:g}"])
    return add_text(drawn, [f"Detections with a probability of at least {threshold:g}"]) if titled else drawn


def _draw_annotations(image: np.ndarray, dataset: DetectionDataset, index: int, titled: bool) -> np.ndarray:
    annotated = labelled_annotations(dataset, index)
    drawn = draw_labelled(image, annotated)
    if not annotated.labels:
        return add_text(drawn, ["Annotations: the data set has no boxes for this image"])
    if titled:
        drawn = add_text(drawn, ["Annotations"])
    if relations := relation_labels(dataset, index):
        more = [f"and {len(relations) - MAX_RELATIONS} more"] if len(relations) > MAX_RELATIONS else []
        drawn = add_text(drawn, ["Relations:", *relations[:MAX_RELATIONS], *more], letter_size=RELATION_SIZE)
    return drawn


def _side_by_side(sides: list[np.ndarray]) -> np.ndarray:
    """Returns images beside each other, aligned at the bottom, since they may have titles of different heights."""
    height = max(side.shape[0] for side in sides)
    padded = [np.pad(side, ((height - len(side), 0), (0, 0), (0, 0)), constant_values=255) for side in sides]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    return np.hstack([part for side in padded for part in (gap, side)][1:])


def _save(output: str | Path, number: int, source: str | Path, image: np.ndarray) -> Path:
    path = Path(output) / f"{number:04d}_{Path(source).stem}.jpg"
    save_image(path, image)
    return path
