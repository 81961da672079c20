"""`masking.kind=random`: I-JEPA's alternative, which hides single patches (ijepa src/masks/random.py)."""

import dataclasses
import math

import numpy as np

from tc_jepa.masking.masks import check_number, check_range, Masks, pack, Range


@dataclasses.dataclass(frozen=True)
class RandomMasks:
    """Hides a share of the patches uniformly at random: they are the one target block, all others the context.

    Each image draws the share uniformly from `ratio` (the released code draws one per batch, to have one length). A
    context of more than K patches loses patches uniformly at random. UserError if the settings cannot be satisfied.
    """

    grid: tuple[int, int]
    target_blocks: int
    ratio: Range
    context_tokens: int
    min_context: int

    def __post_init__(self):
        check_range("masking.ratio", self.ratio, 1.0)
        one = ": masking.kind=random predicts all hidden patches as one block"
        check_number("masking.target_blocks", self.target_blocks, 1, 1, one)
        least, most = self._visible(1.0), self._visible(0.0)
        visible = f"the patches that masking.ratio={self.ratio} leaves of the {self.grid[0]} x {self.grid[1]} grid at"
        check_number("masking.min_context", self.min_context, 1, least, f", {visible} least")
        why = f", masking.min_context and {visible} most"
        check_number("masking.context_tokens", self.context_tokens, self.min_context, most, why)

    @property
    def target_tokens(self) -> int:
        """T, the largest number of patches that are hidden."""
        return math.prod(self.grid) - self._visible(1.0)

    def draw_at(self, seed: int, index: int) -> Masks:
        """See MaskSampler."""
        rng = np.random.default_rng((seed, index))
        visible = self._visible(rng.random())
        order = rng.permutation(math.prod(self.grid))
        kept = min(visible, self.context_tokens)
        context, target = np.sort(order[:kept]), np.sort(order[visible:])
        return pack(context, [target], self.context_tokens, self.target_tokens, dropped=visible - kept)

    def _visible(self, draw: float) -> int:
        """Number of visible patches for a draw in [0, 1], which chooses the hidden share from `ratio`."""
        low, high = self.ratio
        return int(math.prod(self.grid) * (1.0 - (low + draw * (high - low))))
