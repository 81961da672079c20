"""The table of pretraining methods: the values of method.name.

Each is a module of this package with build(config, words, backend, teacher) -> MethodParts, and with functions of the
configuration alone: check, reads_captions, averages_encoder, teacher_path, diagnostics.
"""

from types import ModuleType

import ml_collections

from tc_jepa.config import data, jepa, lejepa
from tc_jepa.data.word_vectors.folder import WordVectorFolder

METHODS: dict[str, ModuleType] = {
    "jepa": jepa,
    "lejepa": lejepa,
}


def word_folders(config: ml_collections.ConfigDict) -> list[WordVectorFolder]:
    """Returns the folders of stored word vectors that a run reads; none for a method that reads no captions."""
    return data.word_folders(config) if chosen(config).reads_captions(config) else []


def chosen(config: ml_collections.ConfigDict) -> ModuleType:
    """Returns the module of a configuration's method."""
    return METHODS[config.method.name if "method" in config else "jepa"]  # runs older than the key are JEPAs
