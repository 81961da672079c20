"""Is the run learning, and from the words? A look at held-out images that changes nothing of the training.

A JEPA's loss judges nothing: it may rise while features improve and fall as they collapse. So the monitor measures
the judged encoder's features, what the regularisers still touch, and what the captions are worth to the prediction.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.batch import Batch
from tc_jepa.evaluation.tasks.rank import feature_std, rankme
from tc_jepa.methods.losses import masked_mean, normalised_entropy, Objective
from tc_jepa.models import layers
from tc_jepa.models.conditioners.base import Reading
from tc_jepa.models.layers import Params
from tc_jepa.state import Networks
from tc_jepa.step import forward, join_targets, token_validity

VARIANTS = {"true": (0, True), "shuffled": (1, True), "absent": (0, False)}  # (shift of the captions, whether kept)


def look(
    params: Params,
    target_params: Params,
    frozen: Params,
    batch: Batch,
    shift: jax.Array,
    keep: jax.Array,
    *,
    networks: Networks,
    objective: Objective,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """One held-out batch -> (scalar metrics, pooled features [B, D] of the judged encoder).

    Image i gets the captions of image i - shift, or none where not `keep`. Both are traced, so that true, shuffled and
    absent captions share one compiled program.
    """
    batch = batch._replace(
        caption_words=jnp.roll(batch.caption_words, shift, axis=0),
        word_valid=jnp.roll(batch.word_valid, shift, axis=0),
        caption_valid=jnp.roll(batch.caption_valid, shift, axis=0) & keep,
    )
    terms, readings = forward({**frozen, **params}, target_params, batch, networks, objective)
    judged = networks.target.judged(target_params, params["encoder"])
    images = layers.normalise_images(batch.images)
    pooled_BxD = networks.encoder.apply({"params": judged}, images).mean(axis=1)
    reading = reading_metrics(readings, join_targets(batch) if networks.joint_targets else batch)
    return {"heldout/prediction": terms["prediction"]} | reading, pooled_BxD


def summarise(looks: Sequence[Mapping[str, tuple[Mapping[str, jax.Array], jax.Array]]]) -> dict[str, float]:
    """Each batch's look at every variant -> metrics with true captions, the worth of text, the spread of features."""
    looks = jax.device_get(looks)
    true = [batch["true"] for batch in looks]
    metrics = {name: float(np.mean([values[name] for values, _ in true])) for name in true[0][0]}
    for variant in ("shuffled", "absent"):
        worse = float(np.mean([batch[variant][0]["heldout/prediction"] for batch in looks]))
        metrics[f"heldout/prediction_{variant}"] = worse
        metrics[f"text_worth/{variant}"] = worse / metrics["heldout/prediction"] - 1.0
    features = np.concatenate([pooled for _, pooled in true])
    return metrics | {"rank/rankme": rankme(features), "rank/feature_std": feature_std(features)}


def reading_metrics(readings: Sequence[Reading], batch: Batch) -> dict[str, jax.Array]:
    """For each predictor layer, over valid tokens and words: share of positive cosines, mean rectified cosine,
    and attention entropy as a fraction of its maximum, the log of the caption's valid words (captions of one word
    have none and are left out)."""
    tokens = token_validity(batch)
    words = batch.word_valid & batch.caption_valid[..., None]
    pair_valid = tokens[..., None, None] & words[:, None, None]
    counts = words.sum(axis=-1)
    row_valid = tokens[..., None] & (counts > 1)[:, None, None]
    everything = tuple(range(5))
    metrics = {}
    for i, reading in enumerate(readings):
        cosine, attention = reading.cosine_BxMxLxCxS, reading.attention_BxMxLxCxS
        entropy = normalised_entropy(attention, words[:, None, None])
        metrics[f"layer_{i}/positive_cosines"] = masked_mean((cosine > 0).astype(jnp.float32), pair_valid, everything)
        metrics[f"layer_{i}/rectified_cosine"] = masked_mean(jnp.maximum(cosine, 0.0), pair_valid, everything)
        metrics[f"layer_{i}/attention_entropy"] = masked_mean(entropy, row_valid, everything[:-1])
    return metrics


def held_out_size(width: int, batch_size: int, available: int, devices: int) -> tuple[int, int]:
    """(images a batch, batches) for the monitor: at least 2 x width images for a meaningful rank, if there are as many.

    No image is counted twice unless there are fewer than devices, whose number a batch must be divisible by.
    """
    batch = max(min(batch_size, available) // devices * devices, devices)
    wanted = -(-2 * width // batch)
    return batch, max(1, min(wanted, available // batch))
