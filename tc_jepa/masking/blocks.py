"""`masking.kind=fixed`: I-JEPA's multi-block masks with three corrections, which V-JEPA 2 also made.

Blocks can contain every patch of the grid, scale and aspect are drawn independently, and each image draws its own
blocks, so that the statistics do not depend on the batch size or on workers.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math

import numpy as np

from tc_jepa.masking.masks import check_number, check_range, draw_block, Masks, pack, Range

TRIES = 20
# The ranges of a block sampler, and the largest value that each may have.
RANGES = {"target_scale": 1.0, "target_aspect": math.inf, "context_scale": 1.0, "context_aspect": math.inf}


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """Settings of the block samplers, on a (rows, columns) grid.

    Scales are fractions of the grid's area, aspects height / width, `context_tokens` K. UserError if out of range.
    """

    grid: tuple[int, int]
    target_blocks: int
    target_scale: Range
    target_aspect: Range
    context_scale: Range
    context_aspect: Range
    context_tokens: int
    min_context: int

    def __post_init__(self):
        for name, limit in RANGES.items():
            check_range(f"masking.{name}", getattr(self, name), limit)
        for name in ("target_blocks", "min_context"):
            check_number(f"masking.{name}", getattr(self, name), 1)


@dataclasses.dataclass(frozen=True)
class BlockMasks(BlockSettings):
    """Each image draws its own blocks: scale and aspect uniformly from their ranges, corners over the whole grid.

    A context of more than K patches loses some uniformly at random; `min_context` stay. UserError if they cannot.
    """

    def __post_init__(self):
        super().__post_init__()
        patches = math.prod(self.grid)
        why = f", masking.min_context and the patches of the {self.grid[0]} x {self.grid[1]} grid"
        check_number("masking.context_tokens", self.context_tokens, self.min_context, patches, why)
        left, fix = patches - self.target_tokens, "or lower masking.target_scale or model.patch_size"
        why = f", the patches that a target block of {self.target_tokens} leaves of {patches}; {fix}"
        check_number("masking.min_context", self.min_context, 1, left, why)

    @functools.cached_property
    def target_tokens(self) -> int:
        """T, the number of patches of the largest target block that can be drawn."""
        return max(math.prod(self._block_shape(self.target_scale[1], aspect)) for aspect in self._turning_aspects())

    def draw_at(self, seed: int, index: int) -> Masks:
        """See MaskSampler. It always ends: after TRIES draws it uses a fallback that is always valid."""
        rng = np.random.default_rng((seed, index))
        hidden = np.zeros(self.grid, bool)
        targets = []
        for _ in range(self.target_blocks):
            targets.append(self._draw_target(rng, hidden, targets))
            hidden |= targets[-1]
        context = np.flatnonzero(self._draw_context(rng, hidden))
        dropped = max(len(context) - self.context_tokens, 0)
        if dropped:
            context = np.sort(rng.choice(context, self.context_tokens, replace=False))
        blocks = [np.flatnonzero(target) for target in targets]
        return pack(context, blocks, self.context_tokens, self.target_tokens, dropped)

    def _draw_target(self, rng, hidden: np.ndarray, earlier: list[np.ndarray]) -> np.ndarray:
        """A block that leaves enough patches visible. The first always does; a later one may repeat the one before."""
        for _ in range(TRIES):
            block = self._draw_block(rng, self.target_scale, self.target_aspect)
            if np.count_nonzero(~(hidden | block)) >= self.min_context:
                return block
        return earlier[-1]

    def _draw_context(self, rng, hidden: np.ndarray) -> np.ndarray:
        for _ in range(TRIES):
            context = self._draw_block(rng, self.context_scale, self.context_aspect) & ~hidden
            if np.count_nonzero(context) >= self.min_context:
                return context
        return ~hidden

    def _draw_block(self, rng, scale: Range, aspect: Range) -> np.ndarray:
        return draw_block(rng, self.grid, self._block_shape(rng.uniform(*scale), rng.uniform(*aspect)))

    def _block_shape(self, scale: float, aspect: float) -> tuple[int, int]:
        """Rows and columns of a block, at least 1 and at most the grid's."""
        area = scale * math.prod(self.grid)
        sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
        return tuple(min(max(round(side), 1), limit) for side, limit in zip(sides, self.grid, strict=True))

    def _turning_aspects(self) -> Iterator[float]:
        """Aspects between which the largest block has one shape: the ends, and values around each rounding step."""
        low, high = self.target_aspect
        yield from (low, high)
        area = self.target_scale[1] * math.prod(self.grid)
        for i in range(max(self.grid)):
            for aspect in ((i + 0.5) ** 2 / area, area / (i + 0.5) ** 2):
                for beside in (aspect * (1 - 1e-9), aspect, aspect * (1 + 1e-9)):
                    if low <= beside <= high:
                        yield beside
