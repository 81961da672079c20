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
from tc_jepa.methods.method import init_encoder, initialise, merge, Stateless
from tc_jepa.models import layers
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

    mean_over_images: ClassVar[bool] = True

    def init(
        self,
        key: jax.Array,
        example: LabelledBatch,
        frozen: Params,
        given: Params | None = None,
        given_extra: Params | None = None,
    ) -> tuple[Params, Params]:
        """The parameters before training, and no extra state. `example` is one row of a batch, for its shapes.

        `given` parameters, nested as the trained ones, take the place of their initial values.
        """
        del frozen, given_extra  # nothing is frozen and there is no teacher
        params = {"encoder": init_encoder(self.encoder, example.images.shape, key)}
        features = jnp.zeros((1, self.encoder.size.width))
        params["heads"], _ = initialise(self.heads, jax.random.fold_in(key, 1), features)
        return (merge(params, given) if given else params), {}

    def loss(
        self, params: Params, extra: Params, batch: LabelledBatch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and that of each task, "loss/TASK", float32 scalars."""
        del extra, key, step
        logits = self.logits(params, batch.images)
        terms = {task.name: task_loss(task.kind, logits[task.name], batch.labels[task.name]) for task in self.tasks}
        return jnp.stack(list(terms.values())).mean(), {f"loss/{name}": value for name, value in terms.items()}

    def logits(self, params: Params, images: jax.Array) -> dict[str, jax.Array]:
        """uint8 [B, H, W, 3] -> by task, float32 [B, classes]."""
        patches = self.encoder.apply({"params": params["encoder"]}, layers.normalise_images(images))
        return self.heads.apply({"params": params["heads"]}, patches.mean(axis=1))


def task_loss(kind: Literal["single", "multi"], logits_BxC: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean loss of a batch, a scalar. Labels are int [B] for `single`, bool [B, C] for `multi`."""
    if kind == "single":
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits_BxC, labels).mean()
    return optax.losses.sigmoid_binary_cross_entropy(logits_BxC, labels.astype(jnp.float32)).sum(axis=-1).mean()
