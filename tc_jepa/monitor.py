"""Is the run learning, and from the words? A look at held-out images that changes nothing of the training.

A JEPA's loss judges nothing: it may rise while features improve and fall as they collapse. So the monitor measures
the target encoder's features, what the regularisers still touch, and what the captions are worth to the prediction.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.batch import Batch
from tc_jepa.evaluation.rank import feature_std, rankme
from tc_jepa.models import layers
from tc_jepa.models.conditioner import Reading
from tc_jepa.objective import masked_mean, Objective
from tc_jepa.state import Networks, Params
from tc_jepa.step import forward

Look = tuple[dict[str, jax.Array], jax.Array]


def look(params: Params, target_params: Params, batch: Batch, networks: Networks, objective: Objective) -> Look:
    """One held-out batch -> (scalar metrics, pooled features [B, D] of the target encoder)."""
    shuffled = batch._replace(
        caption_ids=jnp.roll(batch.caption_ids, 1, axis=0),
        word_valid=jnp.roll(batch.word_valid, 1, axis=0),
        caption_valid=jnp.roll(batch.caption_valid, 1, axis=0),
    )
    absent = batch._replace(caption_valid=jnp.zeros_like(batch.caption_valid))
    terms, readings = forward(params, target_params, batch, networks, objective)
    metrics = {"heldout/prediction": terms["prediction"]}
    if readings:
        for name, captioned in (("shuffled", shuffled), ("absent", absent)):
            worse = forward(params, target_params, captioned, networks, objective)[0]["prediction"]
            metrics[f"heldout/prediction_{name}"] = worse
            metrics[f"text_worth/{name}"] = worse / terms["prediction"] - 1.0
        metrics |= reading_metrics(readings, batch)
    images = layers.normalise_images(batch.images)
    pooled_BxD = networks.encoder.apply({"params": target_params}, images).mean(axis=1)
    return metrics, pooled_BxD


def reading_metrics(readings: Sequence[Reading], batch: Batch) -> dict[str, jax.Array]:
    """For each predictor layer, over valid tokens and words: share of positive cosines, mean rectified cosine,
    and attention entropy as a fraction of its maximum, the log of the caption's valid words (captions of one word
    have none and are left out)."""
    B, M, _ = batch.target_valid.shape
    context_valid = jnp.broadcast_to(batch.context_valid[:, None], (B, M, batch.context_valid.shape[-1]))
    tokens = jnp.concatenate([context_valid, batch.target_valid], axis=2)
    words = batch.word_valid & batch.caption_valid[..., None]
    pair_valid = tokens[..., None, None] & words[:, None, None]
    counts = words.sum(axis=-1)
    row_valid = tokens[..., None] & (counts > 1)[:, None, None]
    everything = tuple(range(5))
    metrics = {}
    for i, reading in enumerate(readings):
        cosine, attention = reading.cosine_BxMxLxCxS, reading.attention_BxMxLxCxS
        entropy = (
            -jax.scipy.special.xlogy(attention, attention).sum(axis=-1) / jnp.log(jnp.maximum(counts, 2))[:, None, None]
        )
        metrics[f"layer_{i}/positive_cosines"] = masked_mean((cosine > 0).astype(jnp.float32), pair_valid, everything)
        metrics[f"layer_{i}/rectified_cosine"] = masked_mean(jnp.maximum(cosine, 0.0), pair_valid, everything)
        metrics[f"layer_{i}/attention_entropy"] = masked_mean(entropy, row_valid, everything[:-1])
    return metrics


def summarise(looks: Sequence[Look]) -> dict[str, float]:
    """The mean of the batches' metrics, and the spread of all their features together."""
    metrics = {name: float(np.mean([look[0][name] for look in looks])) for name in looks[0][0]}
    features = np.concatenate([np.asarray(look[1]) for look in looks])
    return metrics | {"rank/rankme": rankme(features), "rank/feature_std": feature_std(features)}


def held_out_size(width: int, batch_size: int, available: int, devices: int) -> tuple[int, int]:
    """(images a batch, batches) for the monitor: at least 2 x width images for a meaningful rank, if there are as many.

    No image is counted twice unless there are fewer than devices, whose number a batch must be divisible by.
    """
    batch = max(min(batch_size, available) // devices * devices, devices)
    wanted = -(-2 * width // batch)
    return batch, max(1, min(wanted, available // batch))
