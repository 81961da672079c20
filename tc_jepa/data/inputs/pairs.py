"""One crop of each image with one of its captions, for contrastive methods."""

import dataclasses

import numpy as np

from tc_jepa.batch import PairBatch
from tc_jepa.data.captions import tokenizer
from tc_jepa.data.inputs.row_by_row import RowByRow
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop


@dataclasses.dataclass(frozen=True)
class CropAndCaption(RowByRow):
    """A random crop of an example, and one of its first `candidates` captions (0: of all).

    Draws in a fixed order: crop, flip, caption.
    """

    crop: Crop
    reader: tokenizer.CaptionTokenizer
    candidates: int = 0

    def random_map(self, example: Example | Drawn, rng: np.random.Generator) -> PairBatch:
        """One row of a batch."""
        seen = self.crop.seen(example, rng)
        image = self.crop.flipped(seen.image, rng)
        found = tokenizer.caption_arrays(seen.captions[: self.candidates or None], 1, self.reader, rng)
        words, valid, (there,) = found["caption_words"][0], found["word_valid"][0], found["caption_valid"]
        return PairBatch(np.ascontiguousarray(image), words, valid, np.asarray(there))

    def warning(self, batch: PairBatch) -> str:
        return "" if batch.caption_valid.any() else "no image of the first batch has a caption: nothing is learned"
