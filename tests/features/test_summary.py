import numpy as np
import pytest
from feature_files import REGION_FORMATS
from feature_samples import sample

from bua.errors import InputError
from bua.features import open_writer
from bua.features.summary import FeatureSummary, summarize
from bua.structures import Regions

ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(1600)],
    "attribute_vocabulary": [f"attribute {number}" for number in range(400)],
}


def write(path, images, format="flat"):
    with open_writer(path, format, ABOUT) as writer:
        for regions in images:
            writer.append(regions)
        writer.finish()
    return path


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_summary_of_features_without_faults(tmp_path, format):
    images = [sample(number, seed=number) for number in range(4)]
    summary = summarize(write(tmp_path / "out", images, format))
    assert summary.faults() == summary.unreadable == summary.problems == []
    assert (summary.images, summary.boxes, summary.histogram, summary.dims) == (4, 12, {3: 4}, {5: 4})
    features = np.concatenate([regions.features for regions in images])
    assert summary.minimum == features.min()
    assert summary.maximum == features.max()
    assert summary.mean == pytest.approx(features.mean())
    assert summary.zeros == 0
    assert summary.dtype == ("float16" if format == "flat-fp16" else "float32")
    assert summary.labels == ({} if format == "tsv" else dict.fromkeys(summary.labels, 4))


def test_faults_are_counted(tmp_path, monkeypatch):
    # Other programs write what bua refuses to write.
    monkeypatch.setattr("bua.features.flat.check_regions", lambda regions: None)
    boxes = np.array([[0, 0, 640, 480], [5, 5, 4, 6], [-1, 0, 5, 5], [0, 0, 641, 4], [0, 0, np.nan, 4]], np.float32)
    features = np.ones((5, 4), np.float32)
    features[1] = 0
    features[2, :2] = np.inf, 0
    images = [Regions(1, 640, 480, boxes, features), Regions(2, 640, 480, boxes[:0], features[:0])]
    summary = summarize(write(tmp_path / "out", images))
    assert summary.faults() == [
        "1 regions with features that are all 0",
        "2 values that are not finite",
        "2 boxes that reach out of their image",
        "1 boxes that end before they begin",
    ]
    assert summary.zeros == 5 / 19
    assert (summary.minimum, summary.maximum) == (0, 1)
    assert summary.histogram == {0: 1, 5: 1}

    images = [sample(1, dim=4), sample(2, dim=6)]
    assert summarize(write(tmp_path / "dims", images, "npz")).faults() == ["several feature dimensions: 4, 6"]
    assert summarize(write(tmp_path / "none", [])).faults() == ["no images"]


def test_rows_that_cannot_be_decoded_are_named(tmp_path):
    path = write(tmp_path / "features.tsv", [sample(number) for number in range(3)], "tsv")
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + rows[1].replace(b"640", b"6x0") + rows[2] + rows[0])
    summary = summarize(path)
    assert [line.split(";")[0] for line in summary.unreadable] == [f"{path}: line 2: image_w: '6x0' is not a number"]
    assert summary.problems == [f"{path}: line 4: image 0 again, which line 1 has"]
    assert summary.faults() == ["1 images that cannot be decoded", "1 records that cannot be read"]
    with pytest.raises(InputError, match="gone"):
        summarize(tmp_path / "gone")


def test_summary_without_images_has_no_averages_and_no_values():
    assert FeatureSummary().lines()[1:] == [
        "boxes      0",
        "features   dimension unknown, float32",
        "labels     none",
    ]


def test_histogram_of_the_number_of_boxes(tmp_path):
    counts = [10, 11, 36, 36, 100]
    images = [sample(number, count=count) for number, count in enumerate(counts)]
    lines = summarize(write(tmp_path / "out", images)).lines()
    assert "boxes      193, 10 to 100, 38.6 on average per image" in lines
    (line,) = (line for line in lines if line.startswith("histogram"))
    assert (
        line.split(maxsplit=1)[1] == "10-21: 2  22-33: 0  34-45: 2  46-57: 0  58-69: 0  70-81: 0  82-93: 0  94-100: 1"
    )
