"""The splits of the scenes that are drawn on the fly."""

import dataclasses
from typing import Any

from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import SCENES, TEST, TRAIN, VALIDATION

HELD_OUT_SCENES = 10_000  # each of validation and test; only those that are read are drawn


@dataclasses.dataclass(frozen=True)
class ScenesDataset:
    """Captioned scenes as a sources.Dataset. Nothing is stored: each scene is drawn when it is read.

    `size` is the side of the images in pixels, `seed` selects the scenes, `level` is one of scenes.scene.LEVELS.
    """

    size: int = 64
    train_scenes: int = 1_000_000
    seed: int = 0
    level: str = "standard"

    @property
    def name(self) -> str:
        return SCENES

    def splits(self) -> dict[str, int]:
        return {TRAIN: self.train_scenes, VALIDATION: HELD_OUT_SCENES, TEST: HELD_OUT_SCENES}

    def open(self, split: str) -> SceneSource:
        """Raises UserError for an unknown split or level, and for a size or number of scenes below 1."""
        return SceneSource(self.seed, split, self.splits().get(split, 1), self.size, self.level)

    def vocabulary_path(self) -> str:
        return scenes_vocabulary_path()

    def identity(self) -> dict[str, Any]:
        return {"name": SCENES} | dataclasses.asdict(self)
