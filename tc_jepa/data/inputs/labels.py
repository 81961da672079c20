"""One crop of each image with its labels, for methods that learn from them."""

import dataclasses

import numpy as np

from tc_jepa.batch import LabelledBatch
from tc_jepa.data.inputs.row_by_row import RowByRow
from tc_jepa.data.sources import Drawn, Example
from tc_jepa.data.transforms import Crop


@dataclasses.dataclass(frozen=True)
class CropAndLabels(RowByRow):
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
