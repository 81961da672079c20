"""The conditioners that the paper compares its own with (Fig. 4, Appendix A). None feeds the regularisers.

The mean of a caption's valid word vectors stands for the caption in two of them; an image without captions has one
null caption, whose mean is 0.
"""

import flax.linen as nn
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.conditioners import fusion
from tc_jepa.models.conditioners.base import Block, Conditioner, Reading, Tokens, Words


class AdaptiveNorm(Conditioner):
    """A caption scales and shifts both LayerNorms of every block; the blocks' outputs are fused over captions.

    Each block runs once per caption, as its input differs: C times the cost of I-JEPA's predictor.
    """

    linear: layers.Linear
    fusion: type[nn.Module] = fusion.MaxPool

    @nn.compact
    def layer(self, index: int, block: Block, tokens: Tokens, words: Words) -> tuple[Tokens, Reading | None]:
        B, M, L, P = tokens.values_BxMxLxP.shape
        C = words.caption_valid_BxC.shape[1]
        mean_BxCxE = words.averaged().vectors_BxCxSxE[:, :, 0]
        knobs = self.linear(4 * P, f"modulation_{index}")(nn.silu(mean_BxCxE))

        def for_each_caption(x):  # [B, M, ...] -> [B, M * C, ...]
            return jnp.repeat(x, C, axis=1)

        sequences = Tokens(for_each_caption(tokens.values_BxMxLxP), for_each_caption(tokens.valid_BxMxL))
        knobs = jnp.tile(knobs[:, :, None], (1, M, 1, 1))  # [B, M * C, 1, 4 P], captions fastest as above
        outputs = block(sequences, layers.Modulation(*jnp.split(knobs, 4, axis=-1))).values_BxMxLxP
        h_BxMxLxCxP = outputs.reshape(B, M, C, L, P).swapaxes(2, 3)
        fused = self.fusion(self.linear, name=f"fusion_{index}")(h_BxMxLxCxP, words.fused_BxC)
        return tokens.replace(values_BxMxLxP=fused), None


class InputFeature(Conditioner):
    """Captions enter the predictor's input only: z <- z + MLP(LN([z, caption])), fused over captions.

    Applied at the predictor's width, to context and mask tokens alike (the latter already carry their position).
    """

    linear: layers.Linear
    fusion: type[nn.Module] = fusion.MaxPool

    @nn.compact
    def begin(self, tokens: Tokens, words: Words) -> Tokens:
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
        change = layers.Mlp(P, P, self.linear, self.linear, name="mlp")(layers.layer_norm("norm")(pair))
        fused = self.fusion(self.linear, name="fusion")(x_BxMxLxP[..., None, :] + change, words.fused_BxC)
        return tokens.replace(values_BxMxLxP=fused)


class WordSequence(Conditioner):
    """All words of all captions are appended to every sequence as tokens of their own (Garrido et al. 2024)."""

    linear: layers.Linear

    @nn.compact
    def begin(self, tokens: Tokens, words: Words) -> Tokens:
        B, M, _, P = tokens.values_BxMxLxP.shape
        appended = self.linear(P, "embed")(words.vectors_BxCxSxE).astype(tokens.values_BxMxLxP.dtype)
        appended = jnp.broadcast_to(appended.reshape(B, 1, -1, P), (B, M, appended.shape[1] * appended.shape[2], P))
        valid = jnp.broadcast_to(words.valid_BxCxS.reshape(B, 1, -1), appended.shape[:-1])
        return Tokens(
            jnp.concatenate([tokens.values_BxMxLxP, appended], axis=2),
            jnp.concatenate([tokens.valid_BxMxL, valid], axis=2),
        )
