"""Registers bua's data sets in Detectron2's catalogs."""

import functools

from detectron2.data import DatasetCatalog, MetadataCatalog

from bua.detection.annotations import DetectionDataset
from bua.detection.catalog import dataset_names, get_dataset


def register_datasets() -> None:
    """Registers the data sets of ``bua.detection.catalog`` that are not in Detectron2's catalog yet.

    This is called when ``bua.d2`` is imported. Call it again after ``bua.detection.catalog.register_dataset``. When a
    data set has been read, its metadata has ``thing_classes`` and ``attribute_classes``, which list the names by id.
    """
    for name in dataset_names():
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, functools.partial(_read, name))
            MetadataCatalog.get(name).evaluator_type = "visual_genome"


def _read(name: str) -> DetectionDataset:
    dataset = get_dataset(name)
    MetadataCatalog.get(name).set(thing_classes=dataset.objects.names, attribute_classes=dataset.attribute_names.names)
    return dataset
