"""Inputs of a JEPA: one crop with its masks and captions."""

import dataclasses
import functools

import grain
import numpy as np

from tc_jepa.batch import JepaBatch, uncorrupted
from tc_jepa.data.captions import tokenizer
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop
from tc_jepa.errors import UserError
from tc_jepa.masking import MaskSampler
from tc_jepa.masking.official import OfficialMasks


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
        return JepaBatch(**row, **self.masks.draw_at(self.seed, index)._asdict(), **uncorrupted())


@dataclasses.dataclass(frozen=True)
class CorruptContext(grain.transforms.RandomMap):
    """A JepaBatch row -> the same with a corrupted copy of the image for the context encoder, and what was done to it.

    As in Image World Models (IWM, Garrido et al. 2024, arXiv 2403.00504): the target encoder sees the clean image.
    """

    photometric: Photometric

    def random_map(self, row: JepaBatch, rng: np.random.Generator) -> JepaBatch:
        image, done = self.photometric.apply(row.images, rng)
        return row._replace(context_images=image, corruption=done)


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
    """A pipeline.Inputs whose rows are those of a JepaBatch.

    With a `length_multiple` above 0, the context and target arrays of a batch are as long as its longest context and
    target block, rounded up to that multiple, and not always K and T long.
    """

    crop: CropAndCaptions
    masks: MaskSampler
    shuffle_captions: bool = False  # a control: images get their neighbours' captions, in the process's part of a batch
    noise: float = 0.0  # CaptionNoise.rate
    noise_seed: int = 0  # its draws are a function of this and the step
    length_multiple: int = 0
    corruption: Photometric | None = None  # of the images that the context encoder sees

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, ...]) -> grain.MapDataset:
        """The seeds are those of crops and captions, of masks, and of corruption: none changes another's draws."""
        rows = examples.random_map(self.crop, seed=seeds[0]).map_with_index(AddMasks(self.masks, seeds[1]))
        return rows if self.corruption is None else rows.random_map(CorruptContext(self.corruption), seed=seeds[2])

    def batched(self, batches: grain.MapDataset, batch_size: int, process_count: int) -> grain.MapDataset:
        """UserError where processes would cut their parts of a batch to different lengths."""
        if self.shuffle_captions:
            batches = batches.map(roll_captions)
        if self.noise:
            batches = batches.random_map(CaptionNoise(self.noise), seed=self.noise_seed)
        if not self.length_multiple:
            return batches
        if process_count > 1:
            self._check_groups(batch_size, process_count)
        return batches.map(functools.partial(cut_padding, multiple=self.length_multiple))

    def _check_groups(self, batch_size: int, process_count: int) -> None:
        group = self.masks.group_size if isinstance(self.masks, OfficialMasks) else 0
        if not group or batch_size % group or group % process_count:
            raise UserError(
                f"masking.length_multiple={self.length_multiple}: {process_count} processes would see different "
                "lengths; give 0, or masking.kind=official with a masking.group_size that the number of processes "
                "divides and that divides train.batch_size",
                about="masking.length_multiple",
            )

    def warning(self, batch: JepaBatch) -> str:
        if self.crop.reader is None or batch.caption_valid.any():
            return ""
        return "no image of the first batch has a caption: model.conditioner reads null captions"

    def example(self, example: Example | Drawn) -> JepaBatch:
        return self.row(example, 0, np.random.default_rng(0))

    def row(self, example: Example | Drawn, index: int, rng: np.random.Generator) -> JepaBatch:
        """One row outside a stream; all its draws but those of masks are from `rng`."""
        row = AddMasks(self.masks, 0).map_with_index(index, self.crop.random_map(example, rng))
        return row if self.corruption is None else CorruptContext(self.corruption).random_map(row, rng)


def cut_padding(batch: JepaBatch, multiple: int) -> JepaBatch:
    """A batch whose context and target arrays end with its longest ones, rounded up to a multiple."""

    def cut(indices: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = min(-(-int(valid.sum(axis=-1).max()) // multiple) * multiple, valid.shape[-1])
        return np.ascontiguousarray(indices[..., :length]), np.ascontiguousarray(valid[..., :length])

    context_indices, context_valid = cut(batch.context_indices, batch.context_valid)
    target_indices, target_valid = cut(batch.target_indices, batch.target_valid)
    return batch._replace(
        context_indices=context_indices,
        context_valid=context_valid,
        target_indices=target_indices,
        target_valid=target_valid,
    )


def roll_captions(batch: JepaBatch) -> JepaBatch:
    """Image i with the captions of image i - 1."""
    return _with_captions_of(batch, np.roll(np.arange(len(batch.images)), 1))


def _with_captions_of(batch: JepaBatch, source_B: np.ndarray) -> JepaBatch:
    """Image i with the captions of image source_B[i]."""
    names = ("caption_words", "word_valid", "caption_valid")
    return batch._replace(**{name: getattr(batch, name)[source_B] for name in names})
