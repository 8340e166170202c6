"""Visual question answering on region features."""

from bua.vqa.accuracy import vqa_accuracy
from bua.vqa.ban import BAN
from bua.vqa.updown import UpDown

__all__ = ["BAN", "UpDown", "vqa_accuracy"]
