import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.errors import InputError
from bua.visualization import draw
from bua.visualization.draw import add_text, class_colors, draw_answer, draw_attention, draw_regions, save_image


def image(height=120, width=160):
    return np.full((height, width, 3), 230, np.uint8)


def tag_areas(monkeypatch, image, boxes, labels):
    """Returns the drawn image, and the areas [N, 4] where ``draw_regions`` put the labels."""
    areas = []
    place = draw._place

    def spy(*args):
        areas.append(place(*args))
        return areas[-1]

    monkeypatch.setattr(draw, "_place", spy)
    drawn = draw_regions(image, boxes, labels)
    monkeypatch.setattr(draw, "_place", place)
    return drawn, np.array(areas)


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_small_images_are_enlarged_and_keep_their_shape():
    drawn = draw_regions(image(120, 160), [], [], min_size=800)
    assert drawn.shape == (600, 800, 3)
    assert drawn.dtype == np.uint8


def test_large_images_keep_their_size_and_are_not_drawn_upon():
    drawn_on = image(900, 1000)
    drawn = draw_regions(drawn_on, [[100, 100, 400, 300]], ["red circle"])
    assert drawn.shape == drawn_on.shape
    assert (drawn_on == 230).all()
    assert (drawn != 230).any()


def test_box_is_drawn_where_it_is_in_its_color():
    drawn = draw_regions(image(1000, 1000), [[200, 300, 600, 700]], [""], [(10, 200, 30)])
    for y, x in [(300, 400), (700, 400), (500, 200), (500, 600)]:
        assert drawn[y, x].tolist() == [10, 200, 30]
    assert drawn[500, 400].tolist() == [230, 230, 230]
    assert drawn[100, 100].tolist() == [230, 230, 230]


def test_boxes_scale_with_an_enlarged_image():
    drawn = draw_regions(image(100, 100), [[20, 30, 60, 70]], [""], [(0, 0, 255)], min_size=1000)
    assert drawn[300, 400].tolist() == [0, 0, 255]
    assert drawn[500, 200].tolist() == [0, 0, 255]


def test_label_stands_above_its_box_where_there_is_room(monkeypatch):
    _, areas = tag_areas(monkeypatch, image(1000, 1000), [[200, 300, 600, 700]], ["circle"])
    x1, _, _, y2 = areas[0]
    assert (x1, y2) == (200, 300)


def test_labels_of_one_place_do_not_cover_each_other(monkeypatch):
    boxes = [[40, 40, 80, 80]] * 6
    _, areas = tag_areas(monkeypatch, image(), boxes, [f"blue square {i}" for i in range(6)])
    assert all(overlap(areas[i], areas[j]) == 0 for i in range(6) for j in range(i))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    boxes=st.lists(st.tuples(*[st.floats(-50, 350, width=32)] * 4), max_size=8),
    label=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
)
def test_any_box_and_label_fits_into_the_image(height, width, boxes, label):
    with pytest.MonkeyPatch.context() as monkeypatch:
        drawn, areas = tag_areas(monkeypatch, image(height, width), boxes, [label] * len(boxes))
    assert max(drawn.shape[:2]) == 800
    for x1, y1, x2, y2 in areas:
        assert 0 <= x1 < x2 <= drawn.shape[1]
        assert 0 <= y1 < y2 <= drawn.shape[0]


@pytest.mark.parametrize("shift", [0, 2])
def test_boxes_that_coincide_are_all_visible(shift):
    colors = [(0, 0, 255), (0, 200, 0), (255, 0, 0)]
    boxes = [[200 + shift * i, 300, 600 + shift * i, 700] for i in range(3)]
    drawn = draw_regions(image(1000, 1000), [*boxes, [100, 300, 500, 700]], [""] * 4, [*colors, (9, 9, 9)])
    left = [tuple(pixel) for pixel in drawn[500, 190:240].tolist()]
    assert [left.index(color) for color in colors] == sorted(left.index(color) for color in colors)
    # A box that does not coincide with another one is drawn where it is.
    assert drawn[500, 100].tolist() == [9, 9, 9]


def test_small_boxes_that_coincide_stay_boxes():
    for size in (0, 1, 3, 8):
        drawn = draw_regions(image(900, 900), [[10, 10, 10 + size, 10 + size]] * 5, [""] * 5)
        assert (drawn[40:] == 230).all()


def test_letters_are_in_contrast_to_their_ground():
    for color in draw.PALETTE:
        drawn = draw_regions(image(1000, 1000), [[200, 300, 600, 700]], ["HHHH"], [color])
        tag = cv2.cvtColor(drawn[262:298, 205:280], cv2.COLOR_BGR2GRAY).astype(int)
        assert np.ptp(tag) > 75


def test_class_colors_depend_on_the_class_alone():
    assert class_colors([3, 1, 3]) == class_colors([3, 1]) + class_colors([3])
    assert len(set(class_colors(range(12)))) == 12


def test_boxes_and_labels_must_be_as_many():
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        draw_regions(image(), np.zeros((2, 4)), ["one"])


def test_attention_lights_what_was_looked_at():
    image = np.full((400, 800, 3), 200, np.uint8)
    boxes = np.array([[0, 0, 199, 399], [300, 100, 499, 299], [600, 0, 799, 399]])
    drawn = draw_attention(image, boxes, np.array([0.0, 0.75, 0.25]), shown=1)
    assert drawn.shape == image.shape
    assert drawn[200, 400].tolist() == [200, 200, 200]
    assert drawn[350, 100].tolist() == [60, 60, 60]
    assert 60 < drawn[200, 700].max() < 200
    assert image.min() == 200


def test_attention_without_regions_or_without_weight():
    image = np.full((40, 800, 3), 100, np.uint8)
    assert (draw_attention(image, np.zeros((0, 4)), np.zeros(0)) == 30).all()
    assert draw_attention(image, np.array([[0, 0, 10, 10]]), np.zeros(1)).shape == image.shape


def test_attention_without_shares_has_no_labels():
    white, box = np.full((400, 800, 3), 200, np.uint8), np.array([[300, 100, 499, 299]])
    labelled = draw_attention(white, box, np.ones(1))
    plain = draw_attention(white, box, np.ones(1), with_shares=False)
    assert (labelled[60:95, 305:330] != plain[60:95, 305:330]).any()
    assert (plain[60:95] == 60).all()


def test_regions_without_attention_are_not_outlined():
    grey, boxes = np.full((400, 800, 3), 200, np.uint8), np.array([[300, 100, 499, 299], [600, 100, 700, 299]])
    drawn = draw_attention(grey, boxes, np.array([0.996, 0.004]))
    assert (drawn[:, 580:] < 70).all()
    assert (draw_attention(grey, boxes, np.array([0.99, 0.01]))[:, 580:] > 70).any()


def test_an_answer_is_drawn_with_its_question():
    grey, box = np.full((400, 800, 3), 200, np.uint8), np.array([[300, 100, 499, 299]])
    drawn = draw_answer(grey, box, np.ones(1), "What is the " + "very " * 40 + "small thing?", "a star")
    attention = draw_attention(grey, box, np.ones(1))
    strip = drawn[: len(drawn) - len(attention)]
    assert (drawn[len(strip) :] == attention).all()
    # Each line of text has white above and below it: the question needs several, and nothing is cut off at the right.
    inked = (strip < 128).any(axis=(1, 2)).astype(int)
    assert (np.diff(inked) == 1).sum() >= 4
    assert (strip[:, -5:] == 255).all()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    lines=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60), max_size=3),
)
def test_any_text_fits_above_an_image(height, width, lines):
    drawn = add_text(image(height, width), lines)
    assert drawn.shape[1:] == (width, 3)
    assert (drawn[len(drawn) - height :] == 230).all()


def test_an_image_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"image\.cat: is not the name of an image"):
        save_image(tmp_path / "image.cat", image())
