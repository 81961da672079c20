"""Nearest neighbours: cosine similarity, votes weighted by temperature."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError

NEIGHBOURS = 20
FEWER = 10
TEMPERATURE = 0.07
CHUNK = 512  # test examples for each device, whose similarity to all train examples is in memory at once


class Neighbours(NamedTuple):
    """Each test example's k most similar train examples, the nearest first, and the share of the vote of each."""

    indices: np.ndarray  # int32 [N, k]
    weights: np.ndarray  # float32 [N, k], summing to 1 over k

    def nearest(self, k: int) -> "Neighbours":
        """The first k of them; their shares sum to 1 again."""
        weights = self.weights[:, :k]
        return Neighbours(self.indices[:, :k], weights / weights.sum(axis=1, keepdims=True))


def neighbours(
    train_features: np.ndarray, test_features: np.ndarray, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Neighbours:
    """Features float32 [N, D] -> neighbours, the test examples spread over this process's devices.

    A UserError where there are fewer than k train examples.
    """
    if len(train_features) < k:
        raise UserError(f"kNN with k={k} has only {len(train_features)} train examples; give it at least {k}")
    mesh = sharding.local_mesh()
    over_devices = sharding.batch_sharding(mesh)
    train = jax.device_put(np.asarray(_unit(train_features)), sharding.replicated(mesh))
    search = _compiled(over_devices, k)
    chunk = CHUNK * mesh.size
    parts = []
    for start in range(0, len(test_features), chunk):
        part = test_features[start : start + chunk]
        padded = np.pad(part, ((0, chunk - len(part)), (0, 0)))
        found = search(train, jax.device_put(padded, over_devices), temperature)
        parts.append([np.asarray(x)[: len(part)] for x in found])
    return Neighbours(*(np.concatenate(x) for x in zip(*parts)))


@functools.lru_cache
def _compiled(over_devices: jax.sharding.NamedSharding, k: int):
    return jax.jit(functools.partial(_search, k=k), out_shardings=over_devices)


def _search(train_NxD: jax.Array, test_BxD: jax.Array, temperature: float, *, k: int) -> tuple[jax.Array, jax.Array]:
    similarity_BxN = jnp.matmul(_unit(test_BxD), train_NxD.T, precision="highest")
    similarity_BxK, indices_BxK = jax.lax.top_k(similarity_BxN, k)
    return indices_BxK, jax.nn.softmax(similarity_BxK / temperature)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def vote(found: Neighbours, classes_NxC: np.ndarray) -> np.ndarray:
    """The share of the vote for each class, float32 [test examples, C], from the train examples' [N, C]: whether each
    is of a class, or to which part."""
    return np.einsum("nk,nkc->nc", found.weights, classes_NxC[found.indices], dtype=np.float32)
