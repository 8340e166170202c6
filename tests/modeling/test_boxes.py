import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bua.modeling.boxes import clip_boxes, constant_row, decode_boxes, encode_boxes, nms, pairwise_iou, threshold_above

CONVENTIONS = ["caffe", "detectron2"]


def random_boxes(n, seed=0, size=200):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * size], dim=1)


@pytest.fixture(scope="module")
def golden(shared_data):
    return np.load(shared_data / "golden" / "caffe_ops.npz")


def test_encode_agrees_with_the_original(golden):
    deltas = encode_boxes(torch.from_numpy(golden["boxes_a"]), torch.from_numpy(golden["boxes_b"]), convention="caffe")
    np.testing.assert_allclose(deltas, golden["encode_a_to_b"], atol=1e-6)


def test_decode_and_clip_agree_with_the_original(golden):
    boxes = decode_boxes(torch.from_numpy(golden["boxes_a"]), torch.from_numpy(golden["deltas"]), convention="caffe")
    np.testing.assert_allclose(boxes, golden["decoded"], atol=1e-4)
    clipped = clip_boxes(boxes.unflatten(1, (-1, 4)), 400, 500, "caffe").flatten(1)
    np.testing.assert_allclose(clipped, golden["decoded_clipped_h400_w500"], atol=1e-4)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_decode_undoes_encode(convention):
    reference, target = random_boxes(50, 1), random_boxes(50, 2)
    weights = (10.0, 10.0, 5.0, 5.0)
    decoded = decode_boxes(reference, encode_boxes(reference, target, weights, convention), weights, convention)
    # The original's decoder returns x2 + 1: it measures with both end pixels but places without.
    expected = target + torch.tensor([0.0, 0.0, 1.0, 1.0]) * (convention == "caffe")
    torch.testing.assert_close(decoded, expected, atol=1e-3, rtol=1e-5)


def test_decode_gives_each_reference_its_own_boxes():
    reference = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 60.0]])
    deltas = torch.zeros(2, 12)
    deltas[1, 4] = 0.5  # the second of three boxes moves by half a width
    decoded = decode_boxes(reference, deltas, convention="detectron2").view(2, 3, 4)
    assert decoded[0].tolist() == [[0.0, 0.0, 10.0, 10.0]] * 3
    assert decoded[1].tolist() == [[20.0, 20.0, 40.0, 60.0], [30.0, 20.0, 50.0, 60.0], [20.0, 20.0, 40.0, 60.0]]


def test_only_detectron2_bounds_the_growth_of_a_box():
    reference, deltas = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[0.0, 0.0, 6.0, 6.0]])

    def width(convention):
        box = decode_boxes(reference, deltas, convention=convention)[0]
        return (box[2] - box[0]).item()

    assert width("detectron2") == pytest.approx(10 * 1000 / 16)
    assert width("caffe") == pytest.approx(11 * np.exp(6.0), rel=1e-5)


@pytest.mark.parametrize(("convention", "corner"), [("caffe", [99.0, 49.0]), ("detectron2", [100.0, 50.0])])
def test_clip_limits_to_the_last_pixel_or_the_edge(convention, corner):
    boxes = torch.tensor([[-5.0, -1.0, 300.0, 300.0]])
    assert clip_boxes(boxes, 50, 100, convention).tolist() == [[0.0, 0.0, *corner]]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_iou_agrees_with_counting_pixels(convention):
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 15, (20, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 15, (20, 2))], axis=1)
    end = 1 if convention == "caffe" else 0

    def pixels(box):
        x1, y1, x2, y2 = box
        return {(x, y) for x in range(x1, x2 + end) for y in range(y1, y2 + end)}

    expected = [[len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)) for b in boxes] for a in boxes]
    tensor = torch.from_numpy(boxes).float()
    torch.testing.assert_close(pairwise_iou(tensor, tensor, convention), torch.tensor(expected), check_dtype=False)


def test_iou_of_empty_boxes_is_zero():
    boxes = torch.zeros(2, 4)
    assert pairwise_iou(boxes, boxes, "detectron2").tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert pairwise_iou(boxes[:0], boxes, "caffe").shape == (0, 2)


def greedy_nms(boxes, scores, threshold, convention):
    # In double, as torchvision and the original compare: 0.3 rounded to single exceeds 0.3.
    iou = pairwise_iou(boxes, boxes, convention).double()
    left, kept = sorted(range(len(scores)), key=lambda i: -scores[i]), []
    while left:
        best = left.pop(0)
        kept.append(best)
        suppressed = iou[best] >= threshold if convention == "caffe" else iou[best] > threshold
        left = [i for i in left if not suppressed[i]]
    return kept


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 60),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
    convention=st.sampled_from(CONVENTIONS),
)
def test_nms_agrees_with_the_greedy_loop(seed, n, threshold, convention):
    boxes = random_boxes(n, seed, size=60).round()
    scores = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 10).round()  # many ties
    assert nms(boxes, scores, threshold, convention).tolist() == greedy_nms(boxes, scores, threshold, convention)


def test_caffe_suppresses_at_the_threshold_and_detectron2_above_it():
    # 10 of 20 pixels overlap with both ends counted; 10 of 20 without.
    caffe = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 19.0, 0.0]])
    detectron2 = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 20.0, 1.0]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(caffe, scores, 0.5, "caffe").tolist() == [0]
    assert nms(detectron2, scores, 0.5, "detectron2").tolist() == [0, 1]


@given(
    threshold=st.one_of(
        st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]),
        st.floats(0, 1),
        st.floats(0, 1, width=32),  # at which "caffe" and "detectron2" differ
    ),
    convention=st.sampled_from(CONVENTIONS),
)
def test_the_threshold_decides_alike_in_single_and_in_double_precision(threshold, convention):
    above = threshold_above(threshold, convention)
    assert above == np.float32(above)
    iou = np.float32(threshold)
    for _ in range(4):
        iou = np.nextafter(iou, np.float32(-1))
    for _ in range(9):
        suppressed = float(iou) >= threshold if convention == "caffe" else float(iou) > threshold
        # As torchvision compares on a CPU, and on a GPU, where it converts the threshold to single precision.
        assert (float(iou) > above) == suppressed
        assert (iou > np.float32(above)) == suppressed
        iou = np.nextafter(iou, np.float32(2))


def test_constants_are_not_copied_from_the_host(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda *arguments: pytest.fail("copied"))
    monkeypatch.setattr(torch, "tensor", lambda *arguments, **options: pytest.fail("copied"))
    boxes = random_boxes(5)
    row = constant_row((10.0, 5.0), boxes)
    assert row.tolist() == [10.0, 5.0]
    for convention in CONVENTIONS:
        deltas = encode_boxes(boxes, boxes + 1, (10.0, 10.0, 5.0, 5.0), convention)
        nms(decode_boxes(boxes, deltas, (10.0, 10.0, 5.0, 5.0), convention), boxes[:, 0], 0.5, convention)
