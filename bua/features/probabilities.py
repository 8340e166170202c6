"""The probabilities of all classes, in the layouts of files: many readers expect a column of the background."""

import numpy as np

from bua.features.labels import FLOAT


def with_background(class_probs: np.ndarray) -> np.ndarray:
    """Returns probabilities [n, C + 1] float32 with the background in front, as in the outputs of the original (Caffe),
    from probabilities [n, C] without it.

    The softmax over C + 1 classes sums to 1, so that the background has what the others leave. Probabilities in float16
    determine it up to about 0.0005.
    """
    probs = np.asarray(class_probs, FLOAT)
    background = np.clip(1 - probs.sum(axis=1, keepdims=True), 0, 1)
    return np.concatenate([background, probs], axis=1)
