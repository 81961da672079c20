"""Text-conditional JEPA in JAX. Names are imported on first use, so that data workers need not load JAX's models."""

import importlib

_EXPORTS = {
    "AdaptiveNorm": "tc_jepa.models.compared_conditioners",
    "Batch": "tc_jepa.batch",
    "BlockMasks": "tc_jepa.masking",
    "CaptionCrossAttention": "tc_jepa.models.cross_attention",
    "CrossAttentionForm": "tc_jepa.models.cross_attention",
    "EmaEncoder": "tc_jepa.targets",
    "EmbeddingText": "tc_jepa.models.text",
    "FrozenEncoder": "tc_jepa.targets",
    "InputFeature": "tc_jepa.models.compared_conditioners",
    "Objective": "tc_jepa.objective",
    "OfficialMasks": "tc_jepa.masking",
    "Pixels": "tc_jepa.targets",
    "Predictor": "tc_jepa.models.predictor",
    "PreparedSource": "tc_jepa.data.prepared",
    "RandomMasks": "tc_jepa.masking",
    "SceneSource": "tc_jepa.data.scenes",
    "T5Encoder": "tc_jepa.models.t5",
    "UserError": "tc_jepa.errors",
    "VisionTransformer": "tc_jepa.models.vit",
    "WordCrossAttention": "tc_jepa.models.cross_attention",
    "WordsStamp": "tc_jepa.data.words",
    "WordSequence": "tc_jepa.models.compared_conditioners",
    "load_encoder": "tc_jepa.pretrained",
    "load_text_encoder": "tc_jepa.pretrained_text",
    "train_step": "tc_jepa.step",
    "write_words": "tc_jepa.data.write_words",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted(globals() | _EXPORTS)
