"""The table of pretraining methods: the values of method.name.

Each is a module of this package with build(config, words, backend, teacher) -> MethodParts, and with functions of the
configuration alone: check, reads_captions, reads_labels, averages_encoder, teacher_path, diagnostics.
"""

from collections.abc import Sequence
from types import ModuleType

import ml_collections

from tc_jepa.config import contrastive, data, jepa, lejepa, supervised
from tc_jepa.data.sources import Captioned, Labelled
from tc_jepa.data.word_vectors.folder import WordVectorFolder

METHODS: dict[str, ModuleType] = {
    "jepa": jepa,
    "lejepa": lejepa,
    "contrastive": contrastive,
    "supervised": supervised,
}


def word_folders(config: ml_collections.ConfigDict) -> list[WordVectorFolder]:
    """Returns the folders of stored word vectors that a run reads; none for a method that reads no captions."""
    return data.word_folders(config) if chosen(config).reads_captions(config) else []


def training_source(
    config: ml_collections.ConfigDict, words: Sequence[WordVectorFolder] = (), encoded: bool | None = None
) -> Captioned:
    """Returns what a run is trained on, with labels where its method learns from them; see data.training_source."""
    return _as_read(config, data.training_source(config, words, encoded))


def held_out_source(config: ml_collections.ConfigDict, words: Sequence[WordVectorFolder] = ()) -> Captioned:
    """Returns what the monitor looks at, with labels where the method reads them; see data.held_out_source."""
    return _as_read(config, data.held_out_source(config, words))


def _as_read(config: ml_collections.ConfigDict, source: Captioned) -> Captioned:
    return Labelled(source) if chosen(config).reads_labels(config) else source


def chosen(config: ml_collections.ConfigDict) -> ModuleType:
    """Returns the module of a configuration's method."""
    return METHODS[config.method.name if "method" in config else "jepa"]  # runs older than the key are JEPAs
