"""RoIPool in terms of windows: the rectangles of cells that it takes maxima of.

Regions share most of their windows. For example, the 58,800 bins of 300 regions in an image of 600x626 pixels have
about 10,000 distinct windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_windows(boxes: list[Tensor], resolution: int, scale: float, height: int, width: int) -> Tensor:
    """Returns the window of each bin of each region, exactly as in torchvision's roi_pool.

    Args:
        boxes: [N, 4] float32 x1y1x2y2 of each image, in network pixels.
        resolution: Number of bins along each side.
        scale: Number of cells per network pixel.
        height, width: Size of the feature map in cells.

    Returns:
        [sum of N, resolution, resolution, 5] int64: image, y and x of the first cell, height, width. An empty window
        has height 0 or width 0.
    """
    images = torch.cat([torch.full_like(x[:, 0], i, dtype=torch.int64) for i, x in enumerate(boxes)])
    x1, y1, x2, y2 = torch.cat(boxes).unbind(1)
    top, bottom = _bins(y1, y2, resolution, scale, height)
    left, right = _bins(x1, x2, resolution, scale, width)
    rows, columns = torch.stack([top, bottom - top], -1), torch.stack([left, right - left], -1)
    shape = (len(images), resolution, resolution)
    parts = [
        images[:, None, None],
        rows[:, :, None, 0],
        columns[:, None, :, 0],
        rows[:, :, None, 1],
        columns[:, None, :, 1],
    ]
    return torch.stack([part.expand(shape) for part in parts], dim=-1)


def distinct_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct windows [K, 5] among windows [..., 5], ordered by height and width, and the row [...] of
    each window in them."""
    sizes = windows.flatten(0, -2).amax(dim=0) + 1
    order = (3, 4, 0, 1, 2)
    key = torch.zeros_like(windows[..., 0])
    for column in order:
        key = key * sizes[column] + windows[..., column]
    keys, index = key.unique(return_inverse=True)
    columns = {}
    for column in reversed(order):
        columns[column] = keys % sizes[column]
        keys = keys // sizes[column]
    return torch.stack([columns[column] for column in range(5)], dim=1), index


def window_maxima(feature_map: Tensor, windows: Tensor) -> Tensor:
    """Returns the maximum of each channel in each window; 0 where the window is empty.

    Args:
        feature_map: [P, C, H, W], best in channels-last format.
        windows: [K, 5] int64, as returned by ``distinct_windows``.

    Returns:
        [K, C], with the dtype of ``feature_map``.
    """
    maxima = feature_map.new_zeros(len(windows), feature_map.shape[1])
    sizes, counts = windows[:, 3:].unique_consecutive(dim=0, return_counts=True)
    start = 0
    for (height, width), count in zip(sizes.tolist(), counts.tolist()):
        rows = slice(start, start + count)
        start += count
        if height > 0 and width > 0:
            pooled = F.max_pool2d(feature_map, (height, width), stride=1).permute(0, 2, 3, 1)
            maxima[rows] = pooled[windows[rows, :3].unbind(1)]
    return maxima


def _bins(low: Tensor, high: Tensor, number: int, scale: float, size: int) -> tuple[Tensor, Tensor]:
    """Returns the first cell of each bin and the cell after its last, each [N, number] int64, limited to the feature
    map."""
    low, high = _round(low * scale)[:, None], _round(high * scale)[:, None]
    length = (high - low + 1).clamp(min=1) / number
    bins = torch.arange(number, dtype=length.dtype, device=length.device)
    first = (bins * length).floor() + low
    end = ((bins + 1) * length).ceil() + low
    first, end = first.clamp(0, size).long(), end.clamp(0, size).long()
    return first, torch.maximum(first, end)


def _round(x: Tensor) -> Tensor:
    # C's round(), which rounds halves away from zero; torch's rounds them to the even neighbour.
    whole = x.trunc()
    return whole + ((x - whole) * 2).trunc()
