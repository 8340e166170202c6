"""Captions of pictures from region features."""

from bua.captioning.decoding import Captions, Constraints, beam_search, greedy, sample
from bua.captioning.self_critical import self_critical_loss
from bua.captioning.updown import SpecialWords, UpDownCaptioner, caption_loss

__all__ = [
    "Captions",
    "Constraints",
    "SpecialWords",
    "UpDownCaptioner",
    "beam_search",
    "caption_loss",
    "greedy",
    "sample",
    "self_critical_loss",
]
