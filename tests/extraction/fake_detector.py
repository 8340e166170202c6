"""A fake detector, images for it, and configurations that fail as told, which also work in other processes."""

import io
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from bua.extraction import ExtractorConfig, ImageFile
from bua.features import open_features
from bua.io.images import Resize
from bua.structures import RegionPredictions

CLASSES, FEATURES, REGIONS = 8, 6, 30


class FakeDetector:
    """Predicts regions that depend only on the pixels of the image.

    Args:
        deadly: Ids of images that kill the process.
        too_large: Largest number of images that it has memory for at a time.
        gated: Ids of images at which it waits until the file ``gate`` exists. Meanwhile, the file ``<gate>.<pid>``
            tells which process waits.
    """

    convention = "caffe"
    device = torch.device("cpu")
    prepare = Resize(64, 128, "caffe")

    def __init__(self, deadly=(), too_large=1000, gated=(), gate=None):
        self.deadly, self.too_large, self.gated, self.gate = deadly, too_large, gated, gate
        self.batches = []

    def infer(self, batch, boxes=None, *, regress=True):
        self._take(batch)
        if boxes is None:
            return [self.regions(image) for image in batch]
        return [self.regions(image, given) for image, given in zip(batch, boxes)]

    def grid(self, batch):
        self._take(batch)
        return [inputs.image.mean(0, keepdim=True)[:, ::32, ::32] for inputs in batch]

    def _take(self, batch):
        self.batches.append([image.image_id for image in batch])
        for image in batch:
            if image.image_id in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if image.image_id in self.gated:
                Path(f"{self.gate}.{os.getpid()}").touch()
                wait_for(Path(self.gate).exists)
        if len(batch) > self.too_large:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    def regions(self, inputs, boxes=None):
        generator = torch.Generator().manual_seed(int(inputs.image.sum()))
        if boxes is None:
            corners = torch.rand(REGIONS, 2, generator=generator) * 10
            boxes = torch.cat([corners, corners + 3], dim=1)
        count = len(boxes)
        return RegionPredictions(
            width=inputs.width,
            height=inputs.height,
            proposals=boxes,
            objectness=torch.ones(count),
            class_probs=(torch.randn(count, CLASSES + 1, generator=generator) * 3).softmax(1)[:, :-1],
            boxes=boxes[:, None] + torch.arange(CLASSES)[:, None] + 1.0,
            features=torch.rand(count, FEATURES, generator=generator),
            attribute_probs=torch.rand(count, 5, generator=generator),
        )


@dataclass(frozen=True)
class FakeExtractorConfig(ExtractorConfig):
    """A configuration whose detector is a ``FakeDetector``.

    Attributes:
        deadly: Ids of images that kill the process.
        loads: A file that gets a line for each detector that is loaded.
        most_loads: Number of lines after which loading a detector kills the process.
        gated, gate: As for ``FakeDetector``.
    """

    config_file: str = ""
    overrides: tuple = ()
    weights: str = "random"
    deadly: tuple = ()
    loads: str | None = None
    most_loads: int = 1000
    gated: tuple = ()
    gate: str | None = None

    def load_detector(self, device=None):
        if self.loads:
            with open(self.loads, "a+") as file:
                file.write(f"{os.getpid()}\n")
                file.seek(0)
                if len(file.readlines()) > self.most_loads:
                    os.kill(os.getpid(), signal.SIGKILL)
        return FakeDetector(self.deadly, gated=self.gated, gate=self.gate)


def wait_for(condition):
    """Returns what a function returns, as soon as this is true. The limit is far more than a busy machine needs."""
    deadline = time.monotonic() + 600
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def waiting_at(gate):
    """The ids of the processes that wait until the file ``gate`` exists, or have waited for it."""
    return [int(path.suffix[1:]) for path in Path(gate).parent.glob(f"{Path(gate).name}.*")]


def has_ended(process):
    """Whether a process that is not this one's child has ended (Linux), also where nothing has reaped it yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def make_images(folder, number):
    """Writes images of three sizes, with the ids 0, 1, ..."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    images = []
    for i in range(number):
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (32 + 8 * (i % 3), 48, 3), np.uint8))
        images.append(ImageFile(str(path), i))
    return images


def assert_same_features(a, b):
    a, b = open_features(a), open_features(b)
    assert set(a) == set(b)
    for image_id in a:
        assert_same_regions(a[image_id], b[image_id])


def assert_same_regions(a, b):
    assert (a.image_id, a.width, a.height) == (b.image_id, b.width, b.height)
    assert np.array_equal(a.boxes, b.boxes)
    assert np.array_equal(a.features, b.features)


def fork(function, stderr=os.devnull):
    """Returns the id of a child process that calls ``function`` and exits with its result."""
    if child := os.fork():
        return child
    try:
        code = 1
        handle = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 2)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        torch.set_num_threads(1)
        # By default processes share one lock, which a killed process may hold.
        tqdm.set_lock(threading.RLock())
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
