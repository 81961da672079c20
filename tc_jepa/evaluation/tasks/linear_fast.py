"""linear_fast: L2-regularised logistic regression on frozen features, fitted to the optimum on the whole train set.

All classes of a label set are fitted together, by accelerated gradient descent. A quadratic bounds the curvature of the
logistic loss (Boehning 1992). In the eigenbasis of the features' covariance that quadratic is diagonal; dividing by
it makes the problem well conditioned, and every step is safe without a line search. Nothing is random.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import functools
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.evaluation import labels
from tc_jepa.evaluation.examples import validation_examples
from tc_jepa.evaluation.scores import Kind, Truth, value_of
from tc_jepa.evaluation.task import LABELS, Outcome, Score, Task, TaskInputs, train_and_test

# The L2 strength on standardised features: mean loss + strength / 2 * |weights|^2; the bias is free.
STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TOLERANCE = 1e-8  # a fit has converged when a step is guaranteed to lower the mean loss by no more than this
MAX_ITERATIONS = 2000
PATIENCE = 3  # strengths
CURVATURE = {"single": 0.5, "multi": 0.25}  # bounds on the second derivative of softmax and sigmoid losses


def run(inputs: TaskInputs) -> Outcome:
    """Scores "linear_fast/LABELS"."""
    found = class_scores(inputs.features["train"]["pooled"], inputs.train.truth, inputs.features["test"]["pooled"])
    return labels.outcome(inputs, {("linear_fast", name): labels.Answer([scores]) for name, scores in found.items()})


TASK = Task(
    "linear_fast",
    run,
    needs=(LABELS,),
    features=train_and_test("pooled"),
    scores=(Score("linear_fast", "Logistic regression, fitted to the optimum.", headline=True),),
    during_training=True,
)


class Basis(NamedTuple):
    """Standardised features in the eigenbasis of their covariance, and the transformation to it."""

    mean: np.ndarray  # float32 [D]
    rotation: np.ndarray  # float64 [D, D]: coordinates = (features - mean) @ rotation
    spectrum: np.ndarray  # float32 [D], mean square of each coordinate
    coordinates: np.ndarray  # float32 [N, D]


class LinearClassifier(NamedTuple):
    """logits = (features - mean) @ weights + bias."""

    mean: np.ndarray  # float32 [D]
    weights: np.ndarray  # float32 [D, C]
    bias: np.ndarray  # float32 [C]

    def logits(self, features_NxD: np.ndarray) -> np.ndarray:
        """float32 [N, C]."""
        return (features_NxD - self.mean) @ self.weights + self.bias


def class_scores(
    train_features: np.ndarray, train_truth: Mapping[str, Truth], test_features: np.ndarray
) -> dict[str, np.ndarray]:
    """For every label set, logits float32 [test examples, C] of a classifier fitted on all train examples.

    Its strength is the one that scores best on every fifth train example when fitted on the others; of equals, the
    strongest. Raises UserError where there are too few examples.
    """
    held_out = validation_examples("linear_fast", len(train_features))
    part, whole = make_basis(train_features[~held_out]), make_basis(train_features)
    scores = {}
    for task, (kind, classes) in train_truth.items():
        trials = fit(part, Truth(kind, classes[~held_out]), STRENGTHS)
        strength = best_strength(trials, train_features[held_out], Truth(kind, classes[held_out]))
        scores[task] = next(fit(whole, Truth(kind, classes), [strength])).logits(test_features)
    return scores


def best_strength(trials: Iterable[LinearClassifier], features_NxD: np.ndarray, truth: Truth) -> float:
    """The strength whose trial scores best; of equals, the strongest. Trials come in the order of STRENGTHS.

    After PATIENCE trials in a row that score below the best, the weaker strengths, which take longest, are not tried.
    """
    values = []
    for trial in trials:
        values.append(value_of(truth, trial.logits(features_NxD)))
        if max(values[-PATIENCE:]) < max(values):
            break
    return STRENGTHS[int(np.argmax(values))]


def make_basis(features_NxD: np.ndarray) -> Basis:
    """The basis of the given examples. A constant channel gets no weight."""
    features = features_NxD.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-6 * np.abs(mean))
    standardised = (features - mean) * scale
    spectrum, rotation = np.linalg.eigh(standardised.T @ standardised / len(features))
    return Basis(
        mean=mean.astype(np.float32),
        rotation=scale[:, None] * rotation,
        spectrum=np.maximum(spectrum, 0.0).astype(np.float32),
        coordinates=(standardised @ rotation).astype(np.float32),
    )


def fit(basis: Basis, truth: Truth, strengths: Sequence[float]) -> Iterator[LinearClassifier]:
    """Softmax over the classes (`single`) or a sigmoid for each (`multi`), for one strength after another.

    Each fit starts from the optimum of the one before, so give the strongest first.
    """
    parameters = np.zeros((basis.coordinates.shape[1] + 1, truth.classes.shape[1]), np.float32)
    for strength in strengths:
        done = _minimise(parameters, basis.coordinates, truth.classes, basis.spectrum, strength, truth.kind)
        if done.decrease > TOLERANCE:
            logging.warning("linear_fast: strength %g did not converge in %d steps", strength, MAX_ITERATIONS)
        parameters = np.asarray(done.parameters)
        yield LinearClassifier(basis.mean, (basis.rotation @ parameters[:-1]).astype(np.float32), parameters[-1])


class _Descent(NamedTuple):
    parameters: jax.Array  # float32 [D + 1, C], the bias last
    ahead: jax.Array  # the extrapolated parameters, at which the gradient is taken
    inertia: jax.Array  # Nesterov's t, of each problem
    decrease: jax.Array  # by which the last step lowered the mean loss of the worst problem, at least
    iteration: jax.Array


@functools.partial(jax.jit, static_argnames="kind")
def _minimise(
    start: jax.Array, x_NxD: jax.Array, classes_NxC: jax.Array, spectrum_D: jax.Array, strength: float, kind: Kind
) -> _Descent:
    N, D = x_NxD.shape
    x = jnp.concatenate([x_NxD, jnp.ones((N, 1))], axis=1)
    penalty = strength * jnp.append(jnp.ones(D), 0.0)[:, None]
    step_size = 1.0 / (CURVATURE[kind] * jnp.append(spectrum_D, 1.0)[:, None] + penalty)
    activation = jax.nn.softmax if kind == "single" else jax.nn.sigmoid
    problem_axes = (0, 1) if kind == "single" else 0  # a softmax is one problem; every sigmoid is its own

    def gradient_at(parameters):
        error = activation(jnp.matmul(x, parameters, precision="highest")) - classes_NxC
        return jnp.matmul(x.T, error, precision="highest") / N + penalty * parameters

    def unfinished(carry):
        return (carry.decrease > TOLERANCE) & (carry.iteration < MAX_ITERATIONS)

    def descend(carry):
        gradient = gradient_at(carry.ahead)
        parameters = carry.ahead - step_size * gradient
        moved = parameters - carry.parameters
        # Momentum is reset where it points uphill (O'Donoghue and Candes 2015).
        uphill = jnp.sum(gradient * moved, axis=problem_axes) > 0
        inertia = jnp.where(uphill, 1.0, (1.0 + jnp.sqrt(1.0 + 4.0 * carry.inertia**2)) / 2.0)
        ahead = parameters + jnp.where(uphill, 0.0, (carry.inertia - 1.0) / inertia) * moved
        decrease = jnp.max(0.5 * jnp.sum(step_size * gradient**2, axis=problem_axes))
        return _Descent(parameters, ahead, inertia, decrease, carry.iteration + 1)

    inertia = jnp.ones(()) if kind == "single" else jnp.ones(classes_NxC.shape[1])
    return jax.lax.while_loop(unfinished, descend, _Descent(start, start, inertia, jnp.inf, 0))
