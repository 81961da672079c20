"""Diagnostics of a predictor's attention to words."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tc_jepa.methods.losses import masked_mean, normalised_entropy
from tc_jepa.models.conditioners.base import Reading


def reading_metrics(
    readings: Sequence[Reading], token_valid_BxMxL: jax.Array, word_valid_BxCxS: jax.Array
) -> dict[str, jax.Array]:
    """Means over valid tokens and words for each predictor layer that attends to words, float32 scalars by name.

    layer_i/positive_cosines: share of positive cosines of query and key. The paper's regularisers act on these alone.
    layer_i/rectified_cosine: mean of max(cosine, 0).
    layer_i/attention_entropy: entropy of the attention over a caption's words, divided by its maximum, the log of their
      number. Captions of one word are left out.
    """
    pair_valid = token_valid_BxMxL[..., None, None] & word_valid_BxCxS[:, None, None]
    row_valid = token_valid_BxMxL[..., None] & (word_valid_BxCxS.sum(axis=-1) > 1)[:, None, None]
    everything = tuple(range(5))
    metrics = {}
    for i, reading in enumerate(readings):
        cosine, attention = reading.cosine_BxMxLxCxS, reading.attention_BxMxLxCxS
        entropy = normalised_entropy(attention, word_valid_BxCxS[:, None, None])
        metrics[f"layer_{i}/positive_cosines"] = masked_mean((cosine > 0).astype(jnp.float32), pair_valid, everything)
        metrics[f"layer_{i}/rectified_cosine"] = masked_mean(jnp.maximum(cosine, 0.0), pair_valid, everything)
        metrics[f"layer_{i}/attention_entropy"] = masked_mean(entropy, row_valid, everything[:-1])
    return metrics
