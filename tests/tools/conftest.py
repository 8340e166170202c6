import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    """An image with a red rectangle."""
    path = tmp_path_factory.mktemp("image") / "blot.png"
    pixels = np.full((90, 120, 3), 200, np.uint8)
    pixels[20:60, 30:80] = (0, 0, 255)
    cv2.imwrite(str(path), pixels)
    return str(path)
