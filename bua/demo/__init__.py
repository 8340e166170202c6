"""Runs every part of the project once, on drawn images: data set, detector, features, task models and page."""

from bua.demo.run import run_demo

__all__ = ["run_demo"]
