"""Several augmented views of each image, for methods that compare them."""

import dataclasses

import grain
import numpy as np

from tc_jepa.batch import ViewBatch
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop


@dataclasses.dataclass(frozen=True)
class Views(grain.transforms.RandomMap):
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
        return self.crop.flipped(self.photometric.apply(self.crop.seen(example, rng).image, rng), rng)

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, int]) -> grain.MapDataset:
        """Examples -> rows. The draws are a function of (seeds[0], position in the stream)."""
        return examples.random_map(self, seed=seeds[0])

    def batched(self, batches: grain.MapDataset, batch_size: int, process_count: int) -> grain.MapDataset:
        return batches

    def warning(self, batch: ViewBatch) -> str:
        return ""

    def example(self, example: Example | Drawn) -> ViewBatch:
        """One row, for its shapes."""
        return self.random_map(example, np.random.default_rng(0))
