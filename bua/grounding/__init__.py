"""Phrase grounding on region features: which region a phrase of a sentence means."""

from bua.grounding.ban import BANGrounding

__all__ = ["BANGrounding"]
