"""Inputs of a JEPA: one crop with its masks and captions."""

import dataclasses

import grain
import numpy as np

from tc_jepa.batch import JepaBatch
from tc_jepa.data.captions import tokenizer
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop
from tc_jepa.masking import MaskSampler


@dataclasses.dataclass(frozen=True)
class CropAndCaptions(grain.transforms.RandomMap):
    """An example -> the image and caption fields of a JepaBatch row. Draws in a fixed order: crop, flip, captions.

    `captions` of the first `candidates` (0: of all) are sampled and read by `reader`; None: C = S = 0, the same crop.
    """

    crop: Crop
    reader: tokenizer.CaptionReader | None
    captions: int
    candidates: int = 0

    def random_map(self, example: Example | Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        seen = self.crop.seen(example, rng)
        image = self.crop.flipped(seen.image, rng)
        candidates = seen.captions[: self.candidates or None]
        words = tokenizer.caption_arrays(candidates, self.captions, self.reader, rng)
        return {"images": np.ascontiguousarray(image), **words}


@dataclasses.dataclass(frozen=True)
class AddMasks(grain.transforms.MapWithIndex):
    """A row without masks -> a JepaBatch row. The index must be the position in the global stream."""

    masks: MaskSampler
    seed: int

    def map_with_index(self, index: int, row: dict[str, np.ndarray]) -> JepaBatch:
        return JepaBatch(**row, **self.masks.draw_at(self.seed, index)._asdict())


@dataclasses.dataclass(frozen=True)
class JepaInputs:
    """A pipeline.Inputs whose rows are those of a JepaBatch."""

    crop: CropAndCaptions
    masks: MaskSampler
    shuffle_captions: bool = False  # a control: images get their neighbours' captions, in the process's part of a batch

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, int]) -> grain.MapDataset:
        return examples.random_map(self.crop, seed=seeds[0]).map_with_index(AddMasks(self.masks, seeds[1]))

    def batched(self, batches: grain.MapDataset) -> grain.MapDataset:
        return batches.map(roll_captions) if self.shuffle_captions else batches

    def warning(self, batch: JepaBatch) -> str:
        if self.crop.reader is None or batch.caption_valid.any():
            return ""
        return "no image of the first batch has a caption: model.conditioner reads null captions"

    def example(self, example: Example | Drawn) -> JepaBatch:
        return AddMasks(self.masks, 0).map_with_index(0, self.crop.random_map(example, np.random.default_rng(0)))


def roll_captions(batch: JepaBatch) -> JepaBatch:
    """Image i with the captions of image i - 1."""
    names = ("caption_words", "word_valid", "caption_valid")
    return batch._replace(**{name: np.roll(getattr(batch, name), 1, axis=0) for name in names})
