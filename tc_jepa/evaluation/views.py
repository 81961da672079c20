"""Random crops of images, as a source of images: for LiDAR, and for augmented train sets."""

from collections.abc import Sequence
import functools

import numpy as np

from tc_jepa.data.sources import Captioned, Example
from tc_jepa.data.transforms import Crop

SEED = 0
SCALE, ASPECT = (0.3, 1.0), (3 / 4, 4 / 3)  # of a crop, as I-JEPA pretrains


class Views:
    """`views` crops of each of some images, one image after the other, half of them flipped.

    A crop depends on its position alone, in whatever order crops are read. Its side is the image's shorter side.
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
