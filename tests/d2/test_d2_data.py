import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

import bua.d2
import bua.detection.catalog
from bua.d2.trainer import Trainer
from bua.detection.catalog import get_dataset
from bua.detection.mapper import build_mapper
from bua.errors import InputError
from bua.io.images import Resize, read_image
from bua.vocabulary import Vocabulary

CONFIG = "configs/shapes.yaml"


def test_data_sets_are_registered_in_detectron2s_catalogs(shapes, tmp_path, monkeypatch):
    assert {"visual_genome_train", "shapes_test"} <= set(DatasetCatalog)
    assert MetadataCatalog.get("visual_genome_val").evaluator_type == "visual_genome"
    expected = get_dataset("shapes_test")
    records = get_detection_dataset_dicts("shapes_test", filter_empty=False)
    assert records == list(expected)
    assert MetadataCatalog.get("shapes_test").thing_classes == expected.objects.names
    assert MetadataCatalog.get("shapes_test").attribute_classes == expected.attribute_names.names

    monkeypatch.setattr(bua.detection.catalog, "_locations", dict(bua.detection.catalog._locations))
    bua.detection.catalog.register_dataset("mine", "shapes", "shapes/annotations/shapes_val.json")
    bua.d2.register_datasets()
    assert len(DatasetCatalog.get("mine")) == 3
    DatasetCatalog.remove("mine")


def test_training_mapper_makes_the_samples_of_the_torch_engine(shapes):
    cfg = bua.d2.load_cfg(CONFIG, shapes())
    dataset = get_dataset("shapes_train")
    mapper = build_mapper(cfg, dataset.objects, dataset.attribute_names)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        mapped = bua.d2.AttributeDatasetMapper(mapper)(dataset[0])
        torch.manual_seed(seed)
        expected = mapper(dataset[0], np.random.default_rng(torch.randint(2**31, ()).item()))
        instances = mapped["instances"]
        assert torch.equal(mapped["image"], expected.image)
        assert instances.image_size == tuple(expected.image.shape[1:])
        assert torch.equal(instances.gt_boxes.tensor, expected.boxes)
        assert torch.equal(instances.gt_classes, expected.classes)
        assert torch.equal(instances.gt_attributes, expected.attributes)
        assert (mapped["image_id"], mapped["scale"]) == (dataset[0]["image_id"], expected.scale)
        seen.add((*expected.image.shape, float(expected.image[0, 0, 0])))
    assert len(seen) > 2  # flips and sizes


@pytest.mark.parametrize("flip_words", [False, True])
def test_training_mapper_exchanges_left_and_right_only_if_asked(shapes, flip_words):
    cfg = bua.d2.load_cfg(CONFIG, shapes(INPUT__FLIP_WORDS=flip_words))
    record = {**get_dataset("shapes_train")[0]}
    record["annotations"] = [record["annotations"][0] | {"category_id": 0, "attribute_ids": [1]}]
    sides = Vocabulary(["left hand", "right hand"])
    mapper = bua.d2.AttributeDatasetMapper(build_mapper(cfg, sides, sides))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        instances = mapper(record)["instances"]
        seen.add((instances.gt_classes.item(), instances.gt_attributes[0, 0].item()))
    assert seen == ({(0, 1), (1, 0)} if flip_words else {(0, 1)})


def test_training_loader_leaves_out_images_without_boxes(shapes):
    cfg = bua.d2.load_cfg(CONFIG, shapes(DATASETS__TRAIN="('shapes_train',)"))
    dataset = get_dataset("shapes_train")
    usable = {int(i) for n, i in enumerate(dataset.image_ids) if len(dataset.boxes(n))}
    batches = iter(Trainer.build_train_loader(cfg))
    seen = {x["image_id"] for _ in range(20) for x in next(batches)}
    assert seen == usable


def test_inference_mapper_resizes_the_image_and_adds_boxes(shapes):
    cfg = bua.d2.load_cfg(CONFIG, shapes())
    dataset = get_dataset("shapes_test")
    (mapped,), *_ = Trainer.build_test_loader(cfg, "shapes_test")
    expected = Resize(64, cfg.INPUT.MAX_SIZE_TEST, "caffe")(read_image(dataset.file_name(0)))
    assert torch.equal(mapped["image"], expected.image)
    assert mapped["scale"] == expected.scale
    np.testing.assert_array_equal(mapped["boxes"], dataset.boxes(0))
    without = bua.d2.InferenceMapper(bua.d2.load_cfg(CONFIG, shapes(MODEL__BUA__ATTRIBUTES__ENABLED=False)))
    assert "boxes" not in without(dataset[0])


def test_inference_mapper_adds_the_rows_of_zeros_also_to_an_image_without_boxes(shapes):
    dataset = get_dataset("shapes_test")
    annotated, empty = dataset[0], dataset[1] | {"annotations": []}
    mapper = bua.d2.InferenceMapper(bua.d2.load_cfg(CONFIG, shapes()), {annotated["image_id"]: 1, empty["image_id"]: 2})
    np.testing.assert_array_equal(mapper(annotated)["boxes"], [*dataset.boxes(0), [0] * 4])
    assert mapper(empty)["boxes"].tolist() == [[0] * 4] * 2
    assert "boxes" not in bua.d2.InferenceMapper(bua.d2.load_cfg(CONFIG, shapes()))(empty)


def test_detectron2s_coco_evaluator_accepts_the_outputs(shapes, tmp_path):
    cfg = bua.d2.load_cfg(CONFIG, shapes())
    evaluator = COCOEvaluator("shapes_test", output_dir=str(tmp_path))
    results = inference_on_dataset(Trainer.build_model(cfg), Trainer.build_test_loader(cfg, "shapes_test"), evaluator)
    assert results["bbox"]["AP"] >= 0


def test_a_vocabulary_of_another_size_is_an_error(shapes):
    with pytest.raises(InputError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES is 3, but the vocabulary of shapes_train"):
        Trainer.build_train_loader(bua.d2.load_cfg(CONFIG, shapes(MODEL__ROI_HEADS__NUM_CLASSES=3)))
