"""attentive: V-JEPA's attentive probe, one learned query that attends to the frozen patch features of an image.

A cross-attention block with one query, residual connections and an MLP of four times the width, then a linear layer
(jepa src/models/attentive_pooler.py, complete_block, and CrossAttentionBlock of src/models/utils/modules.py; V-JEPA,
arXiv 2404.08471), trained by AdamW for 20 epochs as there (jepa configs/evals/vitl16_in1k.yaml, whose rate and weight
decay are 0.001). Ours are the warm-up, batches of 64, a bank of rates and weight decays in place of one setting, and no
clipping of gradients. On 2,000 scenes of the hard level (nano encoder, 36 patches of 128 channels, 2,000 test images)
its accuracy is 78.0 % for `background` (linear_fast 57.6 %) and 43.4 % for `count` (linear_fast 42.3 %).
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.evaluation import heads
from tc_jepa.evaluation.encoder import full_precision
from tc_jepa.evaluation.examples import validation_examples
from tc_jepa.evaluation.heads import Fitted
from tc_jepa.evaluation.rows import Rows
from tc_jepa.evaluation.scores import Kind, Truth
from tc_jepa.evaluation.task import LABELS, Outcome, Score, Task, TaskInputs, train_and_test
from tc_jepa.evaluation.tasks.linear import batches
from tc_jepa.models import layers
from tc_jepa.models.layers import Params

RATES = (3e-4, 1e-3, 3e-3)  # of AdamW
WEIGHT_DECAYS = (0.001, 1.0)
EPOCHS = 20
BATCH, FEWEST_STEPS = 64, 500  # images; a small train set is seen more often
MLP_RATIO = 4
SEED = 0
CHUNK = 256  # images that are scored at once


def run(inputs: TaskInputs) -> Outcome:
    """Scores "attentive/LABELS", with the sweep over rates and weight decays."""
    train, test = (inputs.features[split]["patches"] for split in ("train", "test"))
    found = class_scores(train, inputs.train.truth, test)
    return heads.outcome(inputs, "attentive", found, lambda setting: f"decay {setting.weight_decay:g}")


TASK = Task(
    "attentive",
    run,
    needs=(LABELS,),
    features=train_and_test("patches"),
    scores=(Score("attentive", "One cross-attention block with a learned query, then a linear layer."),),
)


class Setting(NamedTuple):
    """What distinguishes one probe of the bank."""

    rate: float
    weight_decay: float


SETTINGS = tuple(Setting(*setting) for setting in itertools.product(RATES, WEIGHT_DECAYS))


def class_scores(
    train_features: np.ndarray | Rows, train_truth: Mapping[str, Truth], test_features: np.ndarray | Rows
) -> dict[str, Fitted]:
    """For every label set, logits of the probe that heads.fit_best chooses.

    Features are float32 [N, P, D], of P patches, and are read batch by batch. Raises UserError where there are too few
    examples.
    """
    held_out, features = validation_examples("attentive", len(train_features)), Rows.of(train_features)

    def fit_bank(settings: Sequence[Setting], rows: np.ndarray | slice, truth: Truth):
        return fit(settings, features.select(rows), truth)

    return heads.fit_best(SETTINGS, train_truth, held_out, fit_bank, features.select(held_out), test_features)


class AttentiveProbe(nn.Module):
    """Patch features [B, P, D] -> logits float32 [B, classes].

    There is one query for all images, so keys and values are not computed for every patch: the query goes back through
    the key layer, and the value layer is applied to the weighted mean. This is the same function in D / heads times
    fewer operations. What has no effect is left out: the key's bias, and scale and shift of the LayerNorm before the
    linear layers of keys and values.
    """

    classes: int
    heads: int

    @nn.compact
    def __call__(self, x_BxPxD: jax.Array) -> jax.Array:
        D, H = x_BxPxD.shape[-1], self.heads
        # The official std is 0.02, for widths around 1,000. This is about the same there and more at smaller widths.
        linear = layers.Linear(std=0.6 * D**-0.5, depth_rescaled=True)
        output = linear.into_residual(0)
        query_1xD = self.param("query_token", nn.initializers.normal(layers.OFFICIAL_STD), (1, D))
        query_HxI = linear(D, "query")(query_1xD).reshape(H, D // H)
        key_DxHxI = self.param("key", linear.init, (D, H, D // H))
        value_DxHxI = self.param("value", linear.init, (D, H, D // H))
        value_bias_D = self.param("value_bias", nn.initializers.zeros, (D,))

        norm = nn.LayerNorm(layers.LAYER_NORM_EPSILON, use_bias=False, use_scale=False, dtype=jnp.float32)
        x_BxPxD = norm(x_BxPxD)
        projected_DxH = jnp.einsum("dhi,hi->dh", key_DxHxI, query_HxI) / (D // H) ** 0.5
        attention_BxPxH = jax.nn.softmax(x_BxPxD @ projected_DxH, axis=1)
        read_BxHxD = jnp.einsum("bph,bpd->bhd", attention_BxPxH, x_BxPxD)
        values_BxD = jnp.einsum("bhd,dhi->bhi", read_BxHxD, value_DxHxI).reshape(-1, D) + value_bias_D

        pooled_BxD = query_1xD + output(D, "proj")(values_BxD)
        mlp = layers.Mlp(MLP_RATIO * D, D, linear, output, name="mlp")
        pooled_BxD = pooled_BxD + mlp(layers.layer_norm("norm2")(pooled_BxD))
        return linear(self.classes, "classifier")(pooled_BxD)


def probe_of(width: int, classes: int) -> AttentiveProbe:
    return AttentiveProbe(classes, layers.attention_heads(width))


def loss(params: Params, batch: tuple[jax.Array, jax.Array], module: AttentiveProbe, kind: Kind) -> jax.Array:
    """Of a probe, over a batch of features [B, P, D] with their classes [B, C]."""
    features_BxPxD, classes_BxC = batch
    logits_BxC = module.apply({"params": params}, features_BxPxD)
    return heads.LOSSES[kind](logits_BxC, classes_BxC.astype(jnp.float32)).mean()


def fit(settings: Sequence[Setting], features: np.ndarray | Rows, truth: Truth) -> Callable:
    """One probe for each setting, trained on all examples, float32 [N, P, D].

    Returns a function from features to logits, float32 [settings, N, C].
    """
    N, C = truth.classes.shape
    module = probe_of(features.shape[-1], C)
    size = min(BATCH, N)
    epochs = max(EPOCHS, -(-FEWEST_STEPS // (N // size)))
    examples = ((features[rows], truth.classes[rows]) for _, rows in batches(N, size, epochs))
    initial = jax.jit(module.init)(jax.random.key(SEED), features[:1])["params"]
    bank = heads.Bank(heads.Head(loss, (module, truth.kind)), initial, settings)
    (params,) = heads.train([bank], examples, heads.rate_fractions(epochs * (N // size)))

    def predict(features: np.ndarray | Rows) -> np.ndarray:
        chunks = range(0, len(features), CHUNK)
        return np.concatenate([_logits(params, features[i : i + CHUNK], module) for i in chunks], axis=1)

    return predict


@functools.partial(jax.jit, static_argnames="module")
@full_precision
def _logits(params: Params, features_BxPxD: jax.Array, module: AttentiveProbe) -> jax.Array:
    return jax.vmap(lambda one: module.apply({"params": one}, features_BxPxD))(params)
