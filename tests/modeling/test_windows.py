import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_pool

from bua.modeling.windows import distinct_windows, roi_windows, window_maxima

# Quarters of a cell, with the halves that round in two ways, from outside the image on one side to the other.
SIDES = st.integers(-40, 120).map(lambda quarters: quarters * 4.0)


def pool(feature_map, boxes, resolution, scale):
    windows = roi_windows(boxes, resolution, scale, *feature_map.shape[-2:])
    windows, index = distinct_windows(windows)
    return window_maxima(feature_map, windows)[index].permute(0, 3, 1, 2), windows


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(1, 14),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_maxima_of_windows_are_roi_pooling(boxes, resolution, height, width):
    boxes = [torch.tensor(image) for image in boxes]
    feature_map = torch.randn(len(boxes), 3, height, width, generator=torch.Generator().manual_seed(0))
    pooled, windows = pool(feature_map, boxes, resolution, 1 / 16)
    assert torch.equal(pooled, roi_pool(feature_map, boxes, resolution, 1 / 16))
    assert len(windows.unique(dim=0)) == len(windows)


def test_real_boxes_share_windows():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 400
    boxes = torch.cat([corners, corners + 16 + torch.rand(300, 2, generator=generator) * 200], dim=1)
    feature_map = torch.randn(1, 4, 38, 40, generator=generator).bfloat16()
    pooled, windows = pool(feature_map, [boxes], 14, 1 / 16)
    assert torch.equal(pooled, roi_pool(feature_map.float(), [boxes], 14, 1 / 16).bfloat16())
    assert len(windows) < 300 * 14 * 14 / 4
