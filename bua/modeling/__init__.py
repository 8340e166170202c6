"""The detector in plain PyTorch on torchvision's operators."""

from bua.modeling.build import build_detector
from bua.modeling.detector import Detector

__all__ = ["Detector", "build_detector"]
