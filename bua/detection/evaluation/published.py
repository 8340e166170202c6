"""The scores that the original published, for the table of an evaluation."""

import hashlib
from collections.abc import Iterable

from bua.vocabulary import Vocabulary

# README of bottom-up-attention: the ResNet-101 detector of its release on Visual Genome's val.
ORIGINAL = {
    "objects/original/mAP50": 0.102,
    "objects/original/weighted_mAP50": 0.151,
    "attributes/original/mAP50": 0.078,
    "attributes/original/weighted_mAP50": 0.278,
}
DATASET = "visual_genome_val"
# SHA-256 of the lines of its vocabularies of 1,600 objects and 400 attributes, as ``Vocabulary.lines`` has them.
VOCABULARIES = (
    "d985096938db111f585a311ff0a2ee9092fbc325c3a619ac9622e57e5389722f",
    "19981b5a288f284c576545a21de78634f1a78c26b6949f7acf12b924739fdc66",
)


def published_scores(datasets: Iterable) -> dict[str, float]:
    """Returns the published scores of data sets as fractions, by the names that the metrics of an evaluation have.

    There are some for ``visual_genome_val`` with the published vocabularies only.

    Args:
        datasets: The ``DetectionDataset`` objects of ``DATASETS.TEST``.
    """
    datasets = list(datasets)
    return {
        metric_prefix(dataset.name, len(datasets)) + name: score
        for dataset in datasets
        if dataset.name == DATASET and (_digest(dataset.objects), _digest(dataset.attribute_names)) == VOCABULARIES
        for name, score in ORIGINAL.items()
    }


def metric_prefix(dataset: str, number: int) -> str:
    """Returns how the names of a data set's metrics begin: with its name, if several data sets are evaluated."""
    return f"{dataset}/" if number > 1 else ""


def _digest(vocabulary: Vocabulary) -> str:
    return hashlib.sha256("\n".join(vocabulary.lines).encode()).hexdigest()
