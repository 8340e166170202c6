"""Image captioning on region features."""

from bua.captioning.decoding import Constraints, DecodedCaptions, beam_search, greedy, sample
from bua.captioning.scores import caption_scores
from bua.captioning.self_critical import self_critical_loss
from bua.captioning.updown import SpecialWords, UpDownCaptioner, caption_loss

__all__ = [
    "Constraints",
    "DecodedCaptions",
    "SpecialWords",
    "UpDownCaptioner",
    "beam_search",
    "caption_loss",
    "caption_scores",
    "greedy",
    "sample",
    "self_critical_loss",
]
