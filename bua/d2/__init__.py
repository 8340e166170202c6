"""bua as an extension of Detectron2. Importing this package registers its parts with Detectron2."""

import warnings

with warnings.catch_warnings():
    # Detectron2's and fvcore's use of torch.jit.script, which newer releases of torch warn of.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    import detectron2.engine  # noqa: F401

from bua.config import add_bua_config
from bua.d2.anchors import BUAAnchorGenerator
from bua.d2.backbone import build_bua_resnet_backbone
from bua.d2.config import load_cfg
from bua.d2.datasets import register_datasets
from bua.d2.dump_features import DumpFeatures
from bua.d2.evaluation import VisualGenomeEvaluator
from bua.d2.feature_dumper import FeatureDumper
from bua.d2.mapper import AttributeDatasetMapper, InferenceMapper
from bua.d2.proposals import BUAProposalGenerator
from bua.d2.rcnn import AttributeRCNN
from bua.d2.region_detector import Detectron2Detector
from bua.d2.roi_heads import AttributeRes5ROIHeads, AttributeStandardROIHeads
from bua.d2.trainer import Trainer

register_datasets()

__all__ = [
    "AttributeDatasetMapper",
    "AttributeRCNN",
    "AttributeRes5ROIHeads",
    "AttributeStandardROIHeads",
    "BUAAnchorGenerator",
    "BUAProposalGenerator",
    "Detectron2Detector",
    "DumpFeatures",
    "FeatureDumper",
    "InferenceMapper",
    "Trainer",
    "VisualGenomeEvaluator",
    "add_bua_config",
    "build_bua_resnet_backbone",
    "load_cfg",
    "register_datasets",
]
