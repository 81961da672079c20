"""Several augmented views of each image, for methods that compare them."""

import dataclasses

import numpy as np

from tc_jepa.batch import ViewBatch
from tc_jepa.data.inputs.row_by_row import RowByRow
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop


@dataclasses.dataclass(frozen=True)
class Views(RowByRow):
    """`count` views of an example, drawn independently and alike: crop, colours, flip. Captions are not read.

    All views have one size, as in lejepa MINIMAL.md (the paper's larger runs use global and local views).
    """

    count: int
    crop: Crop
    photometric: Photometric

    def random_map(self, example: Example | Drawn, rng: np.random.Generator) -> ViewBatch:
        """One row of a batch: uint8 [V, size, size, 3]."""
        return ViewBatch(np.stack([self._view(example, rng) for _ in range(self.count)]))

    def _view(self, example: Example | Drawn, rng: np.random.Generator) -> np.ndarray:
        image, _ = self.photometric.apply(self.crop.seen(example, rng).image, rng)
        return self.crop.flipped(image, rng)
