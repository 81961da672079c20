"""Supervised training of the encoder: a ceiling beside which encoders that were trained without labels stand.

The features of all patches are averaged, and one linear layer for each task predicts the labels from the mean. So the
encoder is trained for what linear probes on pooled features measure.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tc_jepa.batch import LabelledBatch
from tc_jepa.methods.feature_metrics import feature_metrics
from tc_jepa.methods.method import Stateless
from tc_jepa.models.label_heads import LabelHeads
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import VisionTransformer


class Task(NamedTuple):
    """What is predicted: one of several classes (`single`), or which of them an image has (`multi`)."""

    name: str
    kind: Literal["single", "multi"]


@dataclasses.dataclass(frozen=True)
class Supervised(Stateless):
    """The method as a whole. The loss is the mean over tasks of their mean losses over images.

    A task of kind `single` has the cross-entropy over its classes. One of kind `multi` has the sum over its classes of
    their binary cross-entropies. So both are minus the log likelihood of an image's label, in nats. Parameters are of
    "encoder" and "heads"; there is no extra state.
    """

    encoder: VisionTransformer
    heads: LabelHeads  # of the same tasks
    tasks: tuple[Task, ...]

    head: ClassVar[str] = "heads"
    mean_over_images: ClassVar[bool] = True

    def loss(
        self, params: Params, extra: Params, batch: LabelledBatch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss; that of each task, "loss/TASK", and signs of collapse, float32 scalars."""
        del extra, key, step
        features = self.features(params, batch.images)
        logits = self.logits(params, features)
        terms = {task.name: task_loss(task.kind, logits[task.name], batch.labels[task.name]) for task in self.tasks}
        metrics = {f"loss/{name}": value for name, value in terms.items()} | feature_metrics(features)
        return jnp.stack(list(terms.values())).mean(), metrics

    def logits(self, params: Params, features_BxNxD: jax.Array) -> dict[str, jax.Array]:
        """Patch features -> by task, float32 [B, classes]."""
        return self.heads.apply({"params": params["heads"]}, features_BxNxD.mean(axis=1))


def task_loss(kind: Literal["single", "multi"], logits_BxC: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean loss of a batch, a scalar. Labels are int [B] for `single`, bool [B, C] for `multi`."""
    if kind == "single":
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits_BxC, labels).mean()
    return optax.losses.sigmoid_binary_cross_entropy(logits_BxC, labels.astype(jnp.float32)).sum(axis=-1).mean()
