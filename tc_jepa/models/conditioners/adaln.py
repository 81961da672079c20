"""The conditioner "adaln": captions modulate the predictor's LayerNorms (paper Fig. 4, Appendix A)."""

import flax.linen as nn
import jax.numpy as jnp

from tc_jepa.models.conditioners.base import BlockFunction, Conditioner, Reading, Tokens, Words
from tc_jepa.models.conditioners.fusion import FUSION_RULES, FUSIONS
from tc_jepa.models.layers import Modulation


class AdaptiveNorm(Conditioner):
    """Each caption scales and shifts both LayerNorms of every block; the blocks' outputs are fused over captions.

    A caption is the mean of its valid word vectors; the null caption of an image without captions has mean 0. A block
    runs once per caption, because its input differs: C times the cost of I-JEPA's predictor.
    """

    keys = ("fusion",)
    weight_decay_rules = FUSION_RULES
    reads_words = True

    fusion: str = "max"

    @nn.compact
    def condition_layer(
        self, index: int, block: BlockFunction, tokens: Tokens, words: Words
    ) -> tuple[Tokens, Reading | None]:
        B, M, L, P = tokens.values_BxMxLxP.shape
        C = words.caption_valid_BxC.shape[1]
        mean_BxCxE = words.averaged().vectors_BxCxSxE[:, :, 0]
        modulation = self.linear(4 * P, f"modulation_{index}")(nn.silu(mean_BxCxE))

        def for_each_caption(x):  # [B, M, ...] -> [B, M * C, ...]
            return jnp.repeat(x, C, axis=1)

        sequences = Tokens(for_each_caption(tokens.values_BxMxLxP), for_each_caption(tokens.valid_BxMxL))
        modulation = jnp.tile(modulation[:, :, None], (1, M, 1, 1))  # [B, M * C, 1, 4 P], captions fastest as above
        outputs = block(sequences, Modulation(*jnp.split(modulation, 4, axis=-1))).values_BxMxLxP
        h_BxMxLxCxP = outputs.reshape(B, M, C, L, P).swapaxes(2, 3)
        fused = FUSIONS[self.fusion](self.linear, name=f"fusion_{index}")(h_BxMxLxCxP, words.fused_BxC)
        return tokens.replace(values_BxMxLxP=fused), None
