"""Text-conditional JEPA in JAX. Names are imported on first use, so that data workers need not load JAX's models."""

import importlib

_EXPORTS = {
    "Batch": "tc_jepa.batch",
    "BlockMasks": "tc_jepa.masking",
    "Objective": "tc_jepa.objective",
    "OfficialMasks": "tc_jepa.masking",
    "Predictor": "tc_jepa.models.predictor",
    "PreparedSource": "tc_jepa.data.prepared",
    "RandomMasks": "tc_jepa.masking",
    "SceneSource": "tc_jepa.data.scenes",
    "UserError": "tc_jepa.errors",
    "VisionTransformer": "tc_jepa.models.vit",
    "train_step": "tc_jepa.step",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted(globals() | _EXPORTS)
