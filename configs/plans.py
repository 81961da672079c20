"""On which slices the recipes are planned, and with which settings: the rows of launch.plan_recipes.

Every recipe has a global batch of 2,048. With text=stored, launch.encode_captions has written the word vectors before;
a T5 that runs in the step costs more.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A recipe on a slice."""

    recipe: str  # of configs/paper.py
    topology: str
    settings: Mapping[str, Any]  # keys of configs/base.py


STORED = {"model.text": "stored", "data.path": "DATA", "captions.vectors": "VECTORS"}
ALL, BLOCKS = {"model.remat": "all"}, {"model.remat": "blocks"}
FUSED_FIRST = {"conditioner.fuse_first": True}

PLANS = (
    Row("ijepa_in1k_b16", "v5p:2x2x4", {}),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", STORED),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", STORED | FUSED_FIRST),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", STORED | BLOCKS),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", STORED | ALL),
    Row("tc_jepa_in1k_b16", "v5e:4x4", STORED | ALL),
    Row("tc_jepa_in1k_b16", "h100:2x8", STORED),
    Row("tc_jepa_in1k_b16", "h100:2x8", STORED | ALL),
    Row("ijepa_in1k_l16", "v5p:2x4x4", BLOCKS),
    Row("tc_jepa_in1k_l16", "v5p:2x4x4", STORED | ALL),
    Row("tc_jepa_in1k_l16", "v5e:8x16", STORED | ALL),
    Row("tc_jepa_in1k_l16", "h100:4x8", STORED | ALL),
    Row("tc_jepa_in1k_h14", "v5p:4x4x4", STORED | ALL),
    Row("tc_jepa_in1k_h14", "h100:8x8", STORED | ALL),
)
