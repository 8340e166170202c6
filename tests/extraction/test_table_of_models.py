"""The table of models in docs/weights.md: it has all models and names only what exists, and two images are extracted
with each model, on each of its engines, with slim random weights."""

import ast
import importlib.util
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_loading import ROOT

from bua.config import load_cfg
from bua.config_files import find_config, read_config
from bua.errors import InputError
from bua.extraction import Extractor, ExtractorConfig, RegionChoice, extract, list_images
from bua.extraction.engines import detectron2_plugin
from bua.features import FORMATS, open_features, open_writer
from bua.modeling import build_detector
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.weights.zoo import PACKAGED, ZOO, is_backbone

TESTS = ROOT / "tests"
CODE = re.compile(r"`([^`]+)`")
# Factor by which the networks are narrower here. The table has the feature dimension of the whole network.
NARROWER = 16
SLIM = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.RPN.CONV_DIMS": [8],
    "MODEL.RPN.POST_NMS_TOPK_TEST": 12,
    "MODEL.ROI_HEADS.NUM_CLASSES": 7,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 100,
    "MODEL.BUA.ATTRIBUTES.NUM_CLASSES": 5,
    "MODEL.BUA.ATTRIBUTES.EMBEDDING_DIM": 4,
    "MODEL.BUA.ATTRIBUTES.HIDDEN_DIM": 6,
}

# The tests that compare each model with golden data, with the code of its authors, or with the other engine.
COMPARISONS = {
    "the original": (
        "modeling/test_anchors.py::test_caffe_anchors_agree_with_the_original",
        "modeling/test_boxes.py::test_decode_and_clip_agree_with_the_original",
        "modeling/test_rpn.py::test_proposals_agree_with_the_original",
        "d2/test_d2_golden.py::test_proposals_agree_with_the_original",
        "extraction/test_select.py::test_as_the_original",
        "tools/test_verify_features.py::test_the_released_weights_give_the_originals_features",
    ),
    "the original with Detectron2's boxes": (
        "modeling/test_detector.py::test_every_stage_agrees_with_the_public_port",
        "d2/test_d2_golden.py::test_every_stage_agrees_with_the_public_port",
    ),
    "MILVLG's ResNet-152": ("weights/test_layouts.py::test_milvlgs_resnet_of_version_2",),
    "MILVLG's Detectron2 models": (
        "modeling/test_grid_detector.py::test_heads_are_those_of_grid_feats_vqa",
        "modeling/test_grid_detector.py::test_proposals_are_those_of_grid_feats_vqa",
    ),
    "your own C4": (
        "d2/test_d2_model.py::test_engines_predict_the_same",
        "d2/test_d2_model.py::test_engines_compute_the_same_losses",
        "d2/test_d2_extraction.py::test_both_engines_extract_the_same_from_c4",
    ),
    "your own FPN": (
        "d2/test_d2_model.py::test_standard_heads_add_attributes_to_fpn",
        "d2/test_d2_extraction.py::test_models_with_attributes_give_those_of_their_own_inference",
    ),
    "Detectron2's model zoo, C4": ("d2/test_d2_extraction.py::test_predictions_are_detectron2s_own",),
    "Detectron2's model zoo, FPN and cascades": (
        "d2/test_d2_extraction.py::test_predictions_are_detectron2s_own",
        "d2/test_d2_extraction.py::test_features_are_the_box_heads_output_for_the_regions",
    ),
    "VinVL": (
        "modeling/test_vinvl_detector.py::test_every_stage_agrees_with_scene_graph_benchmark",
        "modeling/test_vinvl_detector.py::test_detections_agree_in_every_setting",
        "weights/test_vinvl_layout.py::test_names_and_shapes_are_those_of_the_released_file",
    ),
    "grid-feats-vqa, grids": (
        "modeling/test_grid_detector.py::test_feature_maps_are_those_of_grid_feats_vqa",
        "modeling/test_grid_detector.py::test_parameters_at_the_released_size",
    ),
    "grid-feats-vqa, regions": (
        "modeling/test_grid_detector.py::test_heads_are_those_of_grid_feats_vqa",
        "modeling/test_grid_detector.py::test_detections_are_those_of_grid_feats_vqa",
        "d2/test_d2_grid_models.py::test_grid_models_are_the_same_in_both_engines",
    ),
    "EfficientDet, crops": (
        "modeling/test_efficientdet.py::test_boxes_and_scores_are_those_of_effdet",
        "modeling/test_efficientdet.py::test_losses_are_those_of_effdet",
        "extraction/test_described_boxes.py::test_a_crops_feature_is_that_of_the_obvious_implementation",
    ),
    # They have no configuration of their own: two images are extracted there, too.
    "boxes of any detector": (
        "extraction/test_described_boxes.py::test_a_detector_describes_them_as_it_describes_given_boxes",
        "extraction/test_described_boxes.py::test_boxes_of_a_detector_of_regions",
        "extraction/test_described_boxes.py::test_boxes_of_torchvisions_detectors",
    ),
    "Shapes": ("d2/test_d2_training.py::test_features_dumped_by_one_process_are_the_extracted_ones",),
}


@cache
def table() -> dict[str, dict[str, str]]:
    """The rows of the table: the cells by their columns, by the name of the model."""
    section = (ROOT / "docs" / "weights.md").read_text().partition("\n## Models\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    columns, _, *rows = lines
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def codes(column: str) -> dict[str, list[str]]:
    """What a column has in code, by the name of the model."""
    return {name: CODE.findall(row[column]) for name, row in table().items()}


def test_every_configuration_and_every_name_of_weights_is_in_the_table():
    detectors = {file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.yaml")}
    # Of models of the tasks, and bases of others.
    detectors = {str(file) for file in detectors if "META_ARCHITECTURE" in str(read_config(ROOT / "configs" / file))}
    assert {name for names in codes("configuration").values() for name in names} >= detectors - {
        "base_c4.yaml",
        "grid_feats/base.yaml",
    }
    weights = {name for names in codes("weights").values() for name in names}
    assert {name for name in ZOO if not is_backbone(name)} <= weights
    # Names of others are listed below, with where they were published.
    released = set(CODE.findall((ROOT / "docs" / "weights.md").read_text()))
    assert set(ZOO) <= released


def test_the_table_names_only_what_exists():
    for name, configurations in codes("configuration").items():
        for configuration in configurations:
            if table()[name]["engine"] == "detectron2" and has_detectron2():
                assert detectron2_plugin().find_in_zoo(configuration) or find_config(configuration)
            elif table()[name]["engine"] != "detectron2":
                find_config(configuration)
    for name, names in codes("weights").items():
        assert set(names) <= {*ZOO, *PACKAGED}, name
        configurations = codes("configuration")[name]
        assert {ZOO[weights].config for weights in names if weights in ZOO} <= set(configurations), name


def test_the_tests_of_each_model_exist():
    assert set(COMPARISONS) == set(table())
    for name, row in table().items():
        linked = set(re.findall(r"\]\(\.\./tests/([^)]+)\)", row["compared with"]))
        assert linked == {test.partition("::")[0] for test in COMPARISONS[name]}, name
        for test in COMPARISONS[name]:
            file, _, function = test.partition("::")
            assert function in functions_of(TESTS / file), test


@cache
def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def has_detectron2() -> bool:
    return importlib.util.find_spec("detectron2") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two images in ``images``, and the names of slim networks' classes."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate([(60, 80, 3), (90, 50, 3)]):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), generator.integers(0, 256, size, np.uint8))
    return folder


@pytest.fixture(scope="module")
def extracted(folder):
    """Returns a function that extracts the two images with a slim network, once for configurations that describe the
    same one."""
    done: dict[tuple, list] = {}

    def extract_images(configuration, engines, engine, grid=False):
        config = ExtractorConfig(configuration, (), "random", RegionChoice(4, 4, 0.0, grid=grid), engine=engine)
        cfg = config.cfg()
        config = replace(config, overrides=slim(cfg))
        if cfg.MODEL.META_ARCHITECTURE == EFFICIENTDET:
            pytest.importorskip("effdet")
            # The network of the crops cannot be slim, so that there is one of each image.
            config = replace(config, choice=RegionChoice(1, 1, 0.0))
            config = replace(config, boxes_from=config, features_from="crops", crop_weights="random")
        cfg = config.cfg()
        cfg.MODEL.WEIGHTS = ""
        network = (engine, grid, str(cfg.MODEL), str(cfg.INPUT))
        if network not in done:
            if "torch" in engines and config.boxes_from is None:
                # Both engines get the same weights.
                config = replace(config, weights=random_weights(folder / "weights.pth", config))
            done[network] = [x.regions for x in Extractor.from_config(config, "cpu")(list_images(folder / "images"))]
        return done[network]

    return extract_images


def slim(cfg) -> tuple[str, ...]:
    """The overrides that make a network narrow."""
    model = cfg.MODEL
    values = {
        **SLIM,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": model.RESNETS.RES2_OUT_CHANNELS // NARROWER,
        "MODEL.RESNETS.NUM_GROUPS": min(2, model.RESNETS.NUM_GROUPS),
        "MODEL.ROI_BOX_HEAD.FC_DIM": model.ROI_BOX_HEAD.FC_DIM // NARROWER,
    }
    if model.META_ARCHITECTURE == EFFICIENTDET:
        # Here the images are smaller, not the levels of the pyramid.
        values |= {"MODEL.BUA.EFFICIENTDET.BACKBONE": "test_resnet", "MODEL.BUA.EFFICIENTDET.FPN_CHANNELS": 8}
        values |= {"MODEL.BUA.EFFICIENTDET.IMAGE_SIZE": (128, 128), "MODEL.BUA.EFFICIENTDET.FPN_REPEATS": 1}
    if "fpn" in model.BACKBONE.NAME:
        values |= {"MODEL.FPN.OUT_CHANNELS": 8, "MODEL.RPN.CONV_DIMS": [-1]}
    return tuple(str(part) for pair in values.items() for part in pair)


def random_weights(path: Path, config: ExtractorConfig) -> str:
    """Writes random weights of the torch engine, with output layers that differ from region to region."""
    torch.manual_seed(0)
    weights = build_detector(load_cfg(config.config_file, config.overrides)).state_dict()
    for name, value in weights.items():
        if any(part in name for part in ("rpn_head", "predictor")):
            value *= 5
    torch.save({"model": weights}, path)
    return str(path)


@pytest.mark.parametrize(
    ("model", "configuration"),
    [(model, configuration) for model, names in codes("configuration").items() for configuration in names],
)
def test_two_images_are_extracted_and_the_same_on_both_engines(extracted, model, configuration):
    row = table()[model]
    engines = [one for one in row["engine"].split(", ") if one == "torch" or has_detectron2()]
    if not engines:
        pytest.skip("Detectron2 is not installed (README.md, With Detectron2)")
    grid = row["formats"] == "of grids"
    images = [extracted(configuration, row["engine"], engine, grid) for engine in engines]
    narrower = 1 if model == "EfficientDet, crops" else NARROWER
    for regions in images[0]:
        assert regions.features.shape[1] * narrower == int(row["dimension"].replace(",", ""))
        assert grid or len(regions) == (4 if narrower > 1 else 1)
        assert (regions.object_ids is None) == grid
        assert (regions.attribute_ids is not None) == (row["formats"] == "of regions")
    for ours, theirs in zip(*images) if len(images) == 2 else ():
        np.testing.assert_array_equal(theirs.object_ids, ours.object_ids)
        np.testing.assert_array_equal(theirs.attribute_ids, ours.attribute_ids)
        np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-2)
        np.testing.assert_allclose(theirs.features, ours.features, atol=1e-4 * np.abs(ours.features).max())


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ("VinVL", {"grid-pth": "holds feature maps of whole images"}),
        (
            "Detectron2's model zoo, FPN and cascades",
            {"grid-pth": "holds feature maps of whole images", "lxmert-tsv": "needs attributes"},
        ),
        ("grid-feats-vqa, grids", {"lxmert-tsv": "needs labels", "vinvl-tsv": "needs labels"}),
    ],
)
def test_formats_that_features_go_into(extracted, folder, tmp_path, monkeypatch, model, refused):
    monkeypatch.setattr("os.fsync", lambda file: None)  # a disk may take most of the time
    row = table()[model]
    (configuration, *_), engine = CODE.findall(row["configuration"]), row["engine"]
    if engine == "detectron2" and not has_detectron2():
        pytest.skip("Detectron2 is not installed (README.md, With Detectron2)")
    grid = row["formats"] == "of grids"
    for format, message in refused.items():
        with pytest.raises(InputError, match=message):
            extract(
                folder / "images",
                tmp_path / format,
                config_file=configuration,
                weights="random",
                format=format,
                grid=grid,
                overrides=["MODEL.BUA.ATTRIBUTES.ENABLED", str(row["formats"] == "of regions")],
            )
    regions = extracted(configuration, engine, engine, grid)[0]
    names = {"object_vocabulary": [*"abcdefg"], "attribute_vocabulary": [*"abcde"]}
    for format in FORMATS:
        if format not in refused:
            with open_writer(tmp_path / format, format, names) as writer:
                writer.append(regions)
                writer.finish()
            (read,) = open_features(tmp_path / format).values()
            assert read.features.shape == regions.features.shape, format
