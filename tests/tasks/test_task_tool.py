"""Tests of what the tasks' commands have in common."""

import argparse

import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.structures import Regions
from bua.tasks.tool import open_features


@pytest.mark.parametrize(("has_gpu", "device"), [(False, "cpu"), (True, "cuda")])
def test_models_run_on_a_gpu_where_there_is_one(monkeypatch, tmp_path, has_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has_gpu))
    regions = Regions(1, 9, 9, np.zeros((1, 4), np.float32), np.ones((1, 3), np.float32))
    path = write_features(tmp_path / "features.flat", [regions])
    for given, expected in ((None, device), ("cpu", "cpu")):
        args = argparse.Namespace(features=[str(path)], batch_size=4, device=given)
        reader = open_features(args)
        assert args.device == expected
        assert reader.pin_memory == (expected == "cuda")
