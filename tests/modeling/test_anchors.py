import numpy as np
import torch

from bua.modeling.anchors import cell_anchors, grid_anchors

SIZES, RATIOS = [64, 128, 256, 512], [0.5, 1.0, 2.0]


def test_caffe_anchors_agree_with_the_original(shared_data):
    golden = np.load(shared_data / "golden" / "caffe_ops.npz")["anchors"]
    np.testing.assert_array_equal(cell_anchors(SIZES, RATIOS, "caffe").numpy(), golden)


def test_caffe_anchors_are_ratio_major_and_centred_on_the_middle_pixel():
    anchors = cell_anchors(SIZES, RATIOS, "caffe")
    assert anchors[0].tolist() == [-38, -16, 53, 31]
    assert anchors[1].tolist() == [-84, -40, 99, 55]
    assert anchors[4].tolist() == [-24, -24, 39, 39]
    assert ((anchors[:, :2] + anchors[:, 2:]) / 2 == 7.5).all()


def test_detectron2_anchors_are_size_major_centred_on_zero_and_keep_their_area():
    anchors = cell_anchors(SIZES, RATIOS, "detectron2")
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(width * height, torch.tensor(SIZES).float().repeat_interleave(3) ** 2)
    torch.testing.assert_close(height / width, torch.tensor(RATIOS * 4))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_grid_rows_run_over_y_then_x_then_anchor():
    cell = cell_anchors(SIZES, RATIOS, "caffe")
    grid = grid_anchors(cell, 3, 5, 16)
    assert grid.shape == (3 * 5 * 12, 4)
    row = (2 * 5 + 4) * 12 + 7
    assert grid[row].tolist() == (cell[7] + torch.tensor([64.0, 32.0, 64.0, 32.0])).tolist()
    shifted = grid_anchors(cell, 3, 5, 16, offset=0.5)
    torch.testing.assert_close(shifted, grid + 8)
