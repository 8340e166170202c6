import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.config import get_cfg
from bua.detection.mapper import DROPPED, TrainingMapper, build_mapper, flip_boxes, mirror_words, mirrored
from bua.errors import InputError
from bua.vocabulary import Vocabulary

OBJECTS = Vocabulary(["dog", "left hand", "right hand", "left shoe"])
ATTRIBUTES = Vocabulary(["red", "left", "right", "on the left", "bright"])


class Draw:
    """A generator that flips or not, and takes the first size."""

    def __init__(self, flip: bool):
        self.flip = flip

    def random(self):
        return 0.0 if self.flip else 0.9

    def choice(self, values):
        return values[0]


def make_mapper(**changes):
    options = {"short_sides": (40,), "long_side": 100, "resize": "caffe", "convention": "caffe"}
    return TrainingMapper(**{**options, **changes})


@pytest.fixture
def picture(tmp_path):
    """A grey image, 40 wide and 30 high, with a white box; returns a function that makes its record."""
    image = np.full((30, 40, 3), 100, dtype=np.uint8)
    image[5:11, 10:20] = 255
    path = tmp_path / "7.png"
    cv2.imwrite(str(path), image)

    def record(boxes=((10, 5, 19, 10),), classes=(0,), attributes=((0, 4),)):
        annotations = [
            {"bbox": list(box), "bbox_mode": 0, "category_id": class_id, "attribute_ids": list(ids)}
            for box, class_id, ids in zip(boxes, classes, attributes)
        ]
        return {"file_name": str(path), "image_id": 7, "height": 30, "width": 40, "annotations": annotations}

    return record


def white_box(image) -> list[int]:
    """Where ``picture``'s box is in a [3, H, W] image: inclusive pixel coordinates."""
    rows, columns = np.nonzero(image[0].numpy() > 250)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize("resize", ["caffe", "detectron2"])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_stay_on_their_things(picture, resize, flip):
    for convention, box in (("caffe", (10, 5, 19, 10)), ("detectron2", (10, 5, 20, 11))):
        mapper = make_mapper(short_sides=(30,), resize=resize, convention=convention)
        sample = mapper(picture([box]), Draw(flip))
        assert (sample.width, sample.height, sample.image_id, sample.scale) == (40, 30, 7, (1, 1))
        inclusive = sample.boxes[0].numpy() - ([0, 0, 1, 1] if convention == "detectron2" else 0)
        assert inclusive.tolist() == white_box(sample.image)


def test_scales_boxes_to_network_pixels(picture):
    sample = make_mapper(short_sides=(60,))(picture(), Draw(False))
    assert sample.image.shape == (3, 60, 80)
    assert sample.scale == (2, 2)
    assert sample.boxes.tolist() == [[20, 10, 38, 20]]
    sample = make_mapper(short_sides=(60,), long_side=60)(picture(), Draw(False))
    assert sample.image.shape == (3, 45, 60)


def test_ground_truth_of_many_boxes(image):
    record = image([(0, 0, 5, 5), (1, 2, 3, 4)], [3, 0], [(), (4, 0, 1)])
    sample = make_mapper(max_attributes=2)(record, Draw(False))
    assert sample.classes.tolist() == [3, 0]
    assert sample.attributes.tolist() == [[-1, -1], [4, 0]]
    empty = make_mapper()(image([]), Draw(True))
    assert (empty.boxes.shape, empty.classes.shape, empty.attributes.shape) == ((0, 4), (0,), (0, 16))


def test_boxes_of_no_area_are_left_out_in_the_convention_that_has_none(image):
    record = image([(3, 3, 3, 9), (1, 2, 3, 4)], [0, 1], [(), ()])
    assert make_mapper()(record, Draw(False)).classes.tolist() == [0, 1]
    assert make_mapper(convention="detectron2")(record, Draw(False)).classes.tolist() == [1]


def test_a_flip_does_not_lie(image):
    record = image([(0, 0, 5, 5)] * 4, [0, 1, 2, 3], [(0, 1), (2, 4), (3, 0), ()])
    mapper = make_mapper(max_attributes=2, class_mirror=mirrored(OBJECTS), attribute_mirror=mirrored(ATTRIBUTES))
    straight = mapper(record, Draw(False))
    assert straight.classes.tolist() == [0, 1, 2, 3]
    assert straight.attributes.tolist() == [[0, 1], [2, 4], [3, 0], [-1, -1]]
    flipped = mapper(record, Draw(True))
    assert flipped.classes.tolist() == [0, 2, 1]
    assert flipped.attributes.tolist() == [[0, 2], [1, 4], [-1, 0]]
    assert len(flipped.boxes) == 3


def test_mirrored():
    assert mirrored(ATTRIBUTES).tolist() == [0, 2, 1, DROPPED, 4]
    assert mirrored(Vocabulary(["left,leftmost", "port", "right side,right"])).tolist() == [2, 1, DROPPED]


def test_mirror_words():
    assert mirror_words("the Left dog, right of bright leftovers") == "the right dog, left of bright leftovers"
    assert mirror_words("left-handed") == "right-handed"


@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 99)] * 4), min_size=1),
    convention=st.sampled_from(["caffe", "detectron2"]),
)
def test_flipping_twice_changes_nothing(boxes, convention):
    boxes = np.array(boxes, dtype=np.float32)
    flipped = flip_boxes(boxes, 100, convention)
    np.testing.assert_array_equal(flip_boxes(flipped, 100, convention), boxes)
    np.testing.assert_array_equal(flipped[:, 2] - flipped[:, 0], boxes[:, 2] - boxes[:, 0])


def test_flip_boxes_of_each_convention():
    box = np.float32([[0, 1, 9, 5]])
    assert flip_boxes(box, 20, "caffe").tolist() == [[10, 1, 19, 5]]
    assert flip_boxes(box, 20, "detectron2").tolist() == [[11, 1, 20, 5]]


def test_random_sizes(picture):
    rng = np.random.default_rng(0)
    choice = make_mapper(short_sides=(20, 30), flip=False)
    assert {choice(picture(), rng).image.shape[1] for _ in range(20)} == {20, 30}
    spread = make_mapper(short_sides=(20, 23), sampling="range")
    assert {spread(picture(), rng).image.shape[1] for _ in range(60)} == {20, 21, 22, 23}


def test_flips_half_of_the_images(image):
    rng = np.random.default_rng(0)
    starts = [make_mapper()(image(), rng).boxes[0, 0].item() for _ in range(40)]
    assert len(set(starts)) == 2
    starts = [make_mapper(flip=False)(image(), rng).boxes[0, 0].item() for _ in range(10)]
    assert len(set(starts)) == 1


def test_build_mapper_reads_the_configuration():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (300, 400)
    cfg.MODEL.BUA.BOX_CONVENTION = "caffe"
    mapper = build_mapper(cfg, OBJECTS, ATTRIBUTES)
    assert (mapper.short_sides, mapper.long_side, mapper.convention) == ((300, 400), 1333, "caffe")
    assert (mapper.resize, mapper.flip) == ("detectron2", True)
    cfg.INPUT.RANDOM_FLIP = "none"
    assert not build_mapper(cfg, OBJECTS, ATTRIBUTES).flip
    for key, value in {"RANDOM_FLIP": "vertical", "MIN_SIZE_TRAIN_SAMPLING": "all"}.items():
        changed = cfg.clone()
        changed.INPUT[key] = value
        with pytest.raises(InputError, match=rf"INPUT\.{key} is '{value}'"):
            build_mapper(changed, OBJECTS, ATTRIBUTES)


def test_an_image_of_another_size_than_its_annotations(image):
    record = image()
    record["width"] = 41
    with pytest.raises(InputError, match=r"7\.png: is 40x30 pixels and its annotations are for 41x30"):
        make_mapper()(record, Draw(False))
