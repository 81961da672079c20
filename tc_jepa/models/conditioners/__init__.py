"""The table of conditioners, by value of the key model.conditioner. A new one is one file and one line here."""

from tc_jepa.models.conditioners.adaln import AdaptiveNorm
from tc_jepa.models.conditioners.base import Conditioner
from tc_jepa.models.conditioners.caption_cross_attention import CaptionCrossAttention
from tc_jepa.models.conditioners.feature import InputFeature
from tc_jepa.models.conditioners.sequence import WordSequence
from tc_jepa.models.conditioners.word_cross_attention import WordCrossAttention

CONDITIONERS: dict[str, type[Conditioner]] = {
    "none": Conditioner,
    "word_cross_attention": WordCrossAttention,
    "caption_cross_attention": CaptionCrossAttention,
    "adaln": AdaptiveNorm,
    "feature": InputFeature,
    "sequence": WordSequence,
}
