"""`masking.kind=official`: masks as the released I-JEPA draws them, with everything that it does.

References are to src/masks/multiblock.py of facebookresearch/ijepa at 52c1ae95. What differs: `group_size` consecutive
images of the stream stand for a GPU's batch, and one generator a group for its counter and its workers' generators, so
that masks depend on neither hosts nor workers; and masks are padded to fixed shapes.
"""

import dataclasses
import functools
import math

import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.masking.blocks import BlockSettings
from tc_jepa.masking.masks import Masks, pack, Range

Size = tuple[int, int]
TRIES = 20  # at a context block, before one target more may be overlapped (:77-104)
# Drawn groups that a process keeps, some 50 kB each. The images of a group are read close together, so a few for each
# thread that reads batches (data/pipeline.py) would do.
GROUPS_KEPT = 64


@dataclasses.dataclass(frozen=True)
class OfficialMasks(BlockSettings):
    """Groups of `group_size` consecutive images share one size of target blocks and one of context blocks, and their
    contexts are all cut to the shortest one's length, from the bottom of the image.

    Blocks never reach the last row and column. Target blocks and contexts have strictly more than `min_context` patches
    before the cut; a context without so many after 20 tries may overlap the last target, after 20 more the last two,
    and so on. What is still longer than K is cut from the bottom too, and counted. Raises UserError for settings with
    which the released code never returns.
    """

    group_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.group_size < 1:
            raise UserError(f"masking.group_size={self.group_size} must be at least 1")
        for name in ("target", "context"):
            height, width = min(self._possible_sizes(name), key=math.prod)
            if height * width <= self.min_context:
                raise UserError(
                    f"masking.kind=official would search for ever: a {name} block may be {height} x {width} patches of "
                    f"the {self.grid[0]} x {self.grid[1]} grid, not more than masking.min_context={self.min_context}; "
                    f"lower that or model.patch_size, raise masking.{name}_scale, or take masking.kind=fixed"
                )
        patches = math.prod(self.grid)
        if not self.min_context < self.context_tokens <= patches:
            raise UserError(
                f"masking.context_tokens={self.context_tokens} must be more than masking.min_context="
                f"{self.min_context} (masking.kind=official) and at most the {patches} patches of the "
                f"{self.grid[0]} x {self.grid[1]} grid"
            )

    @functools.cached_property
    def target_tokens(self) -> int:
        """T, the patches of the largest target block that the settings can draw."""
        return max(math.prod(size) for size in self._possible_sizes("target"))

    def draw_at(self, seed: int, index: int) -> Masks:
        """See MaskSampler. A group is drawn as a whole, by every process that reads an image of it."""
        group, member = divmod(index, self.group_size)
        return Masks(*(array.copy() for array in _draw_group(self, seed, group)[member]))

    def _possible_sizes(self, name: str) -> set[Size]:
        scale, aspect = self._ranges(name)
        draws = sorted({0.0, 1.0, *_turning_draws(self.grid, scale, aspect)})
        between = [(one + other) / 2 for one, other in zip(draws, draws[1:])]
        return {_block_size(self.grid, scale, aspect, draw) for draw in draws + between}

    def _ranges(self, name: str) -> tuple[Range, Range]:
        return getattr(self, f"{name}_scale"), getattr(self, f"{name}_aspect")


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _draw_group(settings: OfficialMasks, seed: int, group: int) -> list[Masks]:
    """The masks of a group's images (:125-170). They are shared: copy, never write."""
    rng = np.random.default_rng((seed, group))
    target_size = _block_size(settings.grid, *settings._ranges("target"), rng.random())
    context_size = _block_size(settings.grid, *settings._ranges("context"), rng.random())
    targets, contexts = [], []
    for _ in range(settings.group_size):
        blocks = [_draw_block(rng, settings.grid, target_size) for _ in range(settings.target_blocks)]
        contexts.append(np.flatnonzero(_draw_context(rng, settings, context_size, blocks)))
        targets.append([np.flatnonzero(block) for block in blocks])
    shortest = min(len(context) for context in contexts)
    kept = min(shortest, settings.context_tokens)
    return [
        pack(context[:kept], blocks, settings.context_tokens, settings.target_tokens, dropped=shortest - kept)
        for context, blocks in zip(contexts, targets)
    ]


def _draw_context(rng, settings: OfficialMasks, size: Size, targets: list[np.ndarray]) -> np.ndarray:
    """A block without the targets; after TRIES that left too little, without all but the last, and so on (:77-104)."""
    for respected in range(len(targets), 0, -1):
        hidden = np.any(targets[:respected], axis=0)
        for _ in range(TRIES):
            context = _draw_block(rng, settings.grid, size) & ~hidden
            if np.count_nonzero(context) > settings.min_context:
                return context
    return _draw_block(rng, settings.grid, size)  # a whole block is large enough: see OfficialMasks.__post_init__


def _draw_block(rng, grid: Size, size: Size) -> np.ndarray:
    """bool [rows, columns]. The corner's bound excludes the last row and column (:89-90)."""
    (height, width) = size
    top, left = rng.integers(grid[0] - height), rng.integers(grid[1] - width)
    block = np.zeros(grid, bool)
    block[top : top + height, left : left + width] = True
    return block


def _block_size(grid: Size, scale: Range, aspect: Range, draw: float) -> Size:
    """Rows and columns from one draw in [0, 1] for both scale and aspect (:56-70): small blocks are wide, large ones
    tall, and none spans the grid."""
    area = int(math.prod(grid) * _between(scale, draw))
    ratio = _between(aspect, draw)
    return min(round(math.sqrt(area * ratio)), grid[0] - 1), min(round(math.sqrt(area / ratio)), grid[1] - 1)


def _between(bounds: Range, draw: float) -> float:
    return bounds[0] + draw * (bounds[1] - bounds[0])


def _turning_draws(grid: Size, scale: Range, aspect: Range) -> set[float]:
    """Draws at which the whole area or a rounded side may change."""
    patches = math.prod(grid)
    areas = range(max(int(patches * scale[0]), 1), int(patches * scale[1]) + 2)
    turning = {_draw_of(scale, area / patches) for area in areas}
    for area in areas:
        for side in range(max(grid)):
            turning |= {_draw_of(aspect, (side + 0.5) ** 2 / area), _draw_of(aspect, area / (side + 0.5) ** 2)}
    return {draw for draw in turning if 0 < draw < 1}


def _draw_of(bounds: Range, value: float) -> float:
    """The draw that `_between` turns into `value`; 0 where all draws give the same."""
    low, high = bounds
    return (value - low) / (high - low) if high > low else 0.0
