"""Parts of models: the detector in plain PyTorch on torchvision's operators, and the layers that the heads share."""

__all__ = ["Detector", "build_detector"]


def __getattr__(name: str):
    # Not at once: the heads take their layers from this package, and have no use for the detector and torchvision.
    if name in __all__:
        from bua.modeling import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
