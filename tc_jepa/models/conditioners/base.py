"""The contract of conditioners, and the conditioner "none", which reads no captions.

A conditioner is how the predictor reads captions. It changes the predictor's input once (`condition_input`) and runs
each of its transformer blocks (`condition_layer`). So it can change tokens, append tokens, or modulate a block, and the
predictor is the same for all conditioners.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.layers import Linear, Modulation, UNMODULATED


@struct.dataclass
class Words:
    """Captions as word vectors. A word counts if it is valid and its caption is valid."""

    vectors_BxCxSxE: jax.Array
    word_valid_BxCxS: jax.Array
    caption_valid_BxC: jax.Array

    @property
    def valid_BxCxS(self) -> jax.Array:
        return self.word_valid_BxCxS & self.caption_valid_BxC[..., None]

    @property
    def fused_BxC(self) -> jax.Array:
        """The captions whose results are fused. An image without captions has one null caption, without valid words."""
        null = ~self.caption_valid_BxC.any(axis=-1, keepdims=True)
        first = jnp.arange(self.caption_valid_BxC.shape[-1]) == 0
        return self.caption_valid_BxC | (null & first)

    def averaged(self) -> "Words":
        """Each caption as one word, the mean of its valid word vectors: [B, C, 1, E], 0 if it has none."""
        valid = self.valid_BxCxS[..., None]
        total = jnp.where(valid, self.vectors_BxCxSxE, 0.0).sum(axis=2, keepdims=True)
        mean = total / jnp.maximum(valid.sum(axis=2, keepdims=True), 1)
        return Words(mean, self.word_valid_BxCxS.any(axis=-1, keepdims=True), self.caption_valid_BxC)


@struct.dataclass
class Tokens:
    """The predictor's sequences, one per target block: context, targets, then tokens that a conditioner appended."""

    values_BxMxLxP: jax.Array
    valid_BxMxL: jax.Array


@struct.dataclass
class Reading:
    """One layer's attention to words: cosine of query and key, and attention weight, of each token and word."""

    cosine_BxMxLxCxS: jax.Array
    attention_BxMxLxCxS: jax.Array


class BlockFunction(Protocol):
    """One of the predictor's transformer blocks, applied to all sequences; `modulation` has arrays [B, M, 1, P]."""

    def __call__(self, tokens: Tokens, modulation: Modulation = UNMODULATED) -> Tokens: ...


class Conditioner(nn.Module):
    """The base class of conditioners. By itself it reads no captions, as in I-JEPA.

    Class variables declare what the rest of the program must know:
      keys: the configuration keys that it uses, without their group `conditioner`. `build` receives their values.
      weight_decay_rules: (regex, decays) pairs for its parameters, which take precedence over optimizer.GENERAL_RULES.
        A regex must match the whole path of a parameter within the conditioner, such as layers_0/fusion/query.
      reads_words: if False, `words` may be None, and no captions are loaded.
      attends_to_words: if True, `condition_layer` returns a Reading, on which the regularisers act.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    weight_decay_rules: ClassVar[tuple[tuple[str, bool], ...]] = ()
    reads_words: ClassVar[bool] = False
    attends_to_words: ClassVar[bool] = False

    linear: Linear = Linear()
    remat: bool = False  # keep only the inputs of each layer for the backward pass: layers.rematerialised
    backend: Backend = PLAIN

    @classmethod
    def build(cls, linear: Linear, remat: bool, settings: Mapping[str, Any]) -> "Conditioner":
        """Returns the conditioner with the values of `keys` by name, which are constructor arguments by default."""
        return cls(linear, remat, **settings)

    def condition_input(self, tokens: Tokens, words: Words | None) -> Tokens:
        """Returns the input of the predictor's first layer. It may append tokens."""
        return tokens

    def condition_layer(
        self, index: int, block: BlockFunction, tokens: Tokens, words: Words | None
    ) -> tuple[Tokens, Reading | None]:
        """Returns the output of the predictor's layer `index`, from 0, whose transformer block is `block`."""
        return block(tokens), None
