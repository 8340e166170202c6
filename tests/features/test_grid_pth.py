import io
import os
import zipfile

import numpy as np
import pytest
import torch
from feature_samples import assert_same, sample

from bua.errors import InputError
from bua.features import convert_features, open_features, open_writer
from bua.features.grid_pth import CELL, GridPthFeatures, GridPthWriter, cell_boxes, grid_shape
from bua.structures import Regions


def grid(image_id, rows=2, columns=3, dim=4, scale=1.7):
    """Returns the cells of a grid as ``bua extract --grid`` gives them, in pixels of an original image."""
    generator = np.random.default_rng(rows * columns)
    boxes = cell_boxes(rows, columns) / np.float32(scale)
    width, height = int(CELL * columns / scale), int(CELL * rows / scale)
    boxes = np.minimum(boxes, np.array([width, height, width, height], np.float32))
    return Regions(image_id, width, height, boxes, generator.random((rows * columns, dim), np.float32))


def test_what_is_written_is_what_grid_feats_vqa_writes(tmp_path):
    regions = grid(131486)
    with open_writer(tmp_path / "out", "grid-pth") as writer:
        for one in (regions, grid("a/b", 1, 1)):
            writer.append(one)
        writer.finish()
    assert sorted(os.listdir(tmp_path / "out")) == ["131486.pth", "a%2Fb.pth"]
    written = torch.load(tmp_path / "out" / "131486.pth", weights_only=True)
    assert (written.dtype, written.shape, written.is_contiguous()) == (torch.float32, (1, 4, 2, 3), True)
    assert (written.untyped_storage().nbytes(), written.requires_grad) == (4 * written.numel(), False)
    np.testing.assert_array_equal(written[0, :, 1, 2], regions.features[5])

    store = open_features(tmp_path / "out")
    assert isinstance(store, GridPthFeatures)
    assert set(store) == {131486, "a/b"} == GridPthWriter(tmp_path / "out").done
    # The file has no image size: that of the resized image, rounded up to cells, takes its place.
    assert_same(store[131486], Regions(131486, 96, 64, cell_boxes(2, 3), regions.features))


@pytest.mark.parametrize("old", [False, True], ids=["today's files", "files of torch before 1.6"])
def test_the_authors_files_are_read(shared_data, tmp_path, old):
    folder = shared_data / "golden" / "grid_feats" / "grid_r50"
    golden = torch.load(folder / "131486.pth", weights_only=True)
    if old:
        torch.save(golden, tmp_path / "131486.pth", _use_new_zipfile_serialization=False)
        folder = tmp_path
    regions = GridPthFeatures(folder)[131486]
    assert (regions.width, regions.height) == (32 * golden.shape[3], 32 * golden.shape[2])
    np.testing.assert_array_equal(regions.features.T.reshape(golden.shape), golden)
    assert grid_shape(regions) == golden.shape[2:]


@pytest.mark.parametrize("format", ["tsv", "hdf5", "flat"])
def test_grids_are_converted_both_ways(tmp_path, format):
    with open_writer(tmp_path / "first", "flat") as writer:
        writer.append(grid(7))
        writer.finish()
    assert convert_features(tmp_path / "first", tmp_path / "pth", "grid-pth") == 1
    assert convert_features(tmp_path / "pth", tmp_path / "other", format) == 1
    assert convert_features(tmp_path / "other", tmp_path / "again", "grid-pth") == 1
    assert_same(open_features(tmp_path / "again")[7], open_features(tmp_path / "pth")[7])


def shuffled(regions):
    return Regions(regions.image_id, regions.width, regions.height, regions.boxes[::-1], regions.features)


@pytest.mark.parametrize(
    "regions",
    [sample(5), sample(5, 1), shuffled(grid(5)), shuffled(grid(5, 1)), grid(5, 0, 0)],
    ids=["boxes", "one box", "order", "order of one row", "none"],
)
def test_regions_that_are_not_a_grid_are_refused(tmp_path, regions):
    writer = GridPthWriter(tmp_path / "out")
    with pytest.raises(InputError, match=r"image 5: its \d+ regions are not the cells of a grid"):
        writer.append(regions)
    assert not os.listdir(tmp_path / "out")


def test_a_part_is_merged_by_moving_its_files(tmp_path):
    for name, ids in {"out": (1, 2), "part": (2, 3)}.items():
        for image_id in ids:
            GridPthWriter(tmp_path / name).append(grid(image_id, columns=image_id))
    writer = GridPthWriter(tmp_path / "out")
    writer.merge(tmp_path / "part")
    assert writer.done == {1, 2, 3}
    assert [len(regions) for regions in GridPthFeatures(tmp_path / "out").values()] == [2, 4, 6]


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def compressed(data):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return file.getvalue()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


DAMAGED = {
    "text": (b"no tensor", "is damaged"),
    "empty": (b"", "is damaged"),
    "truncated": (saved(torch.rand(1, 3, 4, 4))[:300], "is damaged"),
    "code": (saved(Harmful()), "is damaged"),
    "checkpoint": (saved({"model": {}}), "holds a dict instead of a feature map"),
    "shape": (saved(torch.rand(3, 4, 4)), r"shape \(3, 4, 4\)"),
    "integers": (saved(torch.ones(1, 3, 4, 4, dtype=torch.int64)), "holds a tensor of torch.int64"),
    "too large": (saved(torch.rand(1).expand(1, 2048, 10**5, 10**5)), "a tensor with the shape"),
    "no memory": (saved(torch.rand(1, 3, 4, 4, device="meta")), "a tensor on meta"),
    "compressed": (compressed(saved(torch.zeros(1, 64, 64, 64))), "it is compressed"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_and_harms_nothing(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, message = DAMAGED[kind]
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "7.pth").write_bytes(data)
    store = open_features(tmp_path / "features")
    assert list(store) == [7]
    with pytest.raises(InputError, match=message) as error:
        store[7]
    assert str(error.value).startswith(f"{tmp_path}/features/7.pth: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()
