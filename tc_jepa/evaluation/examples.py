"""Some examples of a split, with everything that a task reads of them beside features; random crops of images."""

from collections.abc import Sequence
import functools

import numpy as np

from tc_jepa.data.images import IGNORED
from tc_jepa.data.sources import Captioned, Example, Source
from tc_jepa.data.transforms import Crop, resize_mask
from tc_jepa.errors import UserError
from tc_jepa.evaluation.scores import resample_counts, Truth

SEED = 0
VALIDATION_STRIDE = 5  # every fifth train example chooses between settings
SCALE, ASPECT = (0.3, 1.0), (3 / 4, 4 / 3)  # of a view, as I-JEPA pretrains


class Examples:
    """Chosen examples of a source. Labels and masks are read once, at their first use; no image is read for them."""

    def __init__(self, source: Source, rows: np.ndarray):
        self.source, self.rows = source, rows  # rows: int [n], indices into the source
        self.masks = functools.cache(self._masks)
        self.square_masks = functools.cache(self._square_masks)

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def truth(self) -> dict[str, Truth]:
        """The labels, by label set."""
        labels = [self.source.labels(int(row)) for row in self.rows]
        truth = {}
        for name, task in self.source.tasks.items():
            column = np.array([row[name] for row in labels])
            if task.kind == "single":
                column = np.eye(len(task.classes), dtype=bool)[column]
            truth[name] = Truth(task.kind, column)
        return truth

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Bootstrap resamples of these examples, as scores.resample_counts draws them: float32 [n, R]."""
        return resample_counts(len(self))

    def _masks(self, name: str) -> list[np.ndarray]:
        """One of the source's segmentations, uint8 [H, W] each, at the images' own sizes."""
        return [self.source.mask(int(row), name) for row in self.rows]

    def _square_masks(self, name: str, side: int) -> np.ndarray:
        """The same, each stretched to a square: uint8 [n, side, side]."""
        return np.stack([resize_mask(self.source.mask(int(row), name), (side, side)) for row in self.rows])

    def highest_class(self, name: str) -> int:
        """The highest class index in the masks of a segmentation."""
        masks = (self.source.mask(int(row), name) for row in self.rows)
        return max(int(mask[mask != IGNORED].max(initial=0)) for mask in masks)


def choose(available: int, at_most: int) -> np.ndarray:
    """A fixed random subset, so that data sorted by class is sampled evenly: int [<= at_most], ascending."""
    order = np.random.default_rng(SEED).permutation(available)
    return np.sort(order[:at_most])


def any_captions(source: Source, at_most: int) -> bool:
    """Whether any of the examples that `choose` takes has a caption."""
    return any(source[int(row)].captions for row in choose(len(source), at_most))


def any_questions(source: Source, at_most: int) -> bool:
    """Whether there is a question about any of them."""
    return source.has_questions and any(source.questions(int(row)) for row in choose(len(source), at_most))


def validation_examples(task: str, count: int) -> np.ndarray:
    """bool [count]: every fifth train example, which chooses between settings that are fitted on the others.

    Raises UserError, with the task's name, where there are too few train examples.
    """
    if count <= VALIDATION_STRIDE:
        raise UserError(f"{task} has only {count} train examples; give it more than {VALIDATION_STRIDE}")
    return np.arange(count) % VALIDATION_STRIDE == 0


class Views:
    """`views` crops of each of some images, one image after the other, half of them flipped.

    For LiDAR, and for augmented train sets. A crop depends on its position alone, in whatever order crops are read. Its
    side is the image's shorter side.
    """

    def __init__(self, source: Captioned, images: Sequence[int], views: int):
        self._images, self._views = images, views
        # Views of an image are read one after another, so that it is decoded once.
        self._image = functools.lru_cache(maxsize=4)(lambda index: source[index].image)

    def __len__(self) -> int:
        return len(self._images) * self._views

    def __getitem__(self, position: int) -> Example:
        image = self._image(int(self._images[position // self._views]))
        rng = np.random.default_rng((SEED, position))
        view = Crop(min(image.shape[:2]), SCALE, ASPECT, flip=False).cut(image, rng)
        return Example(view[:, ::-1] if rng.random() < 0.5 else view, ())
