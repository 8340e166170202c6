import numpy as np
import pytest

from bua.visualization.strip import GAP, PANEL, TITLE, best_shares, draw_strip, draw_words

BOXES = np.array([[0, 0, 40, 50], [60, 0, 100, 50]], np.float32)


def panel(strip: np.ndarray, row: int, column: int, height: int) -> np.ndarray:
    """Returns the image in a panel, without its title."""
    top, left = row * (TITLE + height + GAP) + TITLE, column * (PANEL + 2 * GAP) + GAP
    return strip[top : top + height, left : left + PANEL]


def test_a_panel_for_each_word():
    image = np.full((50, 100, 3), 200, np.uint8)
    attention = np.array([[0.9, 0.1], [0, 1], [0, 0]])
    strip = draw_strip(image, BOXES, ["a", "cat", "sits"], attention, columns=3)
    height = PANEL // 2
    assert strip.shape == (2 * (TITLE + height + GAP), 3 * (PANEL + 2 * GAP), 3)
    assert (panel(strip, 0, 0, height) == 200).all()

    def light(row: int, column: int, box: int) -> float:
        shown = panel(strip, row, column, height)
        x = int((BOXES[box, 0] + 20) / 100 * PANEL)
        return shown[height - 30 : height - 10, x - 5 : x + 5].mean()

    assert light(0, 1, 0) > 190
    assert light(0, 1, 1) < 100
    assert light(0, 2, 1) > 190
    assert light(0, 2, 0) < 100
    # A word without attention leaves its image as it is, and the last place of the row is empty.
    assert (panel(strip, 1, 0, height) == 200).all()
    assert (panel(strip, 1, 1, height) == 255).all()
    titles = [strip[:TITLE, start : start + PANEL].min() for start in range(0, strip.shape[1], PANEL + 2 * GAP)]
    assert titles[0] == 255
    assert max(titles[1:]) < 100


@pytest.mark.parametrize("shape", [(30, 20), (700, 900), (1, 500)])
def test_any_image(shape):
    strip = draw_strip(np.zeros((*shape, 3), np.uint8), np.zeros((1, 4)), ["incomprehensibilities"], np.ones((1, 1)))
    assert strip.dtype == np.uint8
    assert strip.shape[1] == 2 * (round(shape[1] * PANEL / max(shape)) + 2 * GAP)


def test_no_words_and_wrong_ones():
    image = np.zeros((20, 20, 3), np.uint8)
    assert draw_strip(image, BOXES, [], np.zeros((0, 2))).shape == (TITLE + PANEL + GAP, PANEL + 2 * GAP, 3)
    with pytest.raises(ValueError, match="1 words and 2 rows"):
        draw_strip(image, BOXES, ["a"], np.zeros((2, 2)))


def test_the_images_of_a_strip_by_themselves():
    image = np.full((50, 100, 3), 200, np.uint8)
    attention = np.array([[0.9, 0.1], [0, 0]])
    first, second = draw_words(image, BOXES, attention)
    strip = draw_strip(image, BOXES, ["a", "sits"], attention)
    assert (panel(strip, 0, 1, PANEL // 2) == first).all()
    assert (second == 200).all()
    assert best_shares(attention) == [pytest.approx(0.9), 0]
    assert best_shares(np.zeros((1, 0))) == [0]
