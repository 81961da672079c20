"""linear: the VISSL recipe as I-JEPA states it, a bank of 24 linear heads on frozen features, trained together.

The heads are {last layer, last four layers} x {with, without BatchNorm} x three learning rates x two weight decays,
trained by LARS (arXiv 1708.03888) for 50 epochs in batches of 16384, with the rate divided by 10 every 15 epochs
(I-JEPA, arXiv 2301.08243 App. A.2). What the paper leaves open follows VISSL: trust coefficient, momentum, biases
without adaptation (vissl/optimizers/lars.py), the initial weights, and rates that are given for 256 examples and scale
with the batch (linear_image_classification/imagenet1k/models/vit_h16_no_cls.yaml). BatchNorm has no scale and shift of
its own, because a linear layer comes next.

ImageNet-1k has 78 batches of 16384 an epoch, 3,900 in all. A train set that cannot fill 78 gets smaller batches at the
same rates, because the length of a LARS step relative to the weights is the rate, whatever the batch. Below
SMALLEST_BATCH it gets more epochs instead, until there are FEWEST_STEPS; ../README.md has measurements.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.evaluation import heads
from tc_jepa.evaluation.examples import validation_examples
from tc_jepa.evaluation.heads import Fitted
from tc_jepa.evaluation.scores import Kind, Truth
from tc_jepa.evaluation.task import FeatureRequest, LABELS, Outcome, Score, Task, TaskInputs, train_and_test
from tc_jepa.evaluation.tasks.linear_fast import LinearClassifier
from tc_jepa.models.layers import Params

BATCH = 16384
EPOCHS, EPOCHS_A_RATE = 50, 15
STEPS_AN_EPOCH = 78  # of BATCH on ImageNet-1k
SMALLEST_BATCH, FEWEST_STEPS = 2048, 1200  # see above
KINDS = {"last": "pooled", "last_four": "last_four"}  # a head's input -> the kind of features
INPUTS = tuple(KINDS)
RATES = tuple(rate * BATCH / 256 for rate in (0.01, 0.05, 0.001))  # in the paper's order
WEIGHT_DECAYS = (0.0005, 0.0)
TRUST_COEFFICIENT, MOMENTUM = 0.001, 0.9
NORM_EPSILON, NORM_MOMENTUM = 1e-5, 0.1  # of BatchNorm, as in torch
SEED = 0


def run(inputs: TaskInputs) -> Outcome:
    """Scores "linear/LABELS", with the sweep over the heads."""
    features = inputs.features
    names = [name for name, kind in KINDS.items() if kind in features["train"]]  # an encoder may have one layer
    plain, tested = ({name: features[split][KINDS[name]] for name in names} for split in ("train", "test"))
    # Without augmentation the image itself is the only view.
    views = {
        name: features["views"][KINDS[name]].swapaxes(0, 1) if "views" in features else plain[name][None]
        for name in names
    }
    return heads.outcome(inputs, "linear", class_scores(views, plain, inputs.train.truth, tested), str)


TASK = Task(
    "linear",
    run,
    needs=(LABELS,),
    features=train_and_test("pooled", "last_four")
    | {"views": FeatureRequest("train", ("pooled", "last_four"), augmented=True)},
    scores=(
        Score("linear", "VISSL's linear probe: the best of 24 heads on train examples that they were not fitted on."),
    ),
)


class HeadSetting(NamedTuple):
    """What distinguishes one head of the bank."""

    features: str
    batch_norm: bool
    rate: float
    weight_decay: float

    def __str__(self) -> str:
        """All but the rate."""
        norm = ", BatchNorm" if self.batch_norm else ""
        return f"{self.features.replace('_', ' ')}{norm}, decay {self.weight_decay:g}"


HEADS = tuple(HeadSetting(*setting) for setting in itertools.product(INPUTS, (False, True), RATES, WEIGHT_DECAYS))


def class_scores(
    train_views: Mapping[str, np.ndarray],
    train_features: Mapping[str, np.ndarray],
    train_truth: Mapping[str, Truth],
    test_features: Mapping[str, np.ndarray],
) -> dict[str, Fitted]:
    """For every label set, logits of the head that heads.fit_best chooses, which trains one head again, not the bank.

    All features are float32, of INPUTS or of the first of them alone, which halves the bank. `train_views` [V, N, D]
    are V >= 1 views of the N train examples; epoch e trains on view e % V. `train_features` [N, D] and `test_features`
    [test examples, D] are those of the images themselves, for validation and test. Raises UserError where there are too
    few examples.
    """
    held_out = validation_examples("linear", len(next(iter(train_features.values()))))
    settings = [head for head in HEADS if head.features in train_features]
    validation = {name: features[held_out] for name, features in train_features.items()}

    def fit_bank(bank: Sequence[HeadSetting], rows: np.ndarray | slice, truth: Truth):
        fitted = fit(bank, {name: views[:, rows] for name, views in train_views.items()}, truth)
        return lambda features: [fitted[head].logits(features[head.features]) for head in bank]

    return heads.fit_best(settings, train_truth, held_out, fit_bank, validation, test_features)


def loss(params: Params, batch: Mapping[str, jax.Array], features: str, batch_norm: bool, kind: Kind) -> jax.Array:
    """Of a linear layer on one input, with or without BatchNorm before it."""
    x_BxD = batch[features]
    if batch_norm:
        x_BxD = (x_BxD - x_BxD.mean(axis=0)) * jax.lax.rsqrt(x_BxD.var(axis=0) + NORM_EPSILON)
    logits_BxC = x_BxD @ params["weights"] + params["bias"]
    return heads.LOSSES[kind](logits_BxC, batch["classes"].astype(jnp.float32)).mean()


def lars(rate: jax.Array | float, weight_decay: jax.Array | float) -> optax.GradientTransformation:
    """LARS on the weights; the bias takes plain steps with momentum."""
    adapted = {"weights": True, "bias": False}
    return optax.lars(rate, weight_decay, adapted, TRUST_COEFFICIENT, trust_ratio_mask=adapted, momentum=MOMENTUM)


def fit(
    settings: Sequence[HeadSetting], views: Mapping[str, np.ndarray], truth: Truth, epochs: int | None = None
) -> dict[HeadSetting, LinearClassifier]:
    """Every head trained on all N examples, from views float32 [V, N, D] by input.

    For as many epochs as `batch_and_epochs` gives, unless `epochs` is given. All heads see the same batches, in an
    order that SEED gives.
    """
    groups: dict[tuple[str, bool], list[HeadSetting]] = {}
    for head in settings:
        groups.setdefault((head.features, head.batch_norm), []).append(head)
    views = {name: views[name] for name, _ in groups}
    N, C = truth.classes.shape
    size, usual = batch_and_epochs(N)
    epochs = usual if epochs is None else epochs
    moments = {name: (jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])) for name, x in views.items()}

    def examples() -> Iterator[dict[str, jax.Array]]:
        for epoch, rows in batches(N, size, epochs):
            inputs = {name: jnp.asarray(view[epoch % len(view), rows]) for name, view in views.items()}
            for name in inputs:
                if (name, True) in groups:
                    moments[name] = _running_moments(moments[name], inputs[name])
            yield inputs | {"classes": truth.classes[rows]}

    banks = [
        heads.Bank(
            heads.Head(loss, (name, batch_norm, truth.kind), lars),
            _initial(views[name].shape[-1], C),
            [(head.rate, head.weight_decay) for head in group],
        )
        for (name, batch_norm), group in groups.items()
    ]
    falls = [0.1 ** (epoch * EPOCHS // (epochs * EPOCHS_A_RATE)) for epoch in range(epochs) for _ in range(N // size)]
    trained = heads.train(banks, examples(), falls)
    found = {}
    for ((name, batch_norm), group), params in zip(groups.items(), trained):
        mean_D, scale_D = np.zeros(views[name].shape[-1], np.float32), np.ones(views[name].shape[-1], np.float32)
        if batch_norm:  # its running mean and variance become a part of the classifier
            mean_D, variance_D = map(np.asarray, moments[name])
            scale_D = np.sqrt(variance_D + NORM_EPSILON)
        for head, weights_DxC, bias_C in zip(group, *map(np.asarray, (params["weights"], params["bias"])), strict=True):
            found[head] = LinearClassifier(mean_D, weights_DxC / scale_D[:, None], bias_C)
    return found


def batch_and_epochs(examples: int) -> tuple[int, int]:
    """The size of a batch and the number of epochs; the rate falls after 30 %, 60 % and 90 % of them."""
    size = min(max(examples // STEPS_AN_EPOCH, SMALLEST_BATCH), BATCH, examples)
    return size, max(EPOCHS, -(-FEWEST_STEPS // (examples // size)))


def batches(examples: int, size: int, epochs: int) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, int [at least `size` rows]): each epoch in an order from SEED, in `examples // size` equal batches.

    Rows that remain are spread over the batches, so that an epoch leaves out fewer rows than it has batches.
    """
    rng = np.random.default_rng(SEED)
    count = examples // size
    for epoch in range(epochs):
        for rows in rng.permutation(examples)[: examples // count * count].reshape(count, -1):
            yield epoch, rows


def _initial(D: int, C: int) -> Params:
    """Weights as torch draws those of a linear layer; the bias is 0."""
    weights_DxC = np.random.default_rng(SEED).uniform(-(D**-0.5), D**-0.5, (D, C)).astype(np.float32)
    return {"weights": weights_DxC, "bias": np.zeros(C, np.float32)}


@jax.jit
def _running_moments(moments: tuple[jax.Array, jax.Array], x_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """BatchNorm's running mean and variance after one more batch."""
    return optax.incremental_update((x_BxD.mean(axis=0), x_BxD.var(axis=0)), moments, NORM_MOMENTUM)
