"""knn: nearest neighbours by cosine similarity, with votes weighted by temperature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation import labels
from tc_jepa.evaluation.task import LABELS, Outcome, Score, Task, TaskInputs, train_and_test

NEIGHBOURS = 20
FEWER = 10
TEMPERATURE = 0.07
CHUNK = 512  # test examples a device whose similarity to all train examples is in memory at once


def run(inputs: TaskInputs) -> Outcome:
    """Scores "knn/LABELS" and "knn_10/LABELS"."""
    found = neighbours(inputs.features["train"]["pooled"], inputs.features["test"]["pooled"])
    answers = {
        (name, label_set): labels.Answer([vote(nearest, truth.classes)], nearest=nearest.indices)
        for name, nearest in (("knn", found), (f"knn_{FEWER}", found.nearest(FEWER)))
        for label_set, truth in inputs.train.truth.items()
    }
    return labels.outcome(inputs, answers)


TASK = Task(
    "knn",
    run,
    needs=(LABELS,),
    features=train_and_test("pooled"),
    scores=(
        Score("knn", "The 20 nearest by cosine.", headline=True),
        Score(f"knn_{FEWER}", f"The {FEWER} nearest by cosine."),
    ),
    during_training=True,
)


class Neighbours(NamedTuple):
    """The k most similar train examples of each test example, the nearest first, and their shares of the vote."""

    indices: np.ndarray  # int32 [N, k]
    weights: np.ndarray  # float32 [N, k], summing to 1 over k

    def nearest(self, k: int) -> "Neighbours":
        """The first k of them. Their shares sum to 1 again."""
        weights = self.weights[:, :k]
        return Neighbours(self.indices[:, :k], weights / weights.sum(axis=1, keepdims=True))


def neighbours(train_features: np.ndarray, test_features: np.ndarray) -> Neighbours:
    """The neighbours of the test examples, from features float32 [N, D]; spread over this process's devices.

    Raises UserError where there are fewer train examples than NEIGHBOURS.
    """
    if len(train_features) < NEIGHBOURS:
        fix = f"give it at least {NEIGHBOURS}"
        raise UserError(f"kNN with k={NEIGHBOURS} has only {len(train_features)} train examples; {fix}")
    mesh = sharding.local_mesh()
    over_devices = sharding.batch_sharding(mesh)
    train = jax.device_put(np.asarray(_unit(train_features)), sharding.replicated(mesh))
    chunk = CHUNK * mesh.size
    parts = []
    for start in range(0, len(test_features), chunk):
        part = test_features[start : start + chunk]
        padded = np.pad(part, ((0, chunk - len(part)), (0, 0)))
        found = _search(train, jax.device_put(padded, over_devices))
        parts.append([np.asarray(x)[: len(part)] for x in found])
    return Neighbours(*(np.concatenate(x) for x in zip(*parts)))


@jax.jit
def _search(train_NxD: jax.Array, test_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    similarity_BxN = jnp.matmul(_unit(test_BxD), train_NxD.T, precision="highest")
    similarity_BxK, indices_BxK = jax.lax.top_k(similarity_BxN, NEIGHBOURS)
    return indices_BxK, jax.nn.softmax(similarity_BxK / TEMPERATURE)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def vote(found: Neighbours, classes_NxC: np.ndarray) -> np.ndarray:
    """The share of the vote for each class: float32 [test examples, C].

    `classes_NxC` says of each train example whether it is of a class, or to which share.
    """
    return np.einsum("nk,nkc->nc", found.weights, classes_NxC[found.indices], dtype=np.float32)
