"""Ordinary COCO files as data sets for the detector."""

import copy
import json

import numpy as np
import pytest

from bua.detection.annotations import DetectionDataset
from bua.detection.coco_files import attribute_names
from bua.errors import InputError

PLAIN = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 3, "file_name": "b.jpg", "width": 20, "height": 10},
    ],
    "categories": [{"id": 9, "name": "Dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3.5, 4]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [5, 6, 7, 8]},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
}


def dataset(tmp_path, change=None, **more) -> DetectionDataset:
    tree = copy.deepcopy(PLAIN)
    if change:
        change(tree)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tree))
    return DetectionDataset(path, tmp_path, **more)


def with_attributes(*lists, **more):
    def change(tree):
        tree.update(more)
        for annotation, attributes in zip(tree["annotations"], lists):
            annotation["attributes"] = attributes

    return change


def test_ids_become_positions_in_the_order_of_ids_and_crowds_are_left_out(tmp_path):
    data = dataset(tmp_path)
    assert data.objects.names == ["cat", "dog"]
    assert data.image_ids.tolist() == [7, 3]
    assert [data.classes(index).tolist() for index in range(2)] == [[0], [1]]
    np.testing.assert_allclose(data.boxes(1), [[1, 2, 4.5, 6]])
    assert len(data.attribute_names) == 0
    assert (data.attributes(0) == -1).all()


def test_names_of_attributes_get_ids_in_alphabetical_order(tmp_path):
    data = dataset(tmp_path, with_attributes(["red", "big"], ["red"]))
    assert data.attribute_names.names == ["big", "red"]
    assert data[1]["annotations"][0]["attribute_ids"] == [1, 0]
    assert data[0]["annotations"][0]["attribute_ids"] == [1]


def test_names_of_attributes_can_be_those_of_several_files(tmp_path):
    data = dataset(tmp_path, with_attributes(["red"], []), attributes=["big", "old", "red"])
    assert data[1]["annotations"][0]["attribute_ids"] == [2]
    with pytest.raises(InputError, match=r"annotations\[0\]: attributes: 'red' is not known; known are big"):
        dataset(tmp_path, with_attributes(["red"], []), attributes=["big"])


@pytest.mark.parametrize("field", ["attributes", "attribute_categories"])
def test_listed_attributes_are_named_by_id_or_by_name(tmp_path, field):
    listed = [{"id": 5, "name": "red"}, {"id": 4, "name": "big"}]
    data = dataset(tmp_path, with_attributes([5], ["big", 5], **{field: listed}))
    assert data.attribute_names.names == ["big", "red"]
    assert data[1]["annotations"][0]["attribute_ids"] == [1]
    assert data[0]["annotations"][0]["attribute_ids"] == [0, 1]


def test_list_of_names_is_numbered_from_zero(tmp_path):
    data = dataset(tmp_path, with_attributes([1], ["red"], attributes=["red", "big"]))
    assert data.attribute_names.names == ["red", "big"]
    assert data[1]["annotations"][0]["attribute_ids"] == [1]


def test_dictionaries_of_cvat_hold_the_names_that_are_true_and_the_texts(tmp_path):
    data = dataset(tmp_path, with_attributes({"occluded": False, "rotation": 0.5, "colour": "red"}, {"occluded": True}))
    assert data.attribute_names.names == ["occluded", "red"]
    assert sorted(box["attribute_ids"] for image in data for box in image["annotations"])[-2:] == [[0], [1]]


def test_attribute_names_are_those_of_the_annotations_unless_they_are_listed():
    tree = copy.deepcopy(PLAIN)
    assert attribute_names(tree) == []
    with_attributes(["red"], ["big"])(tree)
    assert attribute_names(tree) == ["big", "red"]
    assert attribute_names({**tree, "attributes": ["red"]}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["annotations"][0].update(category_id=1), r"annotations\[0\]: category_id: 1 is not known"),
        (lambda tree: tree["annotations"][0].pop("category_id"), r"annotations\[0\] has no 'category_id'"),
        (lambda tree: tree["categories"][1].update(id=9), "categories: the id 9 occurs twice"),
        (lambda tree: tree["categories"][1].pop("name"), r"categories\[1\]: needs an 'id'"),
        (lambda tree: tree["annotations"][1].update(attributes=7), r"annotations\[1\]: attributes is 7"),
        (lambda tree: tree["annotations"][0].update(category_id=True), "category_id: True is not known; known are"),
        (lambda tree: tree["annotations"][0].update(category_id=9.0), "category_id: 9.0 is not known; known are"),
        (
            lambda tree: tree["annotations"][0].update(attribute_ids=[3]),
            "attributes: 3 is not known; the file lists none",
        ),
        (
            lambda tree: tree["annotations"][1].update(bbox=[1, 2, 1e300, 4]),
            r"annotations\[1\]: bbox: not four numbers",
        ),
        (lambda tree: tree["annotations"][1].update(bbox=[1, 2, "a", 4]), "a bbox does not consist of four numbers"),
        (lambda tree: tree["images"][0].update(id=2**63), "images: id is 9223372036854775808 once"),
        (lambda tree: tree["images"][0].update(width=0), r"images\[0\]: width, height: not above 0"),
        (lambda tree: tree["images"][0].update(width=2.5), r"images\[0\]: width is 2.5, not int"),
        (lambda tree: tree["categories"][0].update(aliases=3), "categories: aliases must be lists of names"),
        (with_attributes([6], [], attributes=["red"]), "attributes: 6 is not known; known are"),
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_file_and_field(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        dataset(tmp_path, change)
    assert "mine.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boxes_outside_of_their_images_are_reported(tmp_path, caplog):
    dataset(tmp_path, lambda tree: tree["annotations"][1].update(bbox=[5000, 5000, 10, 10]))
    assert "1 boxes lie outside of their images, the first one in image 7" in caplog.text
