"""The conditioner "feature": captions are added to the predictor's input (paper Fig. 4, Appendix A)."""

import flax.linen as nn
import jax.numpy as jnp

from tc_jepa.models.conditioners.base import Conditioner, Tokens, Words
from tc_jepa.models.conditioners.fusion import FUSION_RULES, FUSIONS
from tc_jepa.models.layers import layer_norm, Mlp


class InputFeature(Conditioner):
    """The predictor's input z becomes z + MLP(LN([z, caption])), fused over captions.

    A caption is the mean of its valid word vectors; the null caption of an image without captions has mean 0. The MLP
    has the predictor's width. It acts on context and mask tokens alike; the latter already contain their position.
    """

    keys = ("fusion",)
    weight_decay_rules = FUSION_RULES
    reads_words = True

    fusion: str = "max"

    @nn.compact
    def condition_input(self, tokens: Tokens, words: Words) -> Tokens:
        x_BxMxLxP = tokens.values_BxMxLxP
        B, M, L, P = x_BxMxLxP.shape
        C = words.caption_valid_BxC.shape[1]
        mean_BxCxE = words.averaged().vectors_BxCxSxE[:, :, 0]
        E = mean_BxCxE.shape[-1]
        pair = jnp.concatenate(
            [
                jnp.broadcast_to(x_BxMxLxP[..., None, :], (B, M, L, C, P)),
                jnp.broadcast_to(mean_BxCxE[:, None, None], (B, M, L, C, E)),
            ],
            axis=-1,
        )
        change = Mlp(P, P, self.linear, self.linear, name="mlp")(layer_norm("norm")(pair))
        fuse = FUSIONS[self.fusion](self.linear, name="fusion")
        return tokens.replace(values_BxMxLxP=fuse(x_BxMxLxP[..., None, :] + change, words.fused_BxC))
