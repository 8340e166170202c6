"""The original's rows of zeros in the evaluation of attributes.

The original keeps the ground truth of an image in arrays with a row for each object of the image's XML file
(lib/datasets/vg.py, _load_vg_annotation). These files hold the objects with one of the 2,500 most frequent names
(data/genome/setup_vg.py), of which the vocabulary has 1,600. The objects of the vocabulary fill the first rows, and a
row remains for each of the others: class 0, no attributes, and the box [0, 0, 0, 0].

Training and the evaluation of objects leave these rows out. The evaluation of attributes does not
(lib/fast_rcnn/test.py, test_net_with_gt_boxes): the detector predicts attributes for the box [0, 0, 0, 0], which is the
upper left corner of the image, as many times as there are such rows. Each of these predictions is a detection like
those at annotated boxes. They have two effects: they take places among the 400 detections that an image may have, and
those that are kept are wrong, since no annotated box is there. (An annotated box that is the single pixel (1, 1) would
match, because the original shifts detections by one pixel.) The number of annotated boxes with an attribute does not
change.

bua's annotations do not contain these objects. Where the annotation file says how many there are (``zero_rows`` of an
image), the evaluation by the original's protocol can add the rows.
"""

import numpy as np

from bua.errors import InputError


def numbers_of_zero_rows(dataset) -> np.ndarray:
    """Returns the number of the original's rows of zeros of each image, [N] int64.

    Args:
        dataset: A ``DetectionDataset``.

    Raises:
        InputError: The annotation file does not say it.
    """
    if dataset.zero_rows is None:
        raise InputError(
            f"{dataset.name}: MODEL.BUA.EVALUATION.ZERO_ROWS is True, but the annotation file does not say how many "
            "rows of zeros each image has; prepare Visual Genome again with `bua prepare-visual-genome`"
        )
    numbers: np.ndarray = dataset.zero_rows
    return numbers


def with_zero_rows(boxes: np.ndarray, number: int) -> np.ndarray:
    """Returns the boxes [G, 4] of an image with ``number`` boxes [0, 0, 0, 0] after them."""
    return np.concatenate([boxes, np.zeros((number, 4), boxes.dtype)])
