"""Text-conditional JEPA in JAX. Names are imported on first use, so that data workers need not load JAX's models."""

import importlib

_EXPORTS = {
    "AdaptiveNorm": "tc_jepa.models.conditioners.adaln",
    "BlockMasks": "tc_jepa.masking",
    "CaptionCrossAttention": "tc_jepa.models.conditioners.caption_cross_attention",
    "CrossAttentionForm": "tc_jepa.models.conditioners.word_cross_attention",
    "EmaEncoder": "tc_jepa.methods.targets",
    "EmbeddingText": "tc_jepa.models.text.embedding",
    "FrozenTarget": "tc_jepa.methods.targets",
    "InputFeature": "tc_jepa.models.conditioners.feature",
    "Jepa": "tc_jepa.methods.jepa",
    "JepaBatch": "tc_jepa.batch",
    "LeJepa": "tc_jepa.methods.lejepa",
    "load_encoder": "tc_jepa.pretrained.encoder",
    "load_text_encoder": "tc_jepa.pretrained.text",
    "Objective": "tc_jepa.methods.losses",
    "OfficialMasks": "tc_jepa.masking",
    "Pixels": "tc_jepa.methods.targets",
    "Predictor": "tc_jepa.models.predictor",
    "PreparedSource": "tc_jepa.data.prepared",
    "RandomMasks": "tc_jepa.masking",
    "SceneSource": "tc_jepa.data.scenes.source",
    "Supervised": "tc_jepa.methods.supervised",
    "T5Encoder": "tc_jepa.models.text.t5",
    "train_step": "tc_jepa.step",
    "UserError": "tc_jepa.errors",
    "VisionTransformer": "tc_jepa.models.vit",
    "WordCrossAttention": "tc_jepa.models.conditioners.word_cross_attention",
    "WordSequence": "tc_jepa.models.conditioners.sequence",
    "WordVectorInfo": "tc_jepa.data.word_vectors.folder",
    "write_word_vectors": "tc_jepa.data.word_vectors.write",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted(globals() | _EXPORTS)
