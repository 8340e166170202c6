"""The grid models of grid-feats-vqa are the same in Detectron2, with its own backbone and deformable convolutions."""

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_d2_model import (
    FIELDS,
    LOSSES,
    SLIM,
    amplify_outputs,
    as_input,
    assert_same,
    random_image,
    training_batch,
    with_instances,
)

import bua.d2
from bua.config import load_cfg
from bua.modeling import build_detector

GRID_SLIM = [
    *[
        *SLIM,
        "MODEL.RESNETS.NUM_GROUPS",
        "2",
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "8",
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        "12",
    ],
    # All anchors and regions are sampled, so that both engines sample the same.
    *["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000"],
    *["MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"],
]


@pytest.mark.parametrize("config", ["configs/grid_feats/r50.yaml", "configs/grid_feats/x152pp.yaml"])
def test_grid_models_are_the_same_in_both_engines(config):
    torch.manual_seed(0)
    detector = build_detector(load_cfg(config, GRID_SLIM))
    amplify_outputs(detector)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "conv2_offset" in name:
                parameter.normal_(std=0.1)
    model = build_model(bua.d2.load_cfg(config, GRID_SLIM))
    assert list(model.state_dict()) == list(detector.state_dict())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in detector.parameters()]
    model.load_state_dict(detector.state_dict())

    image = detector.prepare(random_image(100, 130), 1)
    boxes = torch.tensor([[5.0, 5, 60, 60], [30, 20, 80, 85]])
    with torch.no_grad():
        (output,) = model.eval()([as_input(image, boxes=boxes)])
    for theirs, ours in [
        (output["objects"], detector.infer([image])[0]),
        (output["attributes"], detector.infer([image], boxes=[boxes])[0]),
    ]:
        for field in FIELDS:
            assert_same(getattr(theirs, field), getattr(ours, field))

    batch = training_batch(detector)
    ours = detector.train()(batch)
    with EventStorage():
        theirs = model.train()(with_instances(batch))
    assert set(theirs) == set(ours) == LOSSES
    for name in LOSSES:
        assert theirs[name].item() == pytest.approx(ours[name].item(), rel=1e-4), name
