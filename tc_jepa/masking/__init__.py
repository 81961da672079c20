"""Masks: which patches the context encoder sees and which are to be predicted. Never imports JAX."""

from tc_jepa.masking.blocks import BlockMasks
from tc_jepa.masking.masks import check_range, Masks, MaskSampler
from tc_jepa.masking.official import OfficialMasks
from tc_jepa.masking.random import RandomMasks

__all__ = ["BlockMasks", "MaskSampler", "Masks", "OfficialMasks", "RandomMasks", "check_range"]
