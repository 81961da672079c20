"""What inputs share that draw each row of a batch from its own example, and leave batches as they are."""

import grain
import numpy as np

from tc_jepa.data.pipeline import Batch
from tc_jepa.data.sources import Drawn, Example


class RowByRow(grain.transforms.RandomMap):
    """A pipeline.Inputs. Subclasses have random_map(example, rng), which returns one row."""

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, ...]) -> grain.MapDataset:
        """Examples -> rows. The draws are a function of (seeds[0], position in the stream)."""
        return examples.random_map(self, seed=seeds[0])

    def batched(self, batches: grain.MapDataset, batch_size: int, process_count: int) -> grain.MapDataset:
        return batches

    def warning(self, batch: Batch) -> str:
        return ""

    def example(self, example: Example | Drawn) -> Batch:
        """One row, for its shapes."""
        return self.random_map(example, np.random.default_rng(0))
