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


class FixedRandom:
    """Stands for a random generator: it decides whether the image is flipped, and takes the first size."""

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
def make_record(tmp_path):
    """Returns a function that makes the dataset dict of a grey image, 40 wide and 30 high, with a white box."""
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
    """Returns where the white box is in a [3, H, W] image, in inclusive pixel coordinates."""
    rows, columns = np.nonzero(image[0].numpy() > 250)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize("resize", ["caffe", "detectron2"])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_stay_on_their_objects(make_record, resize, flip):
    for convention, box in (("caffe", (10, 5, 19, 10)), ("detectron2", (10, 5, 20, 11))):
        mapper = make_mapper(short_sides=(30,), resize=resize, convention=convention)
        sample = mapper(make_record([box]), FixedRandom(flip))
        assert (sample.width, sample.height, sample.image_id, sample.scale) == (40, 30, 7, (1, 1))
        inclusive = sample.boxes[0].numpy() - ([0, 0, 1, 1] if convention == "detectron2" else 0)
        assert inclusive.tolist() == white_box(sample.image)


def test_scales_boxes_to_network_pixels(make_record):
    sample = make_mapper(short_sides=(60,))(make_record(), FixedRandom(False))
    assert sample.image.shape == (3, 60, 80)
    assert sample.scale == (2, 2)
    assert sample.boxes.tolist() == [[20, 10, 38, 20]]
    sample = make_mapper(short_sides=(60,), long_side=60)(make_record(), FixedRandom(False))
    assert sample.image.shape == (3, 45, 60)


def test_the_ground_truth_has_a_row_for_each_box(make_record):
    record = make_record([(0, 0, 5, 5), (1, 2, 3, 4)], [3, 0], [(), (4, 0, 1)])
    sample = make_mapper(max_attributes=2)(record, FixedRandom(False))
    assert sample.classes.tolist() == [3, 0]
    assert sample.attributes.tolist() == [[-1, -1], [4, 0]]
    empty = make_mapper()(make_record([]), FixedRandom(True))
    assert (empty.boxes.shape, empty.classes.shape, empty.attributes.shape) == ((0, 4), (0,), (0, 16))


def test_boxes_without_area_are_left_out_in_detectron2s_convention(make_record):
    record = make_record([(3, 3, 3, 9), (1, 2, 3, 4)], [0, 1], [(), ()])
    assert make_mapper()(record, FixedRandom(False)).classes.tolist() == [0, 1]
    assert make_mapper(convention="detectron2")(record, FixedRandom(False)).classes.tolist() == [1]


def test_a_flip_exchanges_left_and_right_in_classes_and_attributes(make_record):
    record = make_record([(0, 0, 5, 5)] * 4, [0, 1, 2, 3], [(0, 1), (2, 4), (3, 0), ()])
    mapper = make_mapper(max_attributes=2, class_mirror=mirrored(OBJECTS), attribute_mirror=mirrored(ATTRIBUTES))
    straight = mapper(record, FixedRandom(False))
    assert straight.classes.tolist() == [0, 1, 2, 3]
    assert straight.attributes.tolist() == [[0, 1], [2, 4], [3, 0], [-1, -1]]
    flipped = mapper(record, FixedRandom(True))
    assert flipped.classes.tolist() == [0, 2, 1]
    assert flipped.attributes.tolist() == [[0, 2], [1, 4], [-1, 0]]
    assert len(flipped.boxes) == 3


def test_a_flip_leaves_words_alone_unless_the_configuration_asks(make_record, caplog):
    cfg = get_cfg()
    assert cfg.INPUT.FLIP_WORDS is False
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.MODEL.BUA.BOX_CONVENTION = (30,), "caffe"
    record = make_record([(10, 5, 19, 10)] * 3, [0, 1, 3], [(0, 1), (3,), ()])
    kept = build_mapper(cfg, OBJECTS, ATTRIBUTES)(record, FixedRandom(True))
    assert kept.classes.tolist() == [0, 1, 3]
    assert kept.attributes[:, :2].tolist() == [[0, 1], [3, -1], [-1, -1]]
    assert kept.boxes.tolist() == [[20, 5, 29, 10]] * 3
    assert "(left hand, right hand, left shoe" in caplog.text
    assert "set INPUT.FLIP_WORDS True" in caplog.text

    caplog.clear()
    cfg.INPUT.FLIP_WORDS = True
    exchanged = build_mapper(cfg, OBJECTS, ATTRIBUTES)(record, FixedRandom(True))
    assert exchanged.classes.tolist() == [0, 2]
    assert exchanged.attributes[:, :2].tolist() == [[0, 2], [-1, -1]]
    assert exchanged.boxes.tolist() == [[20, 5, 29, 10]] * 2
    build_mapper(get_cfg(), Vocabulary(["copyright"]), Vocabulary(["bright"]))  # as in the published vocabularies
    assert not caplog.records


def test_an_image_of_a_data_set_without_attributes_is_flipped(make_record):
    record = make_record([(0, 0, 5, 5)], [0], [()])
    mapper = make_mapper(class_mirror=mirrored(OBJECTS), attribute_mirror=np.zeros(0, dtype=np.int64))
    assert (mapper(record, FixedRandom(True)).attributes == -1).all()


def test_mirrored_gives_the_class_of_the_mirror_image():
    assert mirrored(ATTRIBUTES).tolist() == [0, 2, 1, DROPPED, 4]
    assert mirrored(Vocabulary(["left,leftmost", "port", "right side,right"])).tolist() == [2, 1, DROPPED]


def test_mirror_words_exchanges_left_and_right():
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


def test_flip_boxes_in_each_convention():
    box = np.float32([[0, 1, 9, 5]])
    assert flip_boxes(box, 20, "caffe").tolist() == [[10, 1, 19, 5]]
    assert flip_boxes(box, 20, "detectron2").tolist() == [[11, 1, 20, 5]]


def test_random_sizes(make_record):
    rng = np.random.default_rng(0)
    choice = make_mapper(short_sides=(20, 30), flip=False)
    assert {choice(make_record(), rng).image.shape[1] for _ in range(20)} == {20, 30}
    spread = make_mapper(short_sides=(20, 23), sampling="range")
    assert {spread(make_record(), rng).image.shape[1] for _ in range(60)} == {20, 21, 22, 23}


def test_flips_half_of_the_images(make_record):
    rng = np.random.default_rng(0)
    starts = [make_mapper()(make_record(), rng).boxes[0, 0].item() for _ in range(40)]
    assert len(set(starts)) == 2
    starts = [make_mapper(flip=False)(make_record(), rng).boxes[0, 0].item() for _ in range(10)]
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
    cfg.INPUT.FLIP_WORDS = True
    with pytest.raises(InputError, match=r"FLIP_WORDS is True, which has an effect only where INPUT\.RANDOM_FLIP"):
        build_mapper(cfg, OBJECTS, ATTRIBUTES)
    cfg.INPUT.FLIP_WORDS = False
    for key, value in {"RANDOM_FLIP": "vertical", "MIN_SIZE_TRAIN_SAMPLING": "all"}.items():
        changed = cfg.clone()
        changed.INPUT[key] = value
        with pytest.raises(InputError, match=rf"INPUT\.{key} is '{value}'"):
            build_mapper(changed, OBJECTS, ATTRIBUTES)


def test_an_image_whose_size_differs_from_its_annotations_is_an_error(make_record):
    record = make_record()
    record["width"] = 41
    with pytest.raises(InputError, match=r"7\.png: the image has 40x30 pixels, but its annotations are for 41x30"):
        make_mapper()(record, FixedRandom(False))


def test_an_image_that_is_too_narrow_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / "8.png"), np.zeros((1, 3000, 3), np.uint8))
    record = {"file_name": str(tmp_path / "8.png"), "image_id": 8, "height": 1, "width": 3000, "annotations": []}
    with pytest.raises(InputError, match=r"8\.png: an image of 3000x1 pixels would be resized"):
        make_mapper()(record, FixedRandom(False))
