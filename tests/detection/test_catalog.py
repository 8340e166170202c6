import numpy as np
import pytest

from bua.detection import catalog
from bua.detection.annotations import ImageAnnotations, write_annotations
from bua.errors import InputError
from bua.vocabulary import Vocabulary


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(catalog, "_locations", dict(catalog._locations))
    return tmp_path


def write_annotation_file(path):
    image = ImageAnnotations(7, "VG_100K/7.jpg", 20, 10, np.array([[1, 2, 3, 4]]), [0], [[1, 0]])
    write_annotations(path, [image], Vocabulary(["dog"]), Vocabulary(["red", "tall"]))


def test_names_of_the_prepared_data_sets(root):
    splits = ("train", "val", "test")
    assert catalog.dataset_names() == [f"{kind}_{split}" for kind in ("visual_genome", "shapes") for split in splits]


@pytest.mark.parametrize("kind", ["visual_genome", "shapes"])
def test_a_prepared_data_set_is_read_by_its_name(root, kind):
    write_annotation_file(root / kind / "annotations" / f"{kind}_val.json")
    dataset = catalog.get_dataset(f"{kind}_val")
    assert dataset.name == f"{kind}_val"
    assert dataset.file_name(0) == str(root / kind / "VG_100K/7.jpg")


def test_the_root_is_the_folder_datasets_by_default(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert str(catalog.datasets_root()) == "datasets"


def test_the_error_for_an_unprepared_data_set_says_how_to_prepare_it(root):
    with pytest.raises(InputError, match=r"bua prepare-visual-genome --root \S*visual_genome --name visual_genome"):
        catalog.get_dataset("visual_genome_train")
    with pytest.raises(InputError, match=r"bua make-shapes .*bua prepare-visual-genome --root \S*shapes --name shapes"):
        catalog.get_dataset("shapes_test")


def test_the_error_for_an_unknown_name_lists_the_known_names(root):
    with pytest.raises(
        InputError, match=r"'shapes_vall': there is no such name; did you mean shapes_val\? the names are visual_genome"
    ):
        catalog.get_dataset("shapes_vall")


def test_another_data_set_can_be_registered(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_annotation_file(elsewhere / "mine.json")
    catalog.register_dataset("mine", "images", elsewhere / "mine.json")
    assert catalog.get_dataset("mine").file_name(0) == str(root / "images/VG_100K/7.jpg")
    with pytest.raises(InputError, match="'mine': the name is in use already"):
        catalog.register_dataset("mine", "images", "other.json")
    catalog.register_dataset("other", "images", "other.json")
    with pytest.raises(InputError, match=r"other\.json: data set other is not prepared; put the file there"):
        catalog.get_dataset("other")


def test_data_sets_are_checked_without_being_read(root):
    write_annotation_file(root / "visual_genome" / "annotations" / "visual_genome_val.json")
    catalog.check_prepared(["visual_genome_val"])
    with pytest.raises(InputError, match="visual_genome_train is not prepared"):
        catalog.check_prepared(["visual_genome_val", "visual_genome_train"])
    with pytest.raises(InputError, match=r"mine\.json: this annotation file does not exist"):
        catalog.check_prepared(["mine.json"])
    with pytest.raises(InputError, match=r"DATASETS\.FILES\.mine: images is nowhere, which is not a folder"):
        catalog.check_prepared(["mine"], {"mine": {"json": "mine.json", "images": "nowhere"}})
    with pytest.raises(InputError, match=r"DATASETS\.FILES\.mine: has no images"):
        catalog.check_prepared(["mine"], {"mine": {"json": "mine.json"}})


def test_a_missing_file_of_a_data_set_that_is_not_used_is_no_error(root):
    write_annotation_file(root / "mine.json")
    files = {name: {"json": str(root / f"{name}.json"), "images": str(root)} for name in ("mine", "other")}
    assert catalog.get_dataset("mine", files).name == "mine"
    with pytest.raises(InputError, match=r"other\.json: this annotation file does not exist"):
        catalog.get_dataset("other", files)
