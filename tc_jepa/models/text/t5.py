"""The encoder of T5 (Raffel et al. 2020, arXiv 1910.10683) as a frozen text encoder.

It computes what transformers' T5EncoderModel does (models/t5/modeling_t5.py) without dropout, and has the contract of
text encoders (embedding.py). R rows are all captions of a batch, B * C: captions do not attend to each other.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.models import layers


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5. `key_width` is of a head; heads * key_width may differ from `width`. `gated`: T5 1.1, else 1.0."""

    vocabulary_size: int
    width: int
    key_width: int
    hidden: int
    depth: int
    heads: int
    buckets: int
    max_distance: int
    gated: bool
    epsilon: float


class T5Encoder(nn.Module):
    """ids int [B, C, S], validity bool [B, C, S] -> word vectors float32 [B, C, S, E], zero where not valid.

    Valid words attend to valid words only, so neither the number of padded words nor their ids change a vector. Valid
    ids must be below `vocabulary_size`: under jit a larger one silently reads the last row.

    `dtype` is that of the matrix products, float32 or bfloat16. ValueError for any other: T5's activations overflow
    float16 (transformers does not compute `wo` in it either). The residual stream is float32 in both cases: T5 never
    normalises it, it grows over the layers, and bfloat16's 8 significant bits would lose what a late layer adds.
    """

    config: T5Config
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        if jnp.dtype(self.dtype) not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"T5Encoder computes in float32 or bfloat16, not {jnp.dtype(self.dtype).name}")
        super().__post_init__()

    @nn.compact
    def __call__(self, ids_BxCxS: jax.Array, valid_BxCxS: jax.Array) -> jax.Array:
        config, linear = self.config, layers.Linear(self.dtype)
        S, E = ids_BxCxS.shape[-1], config.width
        table = self.param("words", linear.init, (config.vocabulary_size, E))
        # One table for all layers; the published weights store it in the first.
        position_bias = self.param("position_bias", linear.init, (config.buckets, config.heads))
        bias_SxSxH = position_bias[relative_buckets(S, config.buckets, config.max_distance)]

        x_RxSxE, valid_RxS = table[ids_BxCxS].reshape(-1, S, E), valid_BxCxS.reshape(-1, S)
        for i in range(config.depth):
            x_RxSxE = T5Block(config, linear, name=f"blocks_{i}")(x_RxSxE, bias_SxSxH, valid_RxS)
        vectors = rms_norm(config, "norm")(x_RxSxE).reshape(*ids_BxCxS.shape, E)
        return jnp.where(valid_BxCxS[..., None], vectors, 0.0)


class T5Block(nn.Module):
    """Pre-norm transformer block without bias vectors. The output of padded words is finite and to be ignored."""

    config: T5Config
    linear: layers.Linear

    @nn.compact
    def __call__(self, x_RxSxE: jax.Array, bias_SxSxH: jax.Array, valid_RxS: jax.Array) -> jax.Array:
        attention, mlp = T5Attention(self.config, self.linear, name="attn"), T5Mlp(self.config, self.linear, name="mlp")
        x = x_RxSxE + attention(rms_norm(self.config, "norm1")(x_RxSxE), bias_SxSxH, valid_RxS)
        return x + mlp(rms_norm(self.config, "norm2")(x))


class T5Attention(nn.Module):
    """Multi-head attention to the valid words of a row, with a bias by relative position; softmax in float32.

    Logits are not divided by sqrt(key_width): T5 includes that in the initial weights. In a row without valid words the
    attention is uniform over padding, which is finite.
    """

    config: T5Config
    linear: layers.Linear

    @nn.compact
    def __call__(self, x_RxSxE: jax.Array, bias_SxSxH: jax.Array, valid_RxS: jax.Array) -> jax.Array:
        R, S, E = x_RxSxE.shape
        heads, key_width = self.config.heads, self.config.key_width

        def project(name: str) -> jax.Array:
            return self.linear(heads * key_width, name, use_bias=False)(x_RxSxE).reshape(R, S, heads, key_width)

        attended = jax.nn.dot_product_attention(
            project("q"),
            project("k"),
            project("v"),
            bias=bias_SxSxH.transpose(2, 0, 1)[None],
            mask=valid_RxS[:, None, None, :],
            scale=1.0,
        )
        return self.linear(E, "o", use_bias=False)(attended.reshape(R, S, heads * key_width))


class T5Mlp(nn.Module):
    """T5 1.0: Linear, ReLU, Linear. T5 1.1: Linear times the GELU (tanh form) of another Linear, then Linear."""

    config: T5Config
    linear: layers.Linear

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def project(name: str) -> jax.Array:
            return self.linear(self.config.hidden, name, use_bias=False)(x)

        if self.config.gated:
            hidden = nn.gelu(project("wi_0"), approximate=True) * project("wi_1")
        else:
            hidden = nn.relu(project("wi"))
        return self.linear(x.shape[-1], "wo", use_bias=False)(hidden)


def rms_norm(config: T5Config, name: str) -> nn.RMSNorm:
    """RMSNorm: a scale without mean or shift, computed in float32 for any input."""
    return nn.RMSNorm(epsilon=config.epsilon, dtype=jnp.float32, name=name)


def relative_buckets(words: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of a key's position relative to a query's: int [S, S], queries in rows.

    The second half of the buckets is for keys after the query. Within each half, the first half has one distance per
    bucket; the others widen by a constant factor up to `max_distance`, and the last holds all larger distances.
    Computed in float32 as in transformers (_relative_position_bucket): some distances lie exactly on an edge.
    """
    side = buckets // 2
    exact = side // 2
    offset = np.arange(words)[None, :] - np.arange(words)[:, None]
    distance = np.abs(offset)
    growth = np.log(np.maximum(distance, exact).astype(np.float32) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + (growth * (side - exact)).astype(int), side - 1)
    return np.where(offset > 0, side, 0) + np.where(distance < exact, distance, far)
