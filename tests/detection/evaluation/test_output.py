import errno
import json
import os
import secrets

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from bua.detection.annotations import DetectionDataset
from bua.detection.evaluation import VisualGenomeEvaluator
from bua.detection.evaluation.output import checkpoint_label, evaluation_folder, write_results
from bua.errors import InputError
from bua.structures import DetectedBoxes, RegionPredictions

# A COCO file whose ids have gaps and are in no order, as that of a user.
USERS_FILE = {
    "images": [{"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 80} for number in (900, 12, 3)],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 7, "name": "cat"}],
    "annotations": [
        {"id": 5, "image_id": 12, "category_id": 90, "bbox": [10, 20, 30, 40], "attributes": ["red", "big"]},
        {"id": 6, "image_id": 900, "category_id": 7, "bbox": [1, 2, 3, 4], "attributes": ["red"]},
    ],
}
CAT, ZEBRA = 0, 1  # in the order of the ids
BIG, RED = 0, 1  # in alphabetical order


@pytest.fixture
def dataset(tmp_path) -> DetectionDataset:
    (tmp_path / "mine.json").write_text(json.dumps(USERS_FILE))
    return DetectionDataset(tmp_path / "mine.json", tmp_path)


def detected(boxes, scores, classes) -> dict:
    return {"detections": DetectedBoxes(np.float32(boxes), np.float32(scores), np.array(classes))}


def attributes_at(boxes, probabilities) -> RegionPredictions:
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return RegionPredictions(
        width=100,
        height=80,
        proposals=boxes,
        objectness=torch.ones(len(boxes)),
        class_probs=torch.ones(len(boxes), 2),
        boxes=None,
        features=torch.zeros(len(boxes), 1),
        attribute_probs=torch.tensor(probabilities),
    )


def read_by_pycocotools(annotation_file, results) -> COCO:
    return COCO(str(annotation_file)).loadRes(str(results))


def test_pycocotools_reads_the_detections_with_the_ids_of_the_annotation_file(dataset, tmp_path):
    evaluator = VisualGenomeEvaluator(dataset, output_dir=tmp_path / "out", max_detections=3)
    boxes = [[10.5, 20.25, 40, 60], [1.1, 2, 4, 6.7], [0, 0, 9, 9]]
    outputs = [
        detected(boxes[:2], [0.75, 1e-7], [ZEBRA, CAT])
        | {"attributes": attributes_at([[10, 20, 40, 60]], [[0.25, 0.75]])},
        detected(boxes[2:], [0.125], [CAT]),
        detected(np.empty((0, 4)), [], []),
    ]
    evaluator.process([{"image_id": number} for number in (12, 900, 3)], outputs)
    evaluator.evaluate()

    found = read_by_pycocotools(tmp_path / "mine.json", tmp_path / "out" / "objects.json")
    (zebra,) = found.loadAnns(found.getAnnIds(imgIds=[12], catIds=[90]))
    assert zebra["bbox"] == [10.5, 20.25, 29.5, 39.75]
    assert zebra["score"] == 0.75
    cats = found.loadAnns(found.getAnnIds(catIds=[7]))
    assert [(cat["image_id"], cat["score"]) for cat in cats] == [(900, 0.125), (12, pytest.approx(1e-7))]
    assert found.loadCats([90])[0]["name"] == "zebra"
    assert len(found.anns) == 3

    found = read_by_pycocotools(tmp_path / "mine.json", tmp_path / "out" / "attributes.json")
    assert [(one["image_id"], one["category_id"], one["bbox"], one["score"]) for one in found.anns.values()] == [
        (12, RED, [10, 20, 30, 40], 0.75),
        (12, BIG, [10, 20, 30, 40], 0.25),
    ]
    names = [line.split("\t")[0] for line in (tmp_path / "out" / "attributes_original.tsv").read_text().splitlines()]
    assert names == ["class", "big", "red"]


def test_numbers_in_a_file_identify_those_of_the_detector(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.zeros(500), 10.0 ** rng.uniform(-40, 0, 500), rng.uniform(0, 1000, (500, 4))])
    rows = rows.astype(np.float32)
    write_results(tmp_path / "all.json", [(1, rows[:100]), (2, rows[:0]), (3, rows[100:])])
    found = json.loads((tmp_path / "all.json").read_text())
    assert [one["image_id"] for one in found] == [1] * 100 + [3] * 400
    np.testing.assert_array_equal(np.float32([one["score"] for one in found]), rows[:, 1])
    x, y, width, height = np.array([one["bbox"] for one in found]).T
    np.testing.assert_array_equal(np.float32([x, y]).T, rows[:, 2:4])
    np.testing.assert_allclose(np.array([x + width, y + height]).T, rows[:, 4:], atol=2e-5)


def test_no_detections_are_an_empty_list(tmp_path):
    write_results(tmp_path / "none.json", [(1, np.empty((0, 6)))])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_detections_are_not_kept_if_this_is_turned_off(dataset, tmp_path):
    evaluator = VisualGenomeEvaluator(dataset, output_dir=tmp_path / "out", keep_detections=False)
    evaluator.process([{"image_id": 3}], [detected(np.empty((0, 4)), [], [])])
    evaluator.evaluate()
    assert sorted(os.listdir(tmp_path / "out")) == ["objects_corrected.tsv", "objects_original.tsv"]


@pytest.mark.parametrize("file", ["objects.json.0.tmp", "objects_original.tsv"])
def test_a_full_disk_is_reported_in_one_line(dataset, tmp_path, file, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0")  # a part of the names of temporary files
    evaluator = VisualGenomeEvaluator(dataset, output_dir=tmp_path / "out")
    (tmp_path / "out" / file).symlink_to("/dev/full")
    evaluator.process([{"image_id": 3}], [detected([[0, 0, 9, 9]], [0.5], [0])])
    with pytest.raises(InputError, match="cannot be written: No space left on device; free some space") as error:
        evaluator.evaluate()
    assert str(error.value).startswith(str(tmp_path / "out" / file.removesuffix(".0.tmp")))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_to_is_reported_before_anything_is_detected(dataset, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"out/model: cannot create this folder: Not a directory"):
        VisualGenomeEvaluator(dataset, output_dir=tmp_path / "out" / "model")
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"other: no permission to write to this folder"):
        VisualGenomeEvaluator(dataset, output_dir=tmp_path / "other")


def test_a_file_that_cannot_be_completed_leaves_the_older_one(tmp_path):
    (tmp_path / "old.json").write_text("old")

    def images():
        yield 1, np.ones((1, 6))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(InputError, match=r"old\.json: the detections cannot be written: Input/output error"):
        write_results(tmp_path / "old.json", images())
    assert os.listdir(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_no_name_leads_out_of_the_folder_of_evaluations(tmp_path, name):
    label = checkpoint_label(f"{tmp_path}/{name}.pth", tmp_path)
    folder = evaluation_folder(tmp_path, name, label)
    assert folder.resolve().relative_to(tmp_path / "evaluation").parts == folder.parts[-2:]
    assert label.strip(".")
    assert folder.parent.name.strip(".")


def test_each_checkpoint_and_data_set_has_a_folder_of_its_own(tmp_path):
    run = tmp_path / "run"
    assert checkpoint_label(str(run / "model_0004999.pth"), run) == "model_0004999"
    assert checkpoint_label(f"{tmp_path}/x/../run/model_final.pth", run) == "model_final"
    others = [
        *(tmp_path / "other" / "model_final.pth", tmp_path / "model_final.pth", run / "model_final.pkl"),
        *("https://example.org/a/model_final.pth", "https://example.org/b/model_final.pth?dl=1", "caffe-r101-36"),
    ]
    labels = [checkpoint_label(str(place), run) for place in others]
    assert len({"model_final", *labels}) == 7
    assert labels[2] == "model_final.pkl"
    assert labels[0].startswith("model_final-")
    assert labels[5].startswith("caffe-r101-36-")
    assert labels == [checkpoint_label(str(place), str(run)) for place in others]
    for label in (*labels, checkpoint_label("/x/" + "ü" * 120 + "?.pth", run)):
        (tmp_path / label).mkdir()

    assert evaluation_folder(run, "vg_1.2_val", "model_final") == run / "evaluation" / "vg_1.2_val" / "model_final"
    mine, yours = (evaluation_folder(run, f"{folder}/val.json", "m") for folder in ("mine", "yours"))
    assert mine != yours
    assert mine.parent.name.startswith("val-")
