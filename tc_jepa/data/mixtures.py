"""Several datasets as one: every image once per epoch, or in exact ratios."""

import bisect
from collections.abc import Sequence
from fractions import Fraction
import itertools
import math
import sys

import grain
import numpy as np

from tc_jepa.data.sources import Captioned, Example
from tc_jepa.errors import UserError

LONGEST_PERIOD = 100_000


class Concatenation:
    """The images of all parts, one part after the other, as a sources.Captioned."""

    def __init__(self, parts: Sequence[Captioned]):
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


class Mixture(Concatenation):
    """Parts drawn in the ratio of `weights`, each reshuffled after its own epochs. UserError for an empty part."""

    def __init__(self, parts: Sequence[Captioned], weights: Sequence[float]):
        super().__init__(parts)
        for number, part in enumerate(parts, 1):
            if not len(part):
                raise UserError(f"dataset {number} of data.path has no training images; leave it out")
        self._schedule = Schedule(weights)

    def stream(self, seed: int) -> grain.MapDataset:
        """An endless stream of the images in training order."""
        seeds = np.random.SeedSequence(seed).generate_state(len(self.parts))
        shuffled = [
            grain.MapDataset.source(part).shuffle(seed=int(own)).repeat(None) for part, own in zip(self.parts, seeds)
        ]
        return grain.MapDataset.select_from_datasets(shuffled, self._schedule)


class Schedule(grain.transforms.DatasetSelectionMap):
    """Maps each position of the stream to a part and a position in that part's own stream.

    Among the first n positions, for any n, part i has its share n * weight_i / (sum of weights) rounded up or down.
    Grain's own mix rounds the weights, 7:3 to 233:100, and later parts of many fall behind by more than one.
    """

    def __init__(self, weights: Sequence[float]):
        whole = whole_weights(weights)
        period, counts = sum(whole), [0] * len(whole)
        self._counts, self._parts, self._places = whole, [], []
        # The k-th image of a part is due between the positions at which its share reaches k - 1 and k. Giving each
        # position to the part with the earliest deadline meets all (proportionate progress, Baruah et al. 1996).
        for position in range(period):
            ready = [i for i, weight in enumerate(whole) if counts[i] * period < (position + 1) * weight]
            chosen = min(ready, key=lambda i: -(-(counts[i] + 1) * period // whole[i]))
            self._parts.append(chosen)
            self._places.append(counts[chosen])
            counts[chosen] += 1

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        round_number, position = divmod(index, len(self._parts))
        part = self._parts[position]
        return part, round_number * self._counts[part] + self._places[position]


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the same ratio; 0.7 means seven tenths. Raises UserError if there are none."""
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError as error:
        raise UserError(f"data.weights={tuple(weights)} must be positive numbers") from error
    if min(exact) <= 0:
        raise UserError(f"data.weights={tuple(weights)} must be positive; to leave out a dataset, leave out its path")
    denominator = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * denominator) for weight in exact]
    divisor = math.gcd(*whole)
    if (total := sum(whole) // divisor) > LONGEST_PERIOD:
        in_whole = f"the sum {total} as whole numbers, more than {LONGEST_PERIOD}"
        raise UserError(f"data.weights={tuple(weights)} have {in_whole}; round them")
    return tuple(number // divisor for number in whole)
