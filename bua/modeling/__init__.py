"""The detector in plain PyTorch on torchvision's operators."""

from bua.modeling.detector import Detector, build_detector

__all__ = ["Detector", "build_detector"]
