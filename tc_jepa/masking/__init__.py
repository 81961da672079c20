"""Masks: which patches the context encoder sees and which are to be predicted. Never imports JAX."""

from tc_jepa.masking.blocks import BlockMasks
from tc_jepa.masking.masks import check_range, Masks, MaskSampler

__all__ = ["BlockMasks", "MaskSampler", "Masks", "check_range"]
