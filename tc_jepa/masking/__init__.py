"""Masks: which patches the context encoder sees and which the predictor predicts. Never imports JAX."""

from tc_jepa.masking.blocks import BlockMasks
from tc_jepa.masking.masks import check_range, Masks, MaskSampler
from tc_jepa.masking.official import OfficialMasks
from tc_jepa.masking.random import RandomMasks

# By value of masking.kind. A sampler's fields are `grid` and keys of the group `masking`. A new kind is a line here.
MASKS = {"fixed": BlockMasks, "official": OfficialMasks, "random": RandomMasks}

__all__ = ["BlockMasks", "MASKS", "MaskSampler", "Masks", "OfficialMasks", "RandomMasks", "check_range"]
