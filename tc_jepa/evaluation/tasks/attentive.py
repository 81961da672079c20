"""attentive: V-JEPA's attentive probe, one learned query that attends to an image's frozen patch features.

A cross-attention block with one query, residual connections and an MLP of four times the width, then a linear layer
(jepa src/models/attentive_pooler.py, complete_block, and CrossAttentionBlock of src/models/utils/modules.py; V-JEPA,
arXiv 2404.08471), trained by AdamW for 20 epochs as there (jepa configs/evals/vitl16_in1k.yaml, whose rate and weight
decay are 0.001). Ours are the warm-up, batches of 64, a bank of rates and weight decays in place of one setting, and no
clipping of gradients. On 2,000 scenes of the hard level (nano encoder, 36 patches of 128 channels, 2,000 test images)
it has 78.0 % of `background` right, linear_fast 57.6 %; 43.4 % of `count`, linear_fast 42.3 %.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.evaluation.linear_bank import batches, Fitted, LOSSES
from tc_jepa.evaluation.scores import Kind, Truth, value_of
from tc_jepa.evaluation.tasks.linear import validation_examples
from tc_jepa.models import layers
from tc_jepa.models.layers import Params

RATES = (3e-4, 1e-3, 3e-3)  # of AdamW
WEIGHT_DECAYS = (0.001, 1.0)
EPOCHS, WARMUP = 20, 0.1  # the ramp is a tenth of training
BATCH, FEWEST_STEPS = 64, 500  # images; a small train set is seen more often
MLP_RATIO = 4
HEAD_CHANNELS = 64
SEED = 0
CHUNK = 256  # images that are scored at once


class Setting(NamedTuple):
    """What sets one probe of the bank apart."""

    rate: float
    weight_decay: float


SETTINGS = tuple(Setting(*setting) for setting in itertools.product(RATES, WEIGHT_DECAYS))


def class_scores(
    train_features: np.ndarray, train_truth: Mapping[str, Truth], test_features: np.ndarray
) -> dict[str, Fitted[Setting]]:
    """For every task, logits of the probe that is best on every fifth train example when trained on the others.

    Features are float32 [N, P, D], of P patches. Of equals, the first in SETTINGS is chosen, and trained anew on all
    train examples. A UserError where there are too few examples.
    """
    held_out = validation_examples("attentive", len(train_features))
    part, validation = train_features[~held_out], train_features[held_out]
    fitted = {}
    for task, (kind, classes) in train_truth.items():
        truth = Truth(kind, classes[held_out])
        bank = fit(SETTINGS, part, Truth(kind, classes[~held_out]))
        values = [value_of(truth, scores) for scores in predicted(bank, validation)]
        sweep = dict(zip(SETTINGS, values, strict=True))
        chosen = max(sweep, key=sweep.get)
        (scores,) = predicted(fit([chosen], train_features, Truth(kind, classes)), test_features)
        fitted[task] = Fitted(scores, chosen, sweep)
    return fitted


class AttentiveProbe(nn.Module):
    """Patch features [B, P, D] -> logits float32 [B, classes].

    With one query for all images, keys and values need not be computed for every patch: the query is carried back
    through the key layer, and the value layer follows the weighted mean. The same function, in D / heads times fewer
    operations. Left out are what cannot matter: the key's bias, and scale and shift of the LayerNorm before the
    linear layers of keys and values.
    """

    classes: int
    heads: int

    @nn.compact
    def __call__(self, x_BxPxD: jax.Array) -> jax.Array:
        D, H = x_BxPxD.shape[-1], self.heads
        # The official std is 0.02, of widths around 1,000; a narrow encoder's probe begins as lively as those.
        linear = layers.Linear(std=0.6 * D**-0.5, depth_rescaled=True)
        output = linear.into_residual(0)
        query_1xD = self.param("query_token", nn.initializers.normal(layers.OFFICIAL_STD), (1, D))
        query_HxI = linear(D, "query")(query_1xD).reshape(H, D // H)
        key_DxHxI = self.param("key", linear.init, (D, H, D // H))
        value_DxHxI = self.param("value", linear.init, (D, H, D // H))
        value_bias_D = self.param("value_bias", nn.initializers.zeros, (D,))

        norm = nn.LayerNorm(layers.LAYER_NORM_EPSILON, use_bias=False, use_scale=False, dtype=jnp.float32)
        x_BxPxD = norm(x_BxPxD)
        asking_DxH = jnp.einsum("dhi,hi->dh", key_DxHxI, query_HxI) / (D // H) ** 0.5
        attention_BxPxH = jax.nn.softmax(x_BxPxD @ asking_DxH, axis=1)
        read_BxHxD = jnp.einsum("bph,bpd->bhd", attention_BxPxH, x_BxPxD)
        values_BxD = jnp.einsum("bhd,dhi->bhi", read_BxHxD, value_DxHxI).reshape(-1, D) + value_bias_D

        pooled_BxD = query_1xD + output(D, "proj")(values_BxD)
        mlp = layers.Mlp(MLP_RATIO * D, D, linear, output, name="mlp")
        pooled_BxD = pooled_BxD + mlp(layers.layer_norm("norm2")(pooled_BxD))
        return linear(self.classes, "classifier")(pooled_BxD)


def probe_of(width: int, classes: int) -> AttentiveProbe:
    """Heads of about HEAD_CHANNELS channels, as many as divide the width."""
    heads = max(h for h in range(1, max(1, width // HEAD_CHANNELS) + 1) if width % h == 0)
    return AttentiveProbe(classes, heads)


class Bank(NamedTuple):
    """Probes of one architecture, with a leading axis in the parameters."""

    module: AttentiveProbe
    params: Params


def fit(settings: Sequence[Setting], features: np.ndarray, truth: Truth) -> Bank:
    """One probe for each setting, trained on all examples: float32 [N, P, D]. All begin alike and see equal batches."""
    N, C = truth.classes.shape
    module = probe_of(features.shape[-1], C)
    params, moments = _initial(features[:1], module, len(settings))
    size = min(BATCH, N)
    epochs = max(EPOCHS, -(-FEWEST_STEPS // (N // size)))
    steps = epochs * (N // size)
    rates, weight_decays = np.array(settings).T
    for (_, rows), fraction in zip(batches(N, size, epochs), rate_fractions(steps), strict=True):
        now = np.stack([fraction * rates, weight_decays], axis=1)
        params, moments = _update(params, moments, features[rows], truth.classes[rows], now, module, truth.kind)
    return Bank(module, params)


def rate_fractions(steps: int) -> np.ndarray:
    """What each step takes of its rate, float [steps]: a linear ramp to 1, then a cosine to 0."""
    done = np.arange(1, steps + 1) / steps
    return np.where(done < WARMUP, done / WARMUP, 0.5 + 0.5 * np.cos(np.pi * (done - WARMUP) / (1 - WARMUP)))


def predicted(bank: Bank, features: np.ndarray) -> np.ndarray:
    """Logits float32 [settings, N, C]."""
    chunks = range(0, len(features), CHUNK)
    return np.concatenate([_logits(bank.params, features[i : i + CHUNK], bank.module) for i in chunks], axis=1)


@functools.partial(jax.jit, static_argnames="module")
def _logits(params: Params, features_BxPxD: jax.Array, module: AttentiveProbe) -> jax.Array:
    return jax.vmap(lambda one: module.apply({"params": one}, features_BxPxD))(params)


def _adamw(rate: jax.Array | float, weight_decay: jax.Array | float) -> optax.GradientTransformation:
    """Of one probe. Biases and LayerNorm do not decay."""
    return optax.adamw(rate, weight_decay=weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))


@functools.partial(jax.jit, static_argnames=("module", "count"))
def _initial(features_1xPxD: jax.Array, module: AttentiveProbe, count: int) -> tuple[Params, Any]:
    params = module.init(jax.random.key(SEED), features_1xPxD)["params"]
    params = jax.tree.map(lambda x: jnp.tile(x, (count, *[1] * x.ndim)), params)
    return params, jax.vmap(_adamw(0.0, 0.0).init)(params)


@functools.partial(jax.jit, static_argnames=("module", "kind"), donate_argnames=("params", "moments"))
def _update(
    params: Params,
    moments: Any,
    features_BxPxD: jax.Array,
    classes_BxC: jax.Array,
    settings: jax.Array,
    module: AttentiveProbe,
    kind: Kind,
) -> tuple[Params, Any]:
    """One step of every probe; `settings` are the rates and weight decays of this step, [probes, 2]."""

    def loss(one: Params) -> jax.Array:
        logits = module.apply({"params": one}, features_BxPxD)
        return LOSSES[kind](logits, classes_BxC.astype(jnp.float32)).mean()

    def step(one: Params, moments, setting: jax.Array) -> tuple[Params, Any]:
        rate, weight_decay = setting
        update, moments = _adamw(rate, weight_decay).update(jax.grad(loss)(one), moments, one)
        return optax.apply_updates(one, update), moments

    return jax.vmap(step)(params, moments, settings)
