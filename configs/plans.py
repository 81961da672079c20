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
    cost: bool = False  # whether the compiler is asked for seconds, too


STORED = {"model.text": "stored", "data.path": "DATA", "captions.vectors": "VECTORS"}
FUSED_FIRST = {"conditioner.fuse_first": True}
KERNELS = {"model.kernels": "tpu"}
# One block is compiled in the place of the encoder's many, and everything in blocks is computed again for gradients.
DEEP = {"model.remat": "all", "model.scan_blocks": True}
SHARDED = {"mesh.data": -1, "mesh.fsdp": 8}

PLANS = (
    Row("ijepa_in1k_b16", "v5p:2x2x4", {}, cost=True),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", STORED, cost=True),
    Row("ijepa_in1k_b16", "v5p:2x2x4", KERNELS, cost=True),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", KERNELS | STORED, cost=True),
    Row("tc_jepa_in1k_b16", "v5p:2x2x4", KERNELS | STORED | FUSED_FIRST, cost=True),
    Row("tc_jepa_in1k_b16", "v5e:4x4", KERNELS | STORED),
    Row("tc_jepa_in1k_b16", "v6e:4x4", KERNELS | STORED),
    Row("tc_jepa_in1k_b16", "h100:2x8", STORED),
    Row("tc_jepa_in1k_b16", "h100:2x8", STORED | {"model.remat": "all"}),
    Row("ijepa_in1k_l16", "v5p:2x2x4", KERNELS, cost=True),
    Row("tc_jepa_in1k_l16", "v5p:2x2x4", KERNELS | STORED, cost=True),
    Row("tc_jepa_in1k_l16", "v5p:2x2x4", KERNELS | STORED | FUSED_FIRST, cost=True),
    Row("tc_jepa_in1k_l16", "v5e:8x8", KERNELS | STORED | DEEP),
    Row("tc_jepa_in1k_l16", "v6e:4x4", KERNELS | STORED | DEEP),
    Row("tc_jepa_in1k_l16", "h100:2x8", STORED | DEEP),
    Row("ijepa_in1k_h14", "v5p:2x4x4", KERNELS, cost=True),
    Row("tc_jepa_in1k_h14", "v5p:2x4x4", KERNELS | STORED, cost=True),
    Row("tc_jepa_in1k_h14", "v5p:2x4x4", KERNELS | STORED | FUSED_FIRST, cost=True),
    Row("tc_jepa_in1k_h14", "v5e:8x8", KERNELS | STORED | DEEP | SHARDED),
    Row("tc_jepa_in1k_h14", "v6e:8x8", KERNELS | STORED | DEEP | SHARDED),
    Row("tc_jepa_in1k_h14", "h100:4x8", STORED | DEEP | SHARDED),
    Row("ijepa_in22k_g16", "v5p:2x4x4", KERNELS | DEEP),
    Row("ijepa_in22k_g16", "v5e:8x8", KERNELS | DEEP | SHARDED),
    Row("ijepa_in22k_g16", "v6e:8x8", KERNELS | DEEP | SHARDED),
    Row("ijepa_in22k_g16", "h100:4x8", DEEP | SHARDED),
    Row("ijepa_in1k_h16_448", "v5p:4x4x4", KERNELS | DEEP),
    Row("ijepa_in1k_h16_448", "v5e:8x16", KERNELS | DEEP | SHARDED),
    Row("ijepa_in1k_h16_448", "v6e:8x8", KERNELS | DEEP | SHARDED),
    Row("ijepa_in1k_h16_448", "h100:8x8", DEEP | SHARDED),
)
