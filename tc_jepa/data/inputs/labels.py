"""One crop of each image with its labels, for methods that learn from them."""

import dataclasses

import grain
import numpy as np

from tc_jepa.batch import LabelledBatch
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop


@dataclasses.dataclass(frozen=True)
class CropAndLabels(grain.transforms.RandomMap):
    """A random crop of an example, and its labels of `tasks`. Examples are those of a sources.Labelled."""

    crop: Crop
    tasks: tuple[str, ...]

    def random_map(self, example: Example | Drawn, rng: np.random.Generator) -> LabelledBatch:
        """One row of a batch. Labels are int32 scalars, or bool [classes]."""
        seen = self.crop.seen(example, rng)
        image, found = self.crop.flipped(seen.image, rng), seen.labels
        labels = {name: found[name] for name in self.tasks}
        arrays = {name: np.asarray(x, bool if isinstance(x, np.ndarray) else np.int32) for name, x in labels.items()}
        return LabelledBatch(np.ascontiguousarray(image), arrays)

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, int]) -> grain.MapDataset:
        """Examples -> rows. The draws are a function of (seeds[0], position in the stream)."""
        return examples.random_map(self, seed=seeds[0])

    def batched(self, batches: grain.MapDataset, batch_size: int, process_count: int) -> grain.MapDataset:
        return batches

    def warning(self, batch: LabelledBatch) -> str:
        return ""

    def example(self, example: Example | Drawn) -> LabelledBatch:
        """One row, for its shapes."""
        return self.random_map(example, np.random.default_rng(0))
