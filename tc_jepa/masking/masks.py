"""The contract of mask samplers, and what they share.

XLA needs fixed shapes: masks have K context tokens and T tokens per target block, padded, with validity masks.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple, Protocol

import numpy as np

from tc_jepa.errors import UserError

Range = tuple[float, float]


class Masks(NamedTuple):
    """Row-major patch indices, ascending and padded with 0, and which of them are not padding."""

    context_indices: np.ndarray  # int32 [K]
    context_valid: np.ndarray  # bool [K]
    target_indices: np.ndarray  # int32 [M, T]
    target_valid: np.ndarray  # bool [M, T]
    context_dropped: np.int32  # [], number of context patches that did not fit into K


class MaskSampler(Protocol):
    """Draws masks for an endless stream of images. Implementations can be pickled and hold no state."""

    context_tokens: int  # K, the largest number of context patches of an image
    target_tokens: int  # T, the number of patches of the largest target block that can be drawn
    target_blocks: int  # M, the number of target blocks of an image

    def draw_at(self, seed: int, index: int) -> Masks:
        """The masks of image `index`, from 0, of the stream `seed`. A pure function of both, in any order of calls."""


def pack(
    context: np.ndarray, targets: Sequence[np.ndarray], context_tokens: int, target_tokens: int, dropped: int
) -> Masks:
    """Pads the patch indices of a context [at most K] and of M targets [at most T]."""
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


def draw_block(rng: np.random.Generator, grid: tuple[int, int], size: tuple[int, int], margin: int = 0) -> np.ndarray:
    """A block of `size` rows and columns anywhere but in the last `margin` rows and columns: bool [rows, columns]."""
    top, left = (rng.integers(side - length + 1 - margin) for side, length in zip(grid, size, strict=True))
    block = np.zeros(grid, bool)
    block[top : top + size[0], left : left + size[1]] = True
    return block


def check_range(name: str, value: Range, limit: float) -> None:
    """Raises UserError unless `value` is (low, high) with 0 < low <= high <= limit."""
    if len(value) != 2 or not 0 < value[0] <= value[1] <= limit:
        bound = "" if math.isinf(limit) else f" <= {limit:g}"
        raise UserError(f"{name}={tuple(value)} must be a range (low, high) with 0 < low <= high{bound}", about=name)


def check_number(name: str, value: int, least: int, most: float = math.inf, why: str = "") -> None:
    """Raises UserError unless least <= value <= most. `why` ends the message: where the two come from."""
    if not least <= value <= most:
        bounds = {least: f"be {least}", math.inf: f"be at least {least}"}.get(most, f"lie between {least} and {most}")
        raise UserError(f"{name}={value} must {bounds}{why}", about=name)
