"""Phrase grounding on region features: which region a phrase of a sentence means."""

from bua.grounding.ban import BANGrounding
from bua.grounding.recall import grounding_recall

__all__ = ["BANGrounding", "grounding_recall"]
