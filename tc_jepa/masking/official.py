"""`masking.kind=official`: masks as I-JEPA's released code draws them, with all its properties.

References are to src/masks/multiblock.py of facebookresearch/ijepa at 52c1ae95. Two things differ. A group of
`group_size` consecutive images of the stream takes the place of a GPU's batch, and has one random generator in place of
the released code's counter and workers' generators, so masks do not depend on hosts or workers. Masks are padded.
"""

import dataclasses
import functools
import math

import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.masking.blocks import BlockSettings
from tc_jepa.masking.masks import check_number, draw_block, Masks, pack, Range

Size = tuple[int, int]
MARGIN = 1  # the last row and column, which blocks never contain (:89-90)
TRIES = 20  # to draw a context block, before it may overlap one more target (:77-104)
# Number of drawn groups that a process caches, about 50 kB each. The images of a group are read close together, so a
# few groups per thread that reads batches (data/pipeline.py) would be enough.
GROUPS_KEPT = 64


@dataclasses.dataclass(frozen=True)
class OfficialMasks(BlockSettings):
    """Groups of `group_size` consecutive images share the size of target blocks and the size of context blocks.

    All contexts of a group are cut to the length of the shortest one, from the bottom of the image. Blocks never
    contain the last row and column. Target blocks and contexts have strictly more than `min_context` patches before the
    cut; a context that has fewer after 20 tries may overlap the last target, after 20 more the last two, and so on. A
    context that is then longer than K is cut from the bottom too, which counts as dropped. Raises UserError for
    settings with which the released code never returns.
    """

    group_size: int

    def __post_init__(self):
        super().__post_init__()
        check_number("masking.group_size", self.group_size, 1)
        for name in ("target", "context"):
            height, width = min(self._possible_sizes(name), key=math.prod)
            if height * width <= self.min_context:
                raise UserError(
                    f"masking.kind=official would never end: a {name} block may be {height} x {width} patches of the "
                    f"{self.grid[0]} x {self.grid[1]} grid, not more than masking.min_context={self.min_context}; "
                    f"lower that or model.patch_size, raise masking.{name}_scale, or use masking.kind=fixed",
                    about=f"masking.{name}_scale",
                )
        grid = f"the patches of the {self.grid[0]} x {self.grid[1]} grid"
        why = f", masking.min_context + 1 (masking.kind=official) and {grid}"
        check_number("masking.context_tokens", self.context_tokens, self.min_context + 1, math.prod(self.grid), why)

    @functools.cached_property
    def target_tokens(self) -> int:
        """T, the number of patches of the largest target block that can be drawn."""
        return max(math.prod(size) for size in self._possible_sizes("target"))

    def draw_at(self, seed: int, index: int) -> Masks:
        """See MaskSampler. Every process that reads an image of a group draws the whole group."""
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
    """The masks of a group's images (:125-170). They are cached: copy them, never write to them."""
    rng = np.random.default_rng((seed, group))
    target_size = _block_size(settings.grid, *settings._ranges("target"), rng.random())
    context_size = _block_size(settings.grid, *settings._ranges("context"), rng.random())
    targets, contexts = [], []
    for _ in range(settings.group_size):
        blocks = [draw_block(rng, settings.grid, target_size, MARGIN) for _ in range(settings.target_blocks)]
        contexts.append(np.flatnonzero(_draw_context(rng, settings, context_size, blocks)))
        targets.append([np.flatnonzero(block) for block in blocks])
    shortest = min(len(context) for context in contexts)
    kept = min(shortest, settings.context_tokens)
    return [
        pack(context[:kept], blocks, settings.context_tokens, settings.target_tokens, dropped=shortest - kept)
        for context, blocks in zip(contexts, targets)
    ]


def _draw_context(rng, settings: OfficialMasks, size: Size, targets: list[np.ndarray]) -> np.ndarray:
    """A block minus all targets; after TRIES that left too few patches, minus all but the last, and so on (:77-104)."""
    for respected in range(len(targets), 0, -1):
        hidden = np.any(targets[:respected], axis=0)
        for _ in range(TRIES):
            context = draw_block(rng, settings.grid, size, MARGIN) & ~hidden
            if np.count_nonzero(context) > settings.min_context:
                return context
    return draw_block(
        rng, settings.grid, size, MARGIN
    )  # a whole block is large enough, see OfficialMasks.__post_init__


def _block_size(grid: Size, scale: Range, aspect: Range, draw: float) -> Size:
    """Rows and columns for one draw in [0, 1] (:56-70). Small blocks are wide, large ones tall. None spans the grid."""
    area = int(math.prod(grid) * _between(scale, draw))
    ratio = _between(aspect, draw)
    return min(round(math.sqrt(area * ratio)), grid[0] - 1), min(round(math.sqrt(area / ratio)), grid[1] - 1)


def _between(bounds: Range, draw: float) -> float:
    return bounds[0] + draw * (bounds[1] - bounds[0])


def _turning_draws(grid: Size, scale: Range, aspect: Range) -> set[float]:
    """Draws at which the integer area or a rounded side may change."""
    patches = math.prod(grid)
    areas = range(max(int(patches * scale[0]), 1), int(patches * scale[1]) + 2)
    turning = {_draw_of(scale, area / patches) for area in areas}
    for area in areas:
        for side in range(max(grid)):
            turning |= {_draw_of(aspect, (side + 0.5) ** 2 / area), _draw_of(aspect, area / (side + 0.5) ** 2)}
    return {draw for draw in turning if 0 < draw < 1}


def _draw_of(bounds: Range, value: float) -> float:
    """The inverse of `_between`; 0 if all draws give the same value."""
    low, high = bounds
    return (value - low) / (high - low) if high > low else 0.0
