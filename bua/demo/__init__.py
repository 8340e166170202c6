"""The whole way at once: data set, detector, features, the models that live on them, and a page that shows it all."""

from bua.demo.run import run_demo

__all__ = ["run_demo"]
