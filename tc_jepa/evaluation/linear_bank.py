"""linear: the VISSL recipe as I-JEPA states it, a bank of 24 linear heads on frozen features, trained at once.

The heads are {last layer, last four layers} x {with, without BatchNorm} x three learning rates x two weight decays,
trained by LARS (arXiv 1708.03888) for 50 epochs in batches of 16384, the rate divided by 10 every 15 epochs: I-JEPA,
arXiv 2301.08243 App. A.2. What it leaves open is VISSL's: trust coefficient, momentum, biases without adaptation
(vissl/optimizers/lars.py), the initial weights, and rates that are printed for 256 examples and grow with the batch
(linear_image_classification/imagenet1k/models/vit_h16_no_cls.yaml). BatchNorm has no scale and shift of its own:
a linear layer follows.

ImageNet-1k fills 78 batches of 16384 an epoch, 3,900 in all. A train set that cannot fill 78 gets smaller batches at
the same rates, since a step of LARS is as long as the rate says relative to the weights, whatever the batch; below
SMALLEST_BATCH it gets more epochs instead, until there are FEWEST_STEPS. Measured on scenes of the hard level (nano
encoder at the end of a run with words, 128 channels, 2,000 test images; accuracy of `background` and `count`, mAP of
`shape`; linear_fast on the last layer, then on the last four):

                                            background    count         shape
    2,000 train images, linear_fast         57.6, 56.1    42.3, 42.5    60.7, 61.1
      all in a batch, 1,200 steps           56.6          43.4          60.9         (what is done)
      all in a batch, 50 steps              22.9          40.8          60.1
      batches of 256, 3,900 steps           52.1          42.6          61.1
      batches of 256, 1,200 steps           42.6          41.6          60.5
      the same, rates scaled to 256         16.6          38.2          59.8
    4,000 train images, linear_fast         60.7, 64.8    41.6, 43.3
      batches of 2048, 1,200 steps          58.9          42.1                       (what is done)
      batches of 2048, 600 steps            57.2          42.6

So the best head comes near linear_fast, except for classes that hide in directions of little variance (`background`).
Those take LARS many steps, and the larger the batch, the less noise it follows; linear_fast reaches the optimum itself.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import itertools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.evaluation.scores import Kind, Truth, value_of
from tc_jepa.evaluation.tasks.linear import Probe, validation_examples

BATCH = 16384
EPOCHS, EPOCHS_A_RATE = 50, 15
STEPS_AN_EPOCH = 78  # of BATCH on ImageNet-1k
SMALLEST_BATCH, FEWEST_STEPS = 2048, 1200  # see above
INPUTS = ("last", "last_four")
RATES = tuple(rate * BATCH / 256 for rate in (0.01, 0.05, 0.001))  # in the order that the paper prints
WEIGHT_DECAYS = (0.0005, 0.0)
TRUST_COEFFICIENT, MOMENTUM = 0.001, 0.9
NORM_EPSILON, NORM_MOMENTUM = 1e-5, 0.1  # of BatchNorm, torch's
SEED = 0

LOSSES = {  # of one example: [..., C], [..., C] -> [...]
    "single": optax.softmax_cross_entropy,
    "multi": lambda logits, classes: optax.sigmoid_binary_cross_entropy(logits, classes).sum(axis=-1),
}


class Head(NamedTuple):
    """What sets one head of the bank apart."""

    features: str
    batch_norm: bool
    rate: float
    weight_decay: float


HEADS = tuple(Head(*setting) for setting in itertools.product(INPUTS, (False, True), RATES, WEIGHT_DECAYS))

Setting = TypeVar("Setting")


class Fitted(NamedTuple, Generic[Setting]):
    """What the chosen head of a bank says of the test examples, and how the choice fell."""

    scores: np.ndarray  # float32 [test examples, C]
    chosen: Setting
    sweep: Mapping[Setting, float]  # every head's score on the train examples held out, in 0-1


def class_scores(
    train_views: Mapping[str, np.ndarray],
    train_features: Mapping[str, np.ndarray],
    train_truth: Mapping[str, Truth],
    test_features: Mapping[str, np.ndarray],
) -> dict[str, Fitted[Head]]:
    """For every task, logits of the head that is best on every fifth train example when trained on the others.

    All features are float32, of INPUTS or the first of them alone, which halves the bank. `train_views` [V, N, D] are
    V >= 1 views of the N train examples, of which epoch e trains on view e % V; `train_features` [N, D] and
    `test_features` [test examples, D] are those of the plain images, which validation and test see. Of equals, the
    first in HEADS is chosen, and trained anew on all train examples: as linear_fast does it, and for the price of one
    head. A UserError where there are too few examples.
    """
    held_out = validation_examples("linear", len(next(iter(train_features.values()))))
    heads = [head for head in HEADS if head.features in train_features]
    part = {name: views[:, ~held_out] for name, views in train_views.items()}
    validation = {name: features[held_out] for name, features in train_features.items()}
    fitted = {}
    for task, (kind, classes) in train_truth.items():
        truth = Truth(kind, classes[held_out])
        bank = fit(heads, part, Truth(kind, classes[~held_out]))
        sweep = {head: value_of(truth, bank[head].logits(validation[head.features])) for head in heads}
        chosen = max(sweep, key=sweep.get)
        probe = fit([chosen], train_views, Truth(kind, classes))[chosen]
        fitted[task] = Fitted(probe.logits(test_features[chosen.features]), chosen, sweep)
    return fitted


class _Bank(NamedTuple):
    """The H heads on one input, side by side, so that one product with the features serves them all."""

    weights: jax.Array  # float32 [D, H, C]
    bias: jax.Array  # float32 [1, H, C]


class _State(NamedTuple):
    """Banks and their momenta by (features, batch_norm), BatchNorm's running mean and variance [D] by features."""

    banks: dict[tuple[str, bool], _Bank]
    momenta: dict[tuple[str, bool], Any]
    running: dict[str, tuple[jax.Array, jax.Array]]


def fit(
    heads: Sequence[Head], views: Mapping[str, np.ndarray], truth: Truth, epochs: int | None = None
) -> dict[Head, Probe]:
    """Every head trained on all N examples: views float32 [V, N, D] by features, of which those of the heads are used.

    For as many epochs as `batch_and_epochs` says, unless given. No head sees anything of another; all see the same
    batches, in an order that SEED gives.
    """
    groups: dict[tuple[str, bool], list[Head]] = {}
    for head in heads:
        groups.setdefault((head.features, head.batch_norm), []).append(head)
    views = {name: views[name] for name, _ in groups}
    settings = {group: np.array([(head.rate, head.weight_decay) for head in groups[group]]).T for group in groups}
    N, C = truth.classes.shape
    state = _initial_state({group: (views[group[0]].shape[-1], len(groups[group]), C) for group in groups})
    size, usual = batch_and_epochs(N)
    epochs = usual if epochs is None else epochs
    for epoch, rows in batches(N, size, epochs):
        inputs = {name: view[epoch % len(view), rows] for name, view in views.items()}
        fall = 0.1 ** (epoch * EPOCHS // (epochs * EPOCHS_A_RATE))
        state = _update(state, inputs, truth.classes[rows], settings, fall, truth.kind)
    return {head: probe for group in groups for head, probe in zip(groups[group], _probes(state, group), strict=True)}


def batch_and_epochs(examples: int) -> tuple[int, int]:
    """The size of a batch, and how many epochs it takes; the rate falls after 30 %, 60 % and 90 % of them."""
    size = min(max(examples // STEPS_AN_EPOCH, SMALLEST_BATCH), BATCH, examples)
    return size, max(EPOCHS, -(-FEWEST_STEPS // (examples // size)))


def batches(examples: int, size: int, epochs: int) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, int [at least size rows]), shuffled by SEED, as many of one size an epoch as there are enough rows for.

    What then remains is dealt out among them: what an epoch leaves out is fewer rows than it has batches.
    """
    rng = np.random.default_rng(SEED)
    count = examples // size
    for epoch in range(epochs):
        for rows in rng.permutation(examples)[: examples // count * count].reshape(count, -1):
            yield epoch, rows


def _initial_state(shapes: Mapping[tuple[str, bool], tuple[int, int, int]]) -> _State:
    """All heads of an input begin alike, as torch begins a linear layer, but with a bias of 0."""
    banks = {}
    for group, (D, H, C) in shapes.items():
        weights_Dx1xC = np.random.default_rng(SEED).uniform(-(D**-0.5), D**-0.5, (D, 1, C)).astype(np.float32)
        banks[group] = _Bank(jnp.tile(weights_Dx1xC, (1, H, 1)), jnp.zeros((1, H, C)))
    begin = jax.vmap(_lars(0.0, 0.0).init, in_axes=1, out_axes=1)
    momenta = {group: begin(bank) for group, bank in banks.items()}
    return _State(banks, momenta, {name: (jnp.zeros(D), jnp.ones(D)) for (name, _), (D, _, _) in shapes.items()})


def _lars(rate: jax.Array | float, weight_decay: jax.Array | float) -> optax.GradientTransformation:
    """Of one head: its trust ratio is that of its own weights. The bias takes plain steps with momentum."""
    adapted = _Bank(weights=True, bias=False)
    return optax.lars(rate, weight_decay, adapted, TRUST_COEFFICIENT, trust_ratio_mask=adapted, momentum=MOMENTUM)


def _loss(banks: Mapping, inputs: Mapping, classes_BxC: jax.Array, kind: Kind) -> jax.Array:
    """Summed over heads, so that the gradient of each head is that of its own mean loss."""
    total = jnp.zeros(())
    for group, (weights_DxHxC, bias_1xHxC) in banks.items():
        D, H, C = weights_DxHxC.shape
        product = jnp.matmul(inputs[group], weights_DxHxC.reshape(D, H * C), precision="highest")
        logits_BxHxC = product.reshape(-1, H, C) + bias_1xHxC
        total += LOSSES[kind](logits_BxHxC, classes_BxC[:, None]).mean(axis=0).sum()
    return total


@functools.partial(jax.jit, static_argnames="kind", donate_argnames="state")
def _update(
    state: _State, features: Mapping[str, jax.Array], classes_BxC: jax.Array, settings: Mapping, fall: float, kind: Kind
) -> _State:
    """One step of every head. `settings` are rates and weight decays [2, H] by group, `fall` what is left of rates."""
    inputs, running = {}, {}
    for name, x_BxD in features.items():
        moments = x_BxD.mean(axis=0), x_BxD.var(axis=0)
        inputs[name, False], inputs[name, True] = x_BxD, _normalised(x_BxD, *moments)
        running[name] = optax.incremental_update(moments, state.running[name], NORM_MOMENTUM)
    gradients = jax.grad(_loss)(state.banks, inputs, classes_BxC.astype(jnp.float32), kind)

    def step(gradient: _Bank, momentum, head: _Bank, setting: jax.Array):
        rate, weight_decay = setting
        update, momentum = _lars(fall * rate, weight_decay).update(gradient, momentum, head)
        return optax.apply_updates(head, update), momentum

    each = jax.vmap(step, in_axes=1, out_axes=1)
    stepped = {g: each(gradients[g], state.momenta[g], state.banks[g], settings[g]) for g in state.banks}
    return _State({g: bank for g, (bank, _) in stepped.items()}, {g: m for g, (_, m) in stepped.items()}, running)


def _normalised(x_BxD: jax.Array, mean_D: jax.Array, variance_D: jax.Array) -> jax.Array:
    return (x_BxD - mean_D) * jax.lax.rsqrt(variance_D + NORM_EPSILON)


def _probes(state: _State, group: tuple[str, bool]) -> list[Probe]:
    """The heads of one group as linear classifiers of the features; BatchNorm's running statistics enter them."""
    features, batch_norm = group
    weights_DxHxC, bias_1xHxC = map(np.asarray, state.banks[group])
    mean_D, variance_D = map(np.asarray, state.running[features])
    if batch_norm:
        weights_DxHxC = weights_DxHxC / np.sqrt(variance_D + NORM_EPSILON)[:, None, None]
    else:
        mean_D = np.zeros_like(mean_D)
    return [Probe(mean_D, weights_DxHxC[:, i], bias_1xHxC[0, i]) for i in range(weights_DxHxC.shape[1])]
