import json
import os

import pytest

from bua.detection.annotations import DetectionDataset
from bua.errors import InputError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", 2**63, "images: id is 9223372036854775808 once; it must have at most 64 bits"),
        ("id", [[[]]] * 9999, r"images\[0\]: id is \[\[\[\]\], .*, not int"),
        ("file_name", "x" * 5000, "images: file_name has more than 4096 characters"),
        ("file_name", 7, r"images\[0\]: file_name is 7, not str"),
    ],
)
def test_an_image_that_cannot_be_is_one_short_line(tmp_path, field, value, message):
    path = tmp_path / "a.json"
    image = {"id": 1, "file_name": "1.jpg", "width": 9, "height": 9, field: value}
    categories = {"categories": [{"id": 0, "name": "cat"}], "attribute_categories": [{"id": 0, "name": "red"}]}
    path.write_text(json.dumps({"images": [image], "annotations": [], **categories}))
    with pytest.raises(InputError, match=f"a.json: {message}") as raised:
        DetectionDataset(path, tmp_path)
    assert len(str(raised.value)) < 500


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a.json: cannot be read: it is a named pipe"):
        DetectionDataset(tmp_path / "a.json", tmp_path)
