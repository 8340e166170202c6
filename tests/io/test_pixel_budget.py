import threading

import cv2
import numpy as np
import pytest

from bua.errors import InputError
from bua.io.pixel_budget import PixelBudget


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((10, 10, 3), np.uint8))
    return paths


def test_images_in_memory_at_the_same_time_have_no_more_pixels_than_the_budget(files):
    budget = PixelBudget(250)
    two_are_there, most, held = threading.Barrier(2), [], []

    def read(path):
        with budget.image(path) as image:
            held.append(image)
            two_are_there.wait(300)  # two images fit
            most.append(len(held))
            two_are_there.wait(300)
            held.pop()

    threads = [threading.Thread(target=read, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert most == [2] * len(files)


def test_an_image_larger_than_the_budget_and_a_bad_one_are_read_alone(files):
    budget = PixelBudget(50)
    for path in files[:2]:
        with budget.image(path) as image:
            assert image.shape == (10, 10, 3)
    files[0].write_bytes(b"rubbish")
    for _ in range(2):
        with pytest.raises(InputError, match=r"0.png: is not an image"), budget.image(files[0]):
            pass
    with budget.image(files[1]) as image:
        assert image.shape == (10, 10, 3)


def test_a_part_of_a_file(files):
    data = files[0].read_bytes()
    files[0].write_bytes(b"before" + data)
    with PixelBudget().image(files[0], (6, len(data))) as image:
        assert image.shape == (10, 10, 3)
