"""What the benchmarks of the detector share: devices and their rates, timing, and images to measure with."""

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bua.config import check_device

PRODUCT = 4096  # rows and columns of the matrices whose product gives a device's rate
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
# TFLOP/s without sparsity by a part of the device's name, from NVIDIA's data sheets.
PEAKS = {
    **{"H200": {"fp32": 67, "tf32": 495, "bf16": 989}, "H100": {"fp32": 67, "tf32": 495, "bf16": 989}},
    **{"A100": {"fp32": 19.5, "tf32": 156, "bf16": 312}},
}
# Sizes (height, width) of ten images of COCO.
COCO_SIZES = [(480, 640), (640, 407), (333, 500), (438, 640), (391, 408)]
COCO_SIZES += [(427, 640), (360, 640), (513, 640), (428, 640), (394, 640)]


def check(device: str) -> None:
    """Raises an InputError if this machine does not have the device."""
    check_device(device)


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    capabilities = torch.cpu.get_capabilities()
    return f"{capabilities.get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"


def peak(device: str, precision: str) -> float | None:
    """Returns the operations per second that the device's data sheet states, or None if it is not known here."""
    name = device_name(device)
    return next((1e12 * rates[precision] for part, rates in PEAKS.items() if part in name), None)


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def take_turns(runs: dict, repeat: int, device: str) -> dict:
    """Returns the seconds of the fastest run of each, after a run that is not measured."""
    seconds = dict.fromkeys(runs, float("inf"))
    for turn in range(repeat + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            wait_for(device)
            if turn > 0:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def timed(function: Callable, part: str, spent: dict, device: str) -> Callable:
    """Returns ``function`` with its seconds added to ``spent[part]``; the device is waited for before and after."""

    def run(*arguments, **keywords):
        wait_for(device)
        start = time.perf_counter()
        result = function(*arguments, **keywords)
        wait_for(device)
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
        return result

    return run


def count_operations(run: Callable) -> float:
    """Returns the operations of convolutions and matrix products: two for each multiplication and addition."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matrix_products(dtype: torch.dtype, device: str) -> dict:
    """Returns functions that compute the product of two large square matrices: with torch's matrix product and as a 1x1
    convolution, since some BLAS libraries are slow on the CPUs of other makers."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device).to(dtype) for _ in range(2))
    rows, weight = a.T[None, :, :, None], b[:, :, None, None]
    return {"product": lambda: a @ b, "convolution": lambda: nn.functional.conv2d(rows, weight)}


def draw_jpeg(size: tuple[int, int], seed: int = 0) -> bytes:
    """Returns a JPEG of the height and width ``size`` with smooth colours, edges and noise."""
    random = np.random.default_rng(seed)
    height, width = size
    blots = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(blots, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(30):
        x, y, w, h = (int(value) for value in random.integers(0, [width, height, 200, 200]))
        cv2.rectangle(image, (x, y), (x + w, y + h), random.integers(0, 256, 3).tolist(), -1)
    image = np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def decode(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def draw_folder(folder: Path, number: int) -> Path:
    """Writes JPEGs of the sizes of COCO's images, and returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / f"{i:06d}.jpg").write_bytes(draw_jpeg(COCO_SIZES[i % len(COCO_SIZES)], i))
    return folder
