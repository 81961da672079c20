"""The conditioner "sequence": words are tokens of the predictor (paper Fig. 4, Appendix A)."""

import flax.linen as nn
import jax.numpy as jnp

from tc_jepa.models.conditioners.base import Conditioner, Tokens, Words


class WordSequence(Conditioner):
    """All words of all captions are appended to every sequence as tokens of their own (Garrido et al. 2024)."""

    reads_words = True

    @nn.compact
    def condition_input(self, tokens: Tokens, words: Words) -> Tokens:
        B, M, _, P = tokens.values_BxMxLxP.shape
        appended = self.linear(P, "embed")(words.vectors_BxCxSxE).astype(tokens.values_BxMxLxP.dtype)
        appended = jnp.broadcast_to(appended.reshape(B, 1, -1, P), (B, M, appended.shape[1] * appended.shape[2], P))
        valid = jnp.broadcast_to(words.valid_BxCxS.reshape(B, 1, -1), appended.shape[:-1])
        return Tokens(
            jnp.concatenate([tokens.values_BxMxLxP, appended], axis=2),
            jnp.concatenate([tokens.valid_BxMxL, valid], axis=2),
        )
