"""LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544) in its minimal form.

Several views of an image are encoded alike. Their projections are drawn to their mean, and SIGReg keeps them from
collapsing: it draws their distribution to an isotropic Gaussian. There is no teacher, no predictor, no stop-gradient,
and one trade-off. Source: github.com/rbalestr-lab/lejepa MINIMAL.md; there a class token is read through one more
linear layer, here the projector reads the mean of the patch features.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tc_jepa.batch import ViewBatch
from tc_jepa.methods.feature_metrics import feature_metrics
from tc_jepa.methods.method import Stateless
from tc_jepa.methods.sigreg import sigreg
from tc_jepa.models import layers
from tc_jepa.models.layers import Params
from tc_jepa.models.projector import Projector
from tc_jepa.models.vit import VisionTransformer


@dataclasses.dataclass(frozen=True)
class LeJepa(Stateless):
    """The method as a whole: what is initialised, what is minimised, what is evaluated.

    The loss is `weight` * SIGReg + (1 - `weight`) * invariance. SIGReg and the projector's batch normalisation are of
    the whole batch, so a batch cannot be computed in parts. `slices` is the number of SIGReg's random directions.
    Parameters are of "encoder" and "projector"; there is no extra state.
    """

    encoder: VisionTransformer
    projector: Projector
    weight: float
    slices: int

    head: ClassVar[str] = "projector"

    def loss(
        self, params: Params, extra: Params, batch: ViewBatch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, its unweighted terms, and signs of collapse, float32 scalars. `key` draws SIGReg's directions."""
        del extra, step
        features = self.features(params, batch.views)
        projections_VxBxP = self.project(params, features)
        terms = {"invariance": invariance(projections_VxBxP), "sigreg": sigreg(projections_VxBxP, key, self.slices)}
        return self.total(terms), {f"loss/{name}": value for name, value in terms.items()} | feature_metrics(features)

    def total(self, terms: dict[str, jax.Array]) -> jax.Array:
        return self.weight * terms["sigreg"] + (1.0 - self.weight) * terms["invariance"]

    def features(self, params: Params, views_BxVxHxWx3: jax.Array) -> jax.Array:
        """uint8 views -> patch features float32 [B, V, N, D]."""
        B, V = views_BxVxHxWx3.shape[:2]
        images = layers.normalise_images(views_BxVxHxWx3.reshape(B * V, *views_BxVxHxWx3.shape[2:]))
        features = self.encoder.apply({"params": params["encoder"]}, images)
        return features.reshape(B, V, *features.shape[1:])

    def project(self, params: Params, features_BxVxNxD: jax.Array) -> jax.Array:
        """Patch features -> projections float32 [V, B, P]. The projector normalises over all views of the batch."""
        B, V = features_BxVxNxD.shape[:2]
        pooled = features_BxVxNxD.mean(axis=2).reshape(B * V, -1)
        projections = self.projector.apply({"params": params["projector"]}, pooled)
        return projections.reshape(B, V, -1).swapaxes(0, 1)


def invariance(projections_VxBxP: jax.Array) -> jax.Array:
    """Mean squared distance of a view's projection from the mean over the views of its image, a channel."""
    return jnp.square(projections_VxBxP - projections_VxBxP.mean(axis=0)).mean()
