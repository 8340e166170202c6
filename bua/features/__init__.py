"""Region features in files."""

from bua.features.store import FORMATS, FeatureStore, FeatureWriter, open_features, open_writer

__all__ = ["FORMATS", "FeatureStore", "FeatureWriter", "open_features", "open_writer"]
