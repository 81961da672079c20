"""The predictor: a narrow ViT that guesses the target encoder's features of hidden blocks, reading captions."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.conditioner import Conditioner, Reading, Tokens, Words


class Predictor(nn.Module):
    """Context features and target places -> predicted features float32 [B, M, T, D], and each layer's reading.

    Each target block is predicted in a sequence of its own, beside a copy of the context
    (ijepa src/models/vision_transformer.py:300-326). `grid` is (rows, columns) of patches.
    """

    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    conditioner: Conditioner
    linear: layers.Linear = layers.Linear()
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x

    @nn.compact
    def __call__(
        self,
        context_BxKxD: jax.Array,
        context_indices_BxK: jax.Array,
        context_valid_BxK: jax.Array,
        target_indices_BxMxT: jax.Array,
        target_valid_BxMxT: jax.Array,
        words: Words,
    ) -> tuple[jax.Array, list[Reading]]:
        B, K, D = context_BxKxD.shape
        M, T = target_indices_BxMxT.shape[1:]
        positions = jnp.asarray(layers.sincos_positions(self.grid, self.width))
        mask_token = self.param("mask_token", self.linear.init, (self.width,))

        context = self.linear(self.width, "predictor_embed")(context_BxKxD) + positions[context_indices_BxK]
        targets = mask_token + positions[target_indices_BxMxT]
        repeated = jnp.broadcast_to(context[:, None], (B, M, K, self.width))
        repeated_valid = jnp.broadcast_to(context_valid_BxK[:, None], (B, M, K))
        tokens = Tokens(
            jnp.concatenate([repeated, targets], axis=2),
            jnp.concatenate([repeated_valid, target_valid_BxMxT], axis=2),
        )

        tokens = self.conditioner.begin(tokens, words)
        readings = []
        for i in range(self.depth):
            block = layers.Block(self.heads, 4 * self.width, self.linear, name=f"blocks_{i}")
            tokens, reading = self.conditioner.layer(i, self._over_sequences(block), tokens, words)
            if reading is not None:
                readings.append(reading)
        x_BxMxTxP = layers.layer_norm("norm")(tokens.values_BxMxLxP[:, :, K : K + T])
        return self.linear(D, "proj")(x_BxMxTxP).astype(jnp.float32), readings

    def _over_sequences(self, block: layers.Block) -> Callable[[Tokens], Tokens]:
        """A transformer block as a function of all B x M sequences."""

        def apply(tokens: Tokens) -> Tokens:
            B, M, L, P = tokens.values_BxMxLxP.shape
            x = self.constrain(tokens.values_BxMxLxP.reshape(B * M, L, P))
            x = self.constrain(block(x, tokens.valid_BxMxL.reshape(B * M, L)))
            return tokens.replace(values_BxMxLxP=x.reshape(B, M, L, P))

        return apply
