"""linear_fast: L2-regularised logistic regression on frozen features, fitted to the optimum on the whole train set.

All classes of a task and all strengths of the grid are solved at once by accelerated gradient descent. The logistic
loss curves at most as much as a fixed quadratic (Boehning 1992); in the eigenbasis of the features' covariance that
quadratic is diagonal, and dividing by it makes the problem well conditioned and every step safe without a line search.
Nothing is random.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.evaluation.scores import Kind, Truth, measure

# The L2 strength on standardised features: mean loss + strength / 2 * |weights|^2; the bias is free.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TOLERANCE = 1e-5  # the largest gradient component at which a fit counts as converged
MAX_ITERATIONS = 2000
VALIDATION_STRIDE = 5  # every fifth train example chooses the strength
CURVATURE = {"single": 0.5, "multi": 0.25}  # bounds on the second derivative of softmax and sigmoid losses


def class_scores(
    train_features: np.ndarray, train_truth: Mapping[str, Truth], test_features: np.ndarray
) -> dict[str, np.ndarray]:
    """For every task, logits float32 [test examples, C] of a probe fitted on all train examples.

    Its strength is the one that scores best on every fifth train example when fitted on the others; of equals, the
    strongest. A UserError where there are too few examples for that.
    """
    if len(train_features) <= VALIDATION_STRIDE:
        raise UserError(f"linear_fast has only {len(train_features)} train examples; give it more than {VALIDATION_STRIDE}")
    held_out = np.arange(len(train_features)) % VALIDATION_STRIDE == 0
    part, whole = make_basis(train_features[~held_out]), make_basis(train_features)
    scores = {}
    for task, (kind, classes) in train_truth.items():
        trials = fit(part, Truth(kind, classes[~held_out]), STRENGTHS).logits(train_features[held_out])
        strength = best_strength(Truth(kind, classes[held_out]), trials)
        scores[task] = fit(whole, Truth(kind, classes), [strength]).logits(test_features)[0]
    return scores


def best_strength(truth: Truth, logits_GxNxC: np.ndarray) -> float:
    """The one of STRENGTHS whose logits score best."""
    unsampled = np.ones((len(truth.classes), 1), np.float32)
    values = [measure(truth, logits, unsampled).value for logits in logits_GxNxC]
    return max(zip(values, STRENGTHS))[1]


class Basis(NamedTuple):
    """Features, standardised and turned into the eigenbasis of their covariance, with the way there."""

    mean: np.ndarray  # float32 [D]
    rotation: np.ndarray  # float64 [D, D]: coordinates = (features - mean) @ rotation
    spectrum: np.ndarray  # float32 [D], mean square of each coordinate
    coordinates: np.ndarray  # float32 [N, D]


class Probe(NamedTuple):
    """G linear classifiers, one for each strength."""

    mean: np.ndarray  # float32 [D]
    weights: np.ndarray  # float32 [G, D, C]
    bias: np.ndarray  # float32 [G, 1, C]

    def logits(self, features_NxD: np.ndarray) -> np.ndarray:
        """float32 [G, N, C]."""
        return (features_NxD - self.mean) @ self.weights + self.bias


def make_basis(features_NxD: np.ndarray) -> Basis:
    """Means, deviations and rotation are those of the given examples alone. A constant channel gets no weight."""
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


def fit(basis: Basis, truth: Truth, strengths: Sequence[float]) -> Probe:
    """Softmax over the classes (`single`) or a sigmoid for each (`multi`), at the optimum of every strength."""
    strengths_G = np.asarray(strengths, np.float32)
    done = _minimise(basis.coordinates, truth.classes, basis.spectrum, strengths_G, truth.kind)
    if done.largest_gradient > TOLERANCE:
        logging.warning(
            "linear_fast did not converge: after %d iterations the largest gradient is %.1e, above %.0e",
            done.iteration, done.largest_gradient, TOLERANCE,
        )
    parameters = np.asarray(done.parameters).transpose(1, 0, 2)  # [G, D + 1, C], the bias last
    weights = (basis.rotation @ parameters[:, :-1]).astype(np.float32)
    return Probe(basis.mean, weights, parameters[:, -1:])


class _Descent(NamedTuple):
    parameters: jax.Array  # float32 [D + 1, G, C], the bias last
    ahead: jax.Array  # where momentum carries the parameters, and the gradient is taken
    inertia: jax.Array  # Nesterov's t, of each problem that is solved
    largest_gradient: jax.Array
    iteration: jax.Array


@functools.partial(jax.jit, static_argnames="kind")
def _minimise(
    x_NxD: jax.Array, classes_NxC: jax.Array, spectrum_D: jax.Array, strengths_G: jax.Array, kind: Kind
) -> _Descent:
    (N, D), G, C = x_NxD.shape, len(strengths_G), classes_NxC.shape[1]
    x = jnp.concatenate([x_NxD, jnp.ones((N, 1))], axis=1)
    penalty = jnp.append(jnp.ones(D), 0.0)[:, None, None] * strengths_G[:, None]
    step_size = 1.0 / (CURVATURE[kind] * jnp.append(spectrum_D, 1.0)[:, None, None] + penalty)
    activation = jax.nn.softmax if kind == "single" else jax.nn.sigmoid
    # A softmax is one problem, each sigmoid is a problem of its own.
    problem_axes, problems = ((0, 2), (1, G, 1)) if kind == "single" else ((0,), (1, G, C))

    def gradient_at(parameters):
        logits = jnp.matmul(x, parameters.reshape(D + 1, G * C), precision="highest").reshape(N, G, C)
        error = (activation(logits) - classes_NxC[:, None]).reshape(N, G * C)
        return jnp.matmul(x.T, error, precision="highest").reshape(D + 1, G, C) / N + penalty * parameters

    def unfinished(carry):
        return (carry.largest_gradient > TOLERANCE) & (carry.iteration < MAX_ITERATIONS)

    def descend(carry):
        gradient = gradient_at(carry.ahead)
        parameters = carry.ahead - step_size * gradient
        moved = parameters - carry.parameters
        # Momentum is dropped where it runs uphill (O'Donoghue and Candes 2015).
        uphill = jnp.sum(gradient * moved, axis=problem_axes, keepdims=True) > 0
        inertia = jnp.where(uphill, 1.0, (1.0 + jnp.sqrt(1.0 + 4.0 * carry.inertia**2)) / 2.0)
        ahead = parameters + jnp.where(uphill, 0.0, (carry.inertia - 1.0) / inertia) * moved
        return _Descent(parameters, ahead, inertia, jnp.abs(gradient).max(), carry.iteration + 1)

    start = jnp.zeros((D + 1, G, C))
    return jax.lax.while_loop(unfinished, descend, _Descent(start, start, jnp.ones(problems), jnp.inf, 0))
