"""Tests of the options that the tasks' tools have in common."""

import argparse

import pytest
import torch

from bua.tasks.tool import add_inference_options


@pytest.mark.parametrize(("has_gpu", "device"), [(False, "cpu"), (True, "cuda")])
def test_models_run_on_a_gpu_where_there_is_one(monkeypatch, has_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    parser = argparse.ArgumentParser()
    add_inference_options(parser, images="all images", unit="questions", batch_size=4)
    assert parser.parse_args(["--features", "a.flat"]).device == device
    assert parser.parse_args(["--features", "a.flat", "--device", "cpu"]).device == "cpu"
