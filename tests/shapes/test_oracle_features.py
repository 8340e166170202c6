import json

import numpy as np
import pytest

from bua.detection.annotations import DetectionDataset, ImageAnnotations, write_annotations
from bua.errors import InputError
from bua.features import open_features
from bua.shapes.oracle_features import coco_ids, write_oracle_features
from bua.vocabulary import Vocabulary


@pytest.fixture
def dataset(tmp_path) -> DetectionDataset:
    images = [
        ImageAnnotations(1, "1.jpg", 100, 50, np.array([[10, 5, 60, 50], [0, 0, 100, 25]]), [1, 0], [[0, 2], []]),
        ImageAnnotations(2, "2.jpg", 40, 40, np.array([[0, 20, 10, 40]]), [0], [[1]]),
    ]
    objects, attributes = Vocabulary(["circle", "star"]), Vocabulary(["red", "blue", "large"])
    write_annotations(tmp_path / "toy.json", images, objects, attributes)
    return DetectionDataset(tmp_path / "toy.json", tmp_path)


def test_features_encode_class_attributes_and_box(dataset, tmp_path):
    assert write_oracle_features([dataset], tmp_path / "oracle", progress=False) == 0
    features = open_features(tmp_path / "oracle")
    assert sorted(features) == [1, 2]
    # One line per region: classes, attributes, box.
    assert np.allclose(features[1].features, [[0, 1, 1, 0, 1, 0.1, 0.1, 0.6, 1], [1, 0, 0, 0, 0, 0, 0, 1, 0.5]])
    assert features[1].boxes.tolist() == [[10, 5, 60, 50], [0, 0, 100, 25]]
    assert (features[1].width, features[1].height) == (100, 50)
    assert np.allclose(features[2].features, [[1, 0, 0, 1, 0, 0, 0.5, 0.25, 1]])


def test_images_of_coco_are_written_under_their_coco_ids(dataset, tmp_path):
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 1, "coco_id": 77}, {"id": 2, "coco_id": None}]))
    ids = coco_ids(tmp_path / "image_data.json", progress=False)
    for _ in range(2):  # The second time there is nothing left to do.
        assert write_oracle_features([dataset], tmp_path / "oracle", image_id_of=ids.get, progress=False) == 1
        assert list(open_features(tmp_path / "oracle")) == [77]


def test_an_error_names_a_file_without_coco_ids(tmp_path):
    (tmp_path / "image_data.json").write_text('[{"image_id": 1}]')
    with pytest.raises(InputError, match=r"image_data\.json: no image has a coco_id"):
        coco_ids(tmp_path / "image_data.json", progress=False)
