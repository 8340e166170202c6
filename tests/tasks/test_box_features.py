"""The numbers of boxes that models read beside the features of regions."""

import pytest
import torch

from bua.tasks.box_features import BOX_NUMBERS, join_boxes

BOXES = torch.tensor([[[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.0]]])


@pytest.mark.parametrize(
    ("sides", "numbers"),
    [(False, [0.25, 0.5, 0.75, 1.0, 0.25]), (True, [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 0.25])],
    ids=["ruotianluo's", "UNITER's"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_boxes_stand_after_the_features(sides, numbers, dtype):
    features = torch.tensor([[[7.0, 8, 9], [0, 0, 0]]], dtype=dtype)
    joined = join_boxes(features, BOXES, sides=sides)
    assert joined.dtype == torch.float32
    assert joined.tolist() == [[[7, 8, 9, *numbers], [0] * (3 + BOX_NUMBERS[sides])]]
