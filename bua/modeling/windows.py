"""RoIPool in terms of windows: the rectangles of cells that it takes maxima of.

Regions share most of their windows. For example, the 58,800 bins of 300 regions in an image of 600x626 pixels have
about 10,000 distinct windows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bua.modeling.boxes import constant_row


def roi_windows(boxes: Sequence[Tensor], resolution: int, scale: float, height: int, width: int) -> Tensor:
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
    x1, y1, x2, y2 = torch.cat(list(boxes)).unbind(1)
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
    """Returns the distinct windows [K, 5] among windows [..., 5], ordered by image, height and width, and the row [...]
    of each window in them. It waits for a GPU once."""
    sizes = windows.flatten(0, -2).amax(dim=0) + 1
    order = (0, 3, 4, 1, 2)
    key = torch.zeros_like(windows[..., 0])
    for column in order:
        key = key * sizes[column] + windows[..., column]
    keys, index = key.unique(return_inverse=True)
    columns = {}
    for column in reversed(order):
        columns[column] = keys % sizes[column]
        keys = keys // sizes[column]
    return torch.stack([columns[column] for column in range(5)], dim=1), index


def window_maxima(feature_maps: Sequence[Tensor], windows: Tensor) -> Tensor:
    """Returns the maximum of each channel in each window; 0 where the window is empty. It waits for a GPU once.

    Args:
        feature_maps: [P, C, H, W] each, of any sizes, best in channels-last format.
        windows: [K, 5] int64, at least one, as returned by ``distinct_windows``. Images are counted through all feature
            maps.

    Returns:
        [K, C], with the dtype of the feature maps.
    """
    maxima = feature_maps[0].new_empty(len(windows), feature_maps[0].shape[1])
    first_images = [0]
    for feature_map in feature_maps:
        first_images.append(first_images[-1] + len(feature_map))
    starts = torch.searchsorted(windows[:, 0].contiguous(), torch.arange(first_images[-1] + 1, device=windows.device))
    *starts_of_images, height, width = torch.cat([starts, windows[:, 3:].amax(dim=0)]).tolist()
    # On a CPU the pooling of few sizes takes half of the time of the table.
    of_map = maxima_by_size if windows.device.type == "cpu" else maxima_by_table
    for feature_map, first, last in zip(feature_maps, first_images, first_images[1:]):
        rows = slice(starts_of_images[first], starts_of_images[last])
        if rows.start < rows.stop:
            image, *rest = windows[rows].unbind(1)
            maxima[rows] = of_map(feature_map, torch.stack([image - first, *rest], dim=1), height, width)
    return maxima


def maxima_by_size(feature_map: Tensor, windows: Tensor, height: int, width: int) -> Tensor:
    """Returns the maxima [K, C] of the windows [K, 5] of a feature map [P, C, H, W], by a max pooling for each size of
    windows. Arguments and result are as for ``maxima_by_table``."""
    maxima = feature_map.new_zeros(len(windows), feature_map.shape[1])
    sizes, counts = windows[:, [0, 3, 4]].unique_consecutive(dim=0, return_counts=True)
    start = 0
    for (image, size_y, size_x), count in zip(sizes.tolist(), counts.tolist()):
        rows = slice(start, start + count)
        start += count
        if size_y > 0 and size_x > 0:
            pooled = F.max_pool2d(feature_map[image : image + 1], (size_y, size_x), stride=1)[0].permute(1, 2, 0)
            maxima[rows] = pooled[windows[rows, 1:3].unbind(1)]
    return maxima


def maxima_by_table(feature_map: Tensor, windows: Tensor, height: int, width: int) -> Tensor:
    """Returns the maximum of each channel in each window, 0 where it is empty, without waiting for a GPU.

    A table has the maxima of all windows whose sides are powers of two. Any other window is covered by four of these,
    which may overlap.

    Args:
        feature_map: [P, C, H, W].
        windows: [K, 5] int64, as returned by ``distinct_windows``.
        height, width: Largest height and width of a window, or more.

    Returns:
        [K, C], with the dtype of ``feature_map``.
    """
    images, channels, rows, columns = feature_map.shape
    levels_y, levels_x = (max(1, min(size, limit).bit_length()) for size, limit in ((height, rows), (width, columns)))
    table = feature_map.new_empty(levels_y, levels_x, images, rows, columns, channels)
    table[0, 0] = feature_map.permute(0, 2, 3, 1)
    for level_y in range(levels_y):
        if level_y > 0:
            # The rows and columns at the end, from which a window would leave the feature map, are never looked up.
            below, step = table[level_y - 1, 0], 2 ** (level_y - 1)
            torch.maximum(below[:, :-step], below[:, step:], out=table[level_y, 0, :, :-step])
        for level_x in range(1, levels_x):
            left, step = table[level_y, level_x - 1], 2 ** (level_x - 1)
            torch.maximum(left[:, :, :-step], left[:, :, step:], out=table[level_y, level_x, :, :, :-step])

    image, y, x, size_y, size_x = windows.unbind(1)
    window_level_y, y, last_y = _cover(y, size_y, rows)
    window_level_x, x, last_x = _cover(x, size_x, columns)
    first_row = ((window_level_y * levels_x + window_level_x) * images + image) * rows
    values = table.flatten(0, -2)
    maxima = values[(first_row + y) * columns + x]
    for cell_y, cell_x in ((y, last_x), (last_y, x), (last_y, last_x)):
        maxima = torch.maximum(maxima, values[(first_row + cell_y) * columns + cell_x])
    return maxima.masked_fill_(((size_y <= 0) | (size_x <= 0))[:, None], 0)


def _cover(first: Tensor, size: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns how two intervals, whose length is a power of two, cover intervals of cells: the binary logarithm of the
    length, the first cell of the one and of the other, each [K] int64. For empty intervals they are any cells."""
    # frexp is exact, and the logarithm is not on every device.
    level = (torch.frexp(size.float()).exponent.long() - 1).clamp_(min=0)
    last = first + size - torch.bitwise_left_shift(torch.ones_like(level), level)
    return level, first.clamp(max=limit - 1), last.clamp(0, limit - 1)


def _bins(low: Tensor, high: Tensor, number: int, scale: float, size: int) -> tuple[Tensor, Tensor]:
    """Returns the first cell of each bin and the cell after its last, each [N, number] int64, limited to the feature
    map."""
    low, high = _round(low * scale)[:, None], _round(high * scale)[:, None]
    # A GPU would multiply with the reciprocal of a plain number, and seven cells in seven bins could become eight.
    length = (high - low + 1).clamp(min=1) / constant_row([number], low)
    bins = torch.arange(number, dtype=length.dtype, device=length.device)
    first = (bins * length).floor() + low
    end = ((bins + 1) * length).ceil() + low
    first, end = first.clamp(0, size).long(), end.clamp(0, size).long()
    return first, torch.maximum(first, end)


def _round(x: Tensor) -> Tensor:
    # C's round(), which rounds halves away from zero; torch's rounds them to the even neighbour.
    whole = x.trunc()
    return whole + ((x - whole) * 2).trunc()
