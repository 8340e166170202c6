import numpy as np
import pytest

from bua.detection import catalog
from bua.detection.annotations import ImageAnnotations, write_annotations
from bua.errors import InputError
from bua.vocabulary import Vocabulary


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(catalog, "_places", dict(catalog._places))
    return tmp_path


def write(path):
    image = ImageAnnotations(7, "VG_100K/7.jpg", 20, 10, np.array([[1, 2, 3, 4]]), [0], [[1, 0]])
    write_annotations(path, [image], Vocabulary(["dog"]), Vocabulary(["red", "tall"]))


def test_known_names(root):
    splits = ("train", "val", "test")
    assert catalog.dataset_names() == [f"{kind}_{split}" for kind in ("visual_genome", "shapes") for split in splits]


@pytest.mark.parametrize("kind", ["visual_genome", "shapes"])
def test_prepared_data_set(root, kind):
    write(root / kind / "annotations" / f"{kind}_val.json")
    dataset = catalog.get_dataset(f"{kind}_val")
    assert dataset.name == f"{kind}_val"
    assert dataset.file_name(0) == str(root / kind / "VG_100K/7.jpg")


def test_root_is_datasets_by_default(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert str(catalog.datasets_root()) == "datasets"


def test_what_is_not_prepared_says_how(root):
    with pytest.raises(InputError, match=r"prepare_visual_genome\.py --root \S*visual_genome --name visual_genome"):
        catalog.get_dataset("visual_genome_train")
    with pytest.raises(InputError, match=r"make_shapes\.py .*prepare_visual_genome\.py --root \S*shapes --name shapes"):
        catalog.get_dataset("shapes_test")


def test_unknown_name_lists_the_known(root):
    with pytest.raises(
        InputError, match=r"'shapes_vall': no such name; did you mean shapes_val\? known: visual_genome"
    ):
        catalog.get_dataset("shapes_vall")


def test_own_data_set(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "mine.json")
    catalog.register_dataset("mine", "pictures", elsewhere / "mine.json")
    assert catalog.get_dataset("mine").file_name(0) == str(root / "images/VG_100K/7.jpg")
    with pytest.raises(InputError, match="'mine': the name is taken"):
        catalog.register_dataset("mine", "pictures", "other.json")
    catalog.register_dataset("other", "pictures", "other.json")
    with pytest.raises(InputError, match=r"other\.json: data set other is not prepared; put the file there"):
        catalog.get_dataset("other")
