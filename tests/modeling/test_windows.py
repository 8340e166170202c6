import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_pool

from bua.modeling import windows as windows_module
from bua.modeling.windows import distinct_windows, maxima_by_size, maxima_by_table, roi_windows, window_maxima

# Quarters of a cell, with the halves that round in two ways, from outside the image on one side to the other.
SIDES = st.integers(-40, 120).map(lambda quarters: quarters * 4.0)
BOXES = st.lists(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=6), min_size=1, max_size=3)
WAYS = [maxima_by_size, maxima_by_table]


def pool(feature_map, boxes, resolution, scale, maxima=maxima_by_size):
    windows = roi_windows(boxes, resolution, scale, *feature_map.shape[-2:])
    windows, index = distinct_windows(windows)
    height, width = windows[:, 3:].amax(dim=0).tolist()
    return maxima(feature_map, windows, height, width)[index].permute(0, 3, 1, 2), windows


@pytest.mark.parametrize("maxima", WAYS)
@settings(max_examples=100, deadline=None)
@given(BOXES, st.integers(1, 14), st.integers(1, 20), st.integers(1, 20))
def test_maxima_of_windows_are_roi_pooling(maxima, boxes, resolution, height, width):
    boxes = [torch.tensor(image) for image in boxes]
    feature_map = torch.randn(len(boxes), 3, height, width, generator=torch.Generator().manual_seed(0))
    pooled, windows = pool(feature_map, boxes, resolution, 1 / 16, maxima)
    assert torch.equal(pooled, roi_pool(feature_map, boxes, resolution, 1 / 16))
    assert len(windows.unique(dim=0)) == len(windows)


@pytest.mark.parametrize("maxima", WAYS)
def test_real_boxes_share_windows(maxima):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 400
    boxes = torch.cat([corners, corners + 16 + torch.rand(300, 2, generator=generator) * 200], dim=1)
    feature_map = torch.randn(1, 4, 38, 40, generator=generator).bfloat16()
    pooled, windows = pool(feature_map, [boxes], 14, 1 / 16, maxima)
    assert torch.equal(pooled, roi_pool(feature_map.float(), [boxes], 14, 1 / 16).bfloat16())
    assert len(windows) < 300 * 14 * 14 / 4


@pytest.mark.parametrize("maxima", WAYS)
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(BOXES, st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3))
def test_feature_maps_of_several_sizes_share_one_table_of_windows(maxima, maps):
    generator = torch.Generator().manual_seed(0)
    feature_maps, windows, expected, images = [], [], [], 0
    for boxes, height, width in maps:
        boxes = [torch.tensor(image) for image in boxes]
        feature_map = torch.randn(len(boxes), 3, height, width, generator=generator)
        of_map = roi_windows(boxes, 5, 1 / 16, height, width)
        of_map[..., 0] += images
        images += len(boxes)
        feature_maps.append(feature_map)
        windows.append(of_map)
        expected.append(roi_pool(feature_map, boxes, 5, 1 / 16))
    distinct, index = distinct_windows(torch.cat(windows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "maxima_by_size", maxima)
        pooled = window_maxima(feature_maps, distinct)[index].permute(0, 3, 1, 2)
    assert torch.equal(pooled, torch.cat(expected))
