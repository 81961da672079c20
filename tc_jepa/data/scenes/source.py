"""Captioned scenes, drawn on the fly: coloured shapes on a textured background.

A scene is a pure function of (seed, split, index). Its geometry is stored in fractions of the image, so that a scene is
the same at every image size; pictures, labels, masks and captions are all computed from that geometry.
"""

import dataclasses
import operator
import random
from typing import Any, ClassVar

import numpy as np

from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.scenes import captions as scene_captions
from tc_jepa.data.scenes.drawing import draw, draw_instances, draw_mask
from tc_jepa.data.scenes.labels import label_sets, labels
from tc_jepa.data.scenes.layout import random_scene
from tc_jepa.data.scenes.questions import questions
from tc_jepa.data.scenes.scene import COLOURS, LEVELS, Scene, SHAPES
from tc_jepa.data.scenes.window import DrawnScene
from tc_jepa.data.sources import Example, LabelSet, Phrase, Question, SCENES, SPLITS, TEST, TRAIN, VALIDATION
from tc_jepa.errors import UserError

HELD_OUT_SCENES = 10_000  # each of validation and test; only those that are read are drawn


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """`count` scenes of one split as a sources.Source, drawn `size` pixels wide and high; nothing is stored.

    `level` is one of LEVELS. Raises UserError for an unknown split or level, or a count or size below 1.
    """

    seed: int
    split: str
    count: int
    size: int
    level: str = "standard"

    segmentations: ClassVar = {"shape": ("background", *SHAPES), "colour": ("background", *COLOURS)}
    has_questions: ClassVar = True

    def __post_init__(self):
        for kind, given, known in (("level", self.level, LEVELS), ("split", self.split, SPLITS)):
            if given not in known:
                raise UserError(f"scenes have no {kind} {given!r}: choose one of {', '.join(known)}")
        if self.count < 1 or self.size < 1:
            raise UserError(f"scenes need a count and a size of at least 1, not count={self.count}, size={self.size}")

    @property
    def tasks(self) -> dict[str, LabelSet]:
        return label_sets(LEVELS[self.level])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example | DrawnScene:
        """The scene as a picture with captions; of a level with windows, as it can be drawn."""
        scene, level = self.scene(index), LEVELS[self.level]
        if level.windows:
            return DrawnScene(scene, level, self.size, self._key(index, "captions"))
        return Example(draw(scene, self.size), scene_captions.captions(scene, self._rng(index, "captions")))

    def scene(self, index: int) -> Scene:
        """The geometry of scene `index`. Raises IndexError outside 0 <= index < len(self)."""
        return random_scene(self._rng(index, "scene"), LEVELS[self.level])

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """ "shape", "colour", "pair": bool [classes]; "count", "background": int, the class's index."""
        return labels(self.scene(index), LEVELS[self.level])

    def file(self, index: int) -> str:
        return f"{self.split}/{index}"

    def mask(self, index: int, name: str = "shape") -> np.ndarray:
        """uint8 [size, size] of class indices: 0 is background, 1 + the index in SHAPES or COLOURS elsewhere."""
        return draw_mask(self.scene(index), self.size, name)

    def phrases(self, index: int) -> list[Phrase]:
        """One for every shape and every colour that only one object has: "a red star", with that word."""
        scene = self.scene(index)
        instances = draw_instances(scene, self.size)
        phrases = []
        for kind in ("shape", "colour"):
            words = [getattr(item, kind) for item in scene.objects]
            for i, (item, word) in enumerate(zip(scene.objects, words)):
                if words.count(word) == 1:
                    phrases.append(Phrase(scene_captions.name_with_article(item), word, kind, instances == 1 + i))
        return phrases

    def objects_mask(self, index: int) -> np.ndarray:
        """bool [size, size]: where any object is visible."""
        return draw_instances(self.scene(index), self.size) > 0

    def questions(self, index: int) -> list[Question]:
        return questions(self.scene(index))

    def _rng(self, index: int, purpose: str) -> random.Random:
        # Python's generator: a scene takes some hundred single draws, each several times slower with NumPy's.
        # The string is hashed (SHA-512), so no two splits, indices or purposes share a stream.
        return random.Random(self._key(index, purpose))

    def _key(self, index: int, purpose: str) -> str:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return f"{self.seed} {self.split} {operator.index(index)} {purpose}"


@dataclasses.dataclass(frozen=True)
class ScenesDataset:
    """Captioned scenes as a sources.Dataset. Nothing is stored: each scene is drawn when it is read."""

    size: int = 64  # side of the images in pixels
    train_scenes: int = 1_000_000
    seed: int = 0  # selects the scenes
    level: str = "standard"  # one of LEVELS
    name: ClassVar[str] = SCENES

    def splits(self) -> dict[str, int]:
        return {TRAIN: self.train_scenes, VALIDATION: HELD_OUT_SCENES, TEST: HELD_OUT_SCENES}

    def open(self, split: str) -> SceneSource:
        """Raises UserError for an unknown split or level, and for a size or number of scenes below 1."""
        return SceneSource(self.seed, split, self.splits().get(split, 1), self.size, self.level)

    def vocabulary_path(self) -> str:
        return scenes_vocabulary_path()

    def identity(self) -> dict[str, Any]:
        return {"name": SCENES} | dataclasses.asdict(self)
