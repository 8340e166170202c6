import torch

from bua.modeling.ground_truth import batch_ground_truth

CPU = torch.device("cpu")


def test_images_are_padded_to_the_largest_number_of_boxes_and_attributes():
    boxes = torch.tensor([[0.5, 1, 2, 3], [4, 5, 6, 7.25]])
    images = [
        (boxes, torch.tensor([1599, 0]), torch.tensor([[399, -1, 2], [-1, -1, -1]])),
        (boxes[:0], torch.zeros(0).long(), torch.zeros(0, 1).long()),
        (boxes[1:], torch.tensor([7]), torch.tensor([[3]])),
    ]
    truth = batch_ground_truth(images, CPU)
    assert truth.boxes.shape == (3, 2, 4)
    assert torch.equal(truth.boxes[0], boxes)
    assert torch.equal(truth.boxes[2, 0], boxes[1])
    assert truth.classes.tolist() == [[1599, 0], [-1, -1], [7, -1]]
    assert truth.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert truth.attributes.dtype == truth.classes.dtype == torch.int64
    assert truth.attributes[0].tolist() == [[399, -1, 2], [-1, -1, -1]]
    assert truth.attributes[2].tolist() == [[3, -1, -1], [-1, -1, -1]]


def test_a_batch_without_boxes_has_a_row_of_padding():
    truth = batch_ground_truth([(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0, 2).long())], CPU)
    assert truth.boxes.shape == (1, 1, 4)
    assert truth.attributes.shape == (1, 1, 2)
    assert not truth.valid.any()
