"""Regions of images for the tests of feature files, and what these tests have in common."""

import dataclasses
import multiprocessing
import random
import time

import numpy as np

from bua.structures import Regions

LABELS = ("object_ids", "object_scores", "attribute_ids", "attribute_scores")


def sample(image_id, count=3, dim=5, labelled=True, seed=0):
    """Returns the regions of an image. Their features are exact in float16, so that all formats can hold them."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 200, (count, 2))
    regions = Regions(
        image_id=image_id,
        width=640,
        height=480 + seed,
        boxes=np.concatenate([corners, corners + rng.integers(1, 200, (count, 2))], axis=1).astype(np.float32),
        features=rng.random((count, dim), np.float32).astype(np.float16).astype(np.float32),
    )
    if labelled:
        regions.object_ids = rng.integers(0, 1600, count)
        regions.object_scores = rng.random(count, np.float32)
        regions.attribute_ids = rng.integers(0, 400, count)
        regions.attribute_scores = rng.random(count, np.float32)
    return regions


def assert_same(a, b, without=()):
    """Asserts that two regions have the same types and bits, except for the fields ``without``."""
    for field in dataclasses.fields(Regions):
        if field.name in without:
            continue
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert type(x) is type(y), field.name
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), field.name
            assert x.tobytes() == y.tobytes(), field.name
        else:
            assert x == y, field.name


def run_and_kill(target, path, seed):
    """Runs ``target(path)`` in a process that is killed after a random time of up to 0.1 seconds."""
    process = multiprocessing.get_context("fork").Process(target=target, args=(path,))
    process.start()
    time.sleep(random.Random(seed).uniform(0.0, 0.1))
    process.kill()
    process.join()
