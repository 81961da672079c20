"""What every sampler of masks gives, and what the samplers share.

XLA wants fixed shapes: K context tokens and T tokens per target block, padded, with validity masks.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple, Protocol

import numpy as np

from tc_jepa.errors import UserError

Range = tuple[float, float]


class Masks(NamedTuple):
    """Row-major patch indices, ascending, padded with 0, and which of them are real."""

    context_indices: np.ndarray  # int32 [K]
    context_valid: np.ndarray  # bool [K]
    target_indices: np.ndarray  # int32 [M, T]
    target_valid: np.ndarray  # bool [M, T]
    context_dropped: np.int32  # [], context patches that did not fit into K


class MaskSampler(Protocol):
    """Masks of an endless stream of images. Implementations pickle and hold no state."""

    @property
    def context_tokens(self) -> int:
        """K, the context patches of an image at most."""

    @property
    def target_tokens(self) -> int:
        """T, the patches of the largest target block that the settings can draw."""

    @property
    def target_blocks(self) -> int:
        """M."""

    def draw_at(self, seed: int, index: int) -> Masks:
        """The masks of image `index` (from 0) of the stream `seed`: a pure function of the two, in any order."""


def pack(
    context: np.ndarray, targets: Sequence[np.ndarray], context_tokens: int, target_tokens: int, dropped: int
) -> Masks:
    """Patch indices [at most K] and M times [at most T] -> Masks."""
    padded = [_pad(target, target_tokens) for target in targets]
    return Masks(
        *_pad(context, context_tokens),
        np.stack([indices for indices, _ in padded]),
        np.stack([valid for _, valid in padded]),
        np.int32(dropped),
    )


def _pad(indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.zeros(length, np.int32)
    padded[: len(indices)] = indices
    return padded, np.arange(length) < len(indices)


def check_range(name: str, value: Range, limit: float) -> None:
    """Raises UserError unless `value` is (low, high) with 0 < low <= high <= limit."""
    if len(value) != 2 or not 0 < value[0] <= value[1] <= limit:
        bound = "" if math.isinf(limit) else f" <= {limit:g}"
        raise UserError(f"{name}={tuple(value)} is no range (low, high) with 0 < low <= high{bound}")
