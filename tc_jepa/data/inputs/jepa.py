"""Inputs of a JEPA: one crop with its masks and captions."""

import dataclasses

import grain
import numpy as np

from tc_jepa.batch import JepaBatch
from tc_jepa.data.captions import tokenizer
from tc_jepa.data.sources import Example
from tc_jepa.data.transforms import Crop
from tc_jepa.errors import UserError
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

    def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = self.crop.flipped(self.crop.cut(example.image, rng), rng)
        candidates = example.captions[: self.candidates or None]
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
class CaptionNoise(grain.transforms.RandomMap):
    """A JepaBatch of at least 2 images -> the same with wrong captions and missing words.

    With probability `rate`, an image gets all captions of another one, drawn from the process's part of the batch; and
    with the same probability a word of a caption is dropped, except its last one, the end of the sentence.
    """

    rate: float

    def random_map(self, batch: JepaBatch, rng: np.random.Generator) -> JepaBatch:
        here = np.arange(len(batch.images))
        if len(here) < 2:
            raise UserError(
                "captions.noise needs 2 images in each process; raise train.batch_size", about="captions.noise"
            )
        other = (here + rng.integers(1, len(here), len(here))) % len(here)
        batch = _with_captions_of(batch, np.where(rng.random(len(here)) < self.rate, other, here))
        valid = batch.word_valid
        last = valid & (valid.cumsum(axis=-1) == valid.sum(axis=-1, keepdims=True))
        return batch._replace(word_valid=valid & (last | (rng.random(valid.shape) >= self.rate)))


@dataclasses.dataclass(frozen=True)
class JepaInputs:
    """A pipeline.Inputs whose rows are those of a JepaBatch."""

    crop: CropAndCaptions
    masks: MaskSampler
    shuffle_captions: bool = False  # a control: images get their neighbours' captions, in the process's part of a batch
    noise: float = 0.0  # CaptionNoise.rate
    noise_seed: int = 0  # its draws are a function of this and the step

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, int]) -> grain.MapDataset:
        return examples.random_map(self.crop, seed=seeds[0]).map_with_index(AddMasks(self.masks, seeds[1]))

    def batched(self, batches: grain.MapDataset) -> grain.MapDataset:
        batches = batches.map(roll_captions) if self.shuffle_captions else batches
        return batches.random_map(CaptionNoise(self.noise), seed=self.noise_seed) if self.noise else batches

    def warning(self, batch: JepaBatch) -> str:
        if self.crop.reader is None or batch.caption_valid.any():
            return ""
        return "no image of the first batch has a caption: model.conditioner reads null captions"

    def example(self, example: Example) -> JepaBatch:
        return AddMasks(self.masks, 0).map_with_index(0, self.crop.random_map(example, np.random.default_rng(0)))


def roll_captions(batch: JepaBatch) -> JepaBatch:
    """Image i with the captions of image i - 1."""
    return _with_captions_of(batch, np.roll(np.arange(len(batch.images)), 1))


def _with_captions_of(batch: JepaBatch, source_B: np.ndarray) -> JepaBatch:
    """Image i with the captions of image source_B[i]."""
    names = ("caption_words", "word_valid", "caption_valid")
    return batch._replace(**{name: getattr(batch, name)[source_B] for name in names})
