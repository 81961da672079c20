"""The predictor: a narrow ViT that predicts target features of hidden blocks from visible patches and captions."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.conditioners.base import BlockFunction, Conditioner, Reading, Tokens, Words
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.mask_tokens import FeatureConditioning, position_noise, UNCORRUPTED
from tc_jepa.models.positions import sincos_positions


class Predictor(nn.Module):
    """Context features and target indices -> predictions float32 [B, M, T, output_width], and a list of readings.

    The readings are those of the layers that attend to words. `words` may be None if the conditioner reads none.
    `grid` is (rows, columns) of patches. `remat`, for the transformer blocks, `residual` and
    `backend` are those of VisionTransformer; the conditioner has a remat of its own.

    Each target block is predicted in a separate sequence, together with a copy of the context
    (ijepa src/models/vision_transformer.py:300-326).

    `position_noise` is StoP's sigma and `position_noise_levels` N-JEPA's levels: see mask_tokens.position_noise. The
    noise needs the random key "positions"; without one, as in monitoring, there is no noise.

    `corruption` is the number of parameters of what was done to the context images, by which IWM changes the mask token
    (mask_tokens.FeatureConditioning); with 0 they are ignored.
    """

    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    output_width: int
    conditioner: Conditioner
    linear: layers.Linear = layers.Linear()
    position_noise: float = 0.0
    position_noise_levels: int = 1
    corruption: int = 0
    remat: bool = False
    residual: jnp.dtype = jnp.float32
    backend: Backend = PLAIN

    @nn.compact
    def __call__(
        self,
        context_BxKxD: jax.Array,
        context_indices_BxK: jax.Array,
        context_valid_BxK: jax.Array,
        target_indices_BxMxT: jax.Array,
        target_valid_BxMxT: jax.Array,
        words: Words | None,
        corruption_BxA: jax.Array = UNCORRUPTED,
    ) -> tuple[jax.Array, list[Reading]]:
        B, K, D = context_BxKxD.shape
        M, T = target_indices_BxMxT.shape[1:]
        positions = jnp.asarray(sincos_positions(self.grid, self.width))
        mask_token = self.param("mask_token", self.linear.init, (self.width,))

        embed = self.linear(self.width, "predictor_embed")
        context = embed(context_BxKxD) + positions[context_indices_BxK]
        if self.corruption:
            conditioned_BxP = FeatureConditioning(self.corruption, self.linear, name="corruption_mlp")(
                mask_token, corruption_BxA
            )
            mask_token = conditioned_BxP[:, None, None]
        targets = mask_token + positions[target_indices_BxMxT]
        if self.position_noise and self.has_rng("positions"):
            new_key, shape = functools.partial(self.make_rng, "positions"), (B, M, T, D)
            noise = position_noise(new_key, shape, self.position_noise, self.position_noise_levels)
            targets = targets + noise @ embed.variables["params"]["kernel"]
        repeated = jnp.broadcast_to(context[:, None], (B, M, K, self.width))
        repeated_valid = jnp.broadcast_to(context_valid_BxK[:, None], (B, M, K))
        tokens = Tokens(
            jnp.concatenate([repeated, targets], axis=2),
            jnp.concatenate([repeated_valid, target_valid_BxMxT], axis=2),
        )

        tokens = self._in_residual(self.conditioner.condition_input(tokens, words))
        readings, block_of = [], layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            block = block_of(i, self.heads, 4 * self.width, self.linear, self.backend.attend, name=f"blocks_{i}")
            tokens, reading = self.conditioner.condition_layer(i, self._over_sequences(block), tokens, words)
            tokens = self._in_residual(tokens)
            if reading is not None:
                readings.append(reading)
        x_BxMxTxP = layers.layer_norm("norm")(tokens.values_BxMxLxP[:, :, K : K + T])
        # In float32 like the loss: bfloat16 would round each prediction to 8 significant bits before it is compared.
        project = dataclasses.replace(self.linear, dtype=jnp.float32)
        return project(self.output_width, "proj")(x_BxMxTxP), readings

    def _in_residual(self, tokens: Tokens) -> Tokens:
        return tokens.replace(values_BxMxLxP=tokens.values_BxMxLxP.astype(self.residual))

    def _over_sequences(self, block: layers.Block) -> BlockFunction:
        """A transformer block as a function of all sequences. A conditioner may make more than B * M sequences."""

        def apply(tokens: Tokens, modulation: layers.Modulation = layers.UNMODULATED) -> Tokens:
            B, M, L, P = tokens.values_BxMxLxP.shape
            modulation = jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else x.reshape(B * M, 1, P), modulation)
            x = self.backend.constrain(tokens.values_BxMxLxP.reshape(B * M, L, P))
            x = self.backend.constrain(block(x, tokens.valid_BxMxL.reshape(B * M, L), modulation))
            return tokens.replace(values_BxMxLxP=x.reshape(B, M, L, P))

        return apply
