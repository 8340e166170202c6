"""Reads and writes region features in the file formats of different programs. ``bua.features.store`` opens them."""

from bua.features.convert import convert_features
from bua.features.flat import FlatFeatures
from bua.features.store import FORMATS, FeatureStore, FeatureWriter, open_features, open_writer

__all__ = [
    "FORMATS",
    "FeatureStore",
    "FeatureWriter",
    "FlatFeatures",
    "convert_features",
    "open_features",
    "open_writer",
]
