"""Nearest neighbours: cosine similarity, votes weighted by temperature."""

from collections.abc import Mapping
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.evaluation.scores import Truth

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 512  # test examples a similarity matrix is made for at once


class Neighbours(NamedTuple):
    """Each test example's k most similar train examples, and the share of the vote that each has."""

    indices: np.ndarray  # int32 [N, k]
    weights: np.ndarray  # float32 [N, k], summing to 1 over k


def class_scores(
    train_features: np.ndarray, train_truth: Mapping[str, Truth], test_features: np.ndarray
) -> dict[str, np.ndarray]:
    """For every task, float32 [test examples, C] in 0-1: each class's share of the neighbours' vote."""
    found = neighbours(train_features, test_features)
    return {task: vote(found, truth.classes) for task, truth in train_truth.items()}


def neighbours(
    train_features: np.ndarray, test_features: np.ndarray, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Neighbours:
    """Features [N, D] -> neighbours, whatever the task. A UserError where there are fewer than k train examples."""
    if len(train_features) < k:
        raise UserError(f"kNN with k={k} has only {len(train_features)} train examples; give it at least {k}")
    return Neighbours(*map(np.asarray, _search(train_features, test_features, k, temperature)))


@functools.partial(jax.jit, static_argnames="k")
def _search(train_NxD: jax.Array, test_NxD: jax.Array, k: int, temperature: float) -> tuple[jax.Array, jax.Array]:
    train_NxD = _unit(train_NxD)

    def nearest(test_D):
        similarity, indices = jax.lax.top_k(jnp.matmul(train_NxD, _unit(test_D), precision="highest"), k)
        return indices, jax.nn.softmax(similarity / temperature)

    return jax.lax.map(nearest, test_NxD, batch_size=CHUNK)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def vote(found: Neighbours, truth_NxC: np.ndarray) -> np.ndarray:
    """The share of the vote for each class, float32 [test examples, C], from the train examples' bool [N, C]."""
    return np.einsum("nk,nkc->nc", found.weights, truth_NxC[found.indices], dtype=np.float32)
