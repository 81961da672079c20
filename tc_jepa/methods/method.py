"""The contract of a pretraining method: what is learned, and which encoder is evaluated.

The step, the train loop, checkpoints, the monitor, evaluation and the report know a method by this contract only.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from flax import traverse_util
import jax
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import VisionTransformer

Batch = Any  # a NamedTuple of tc_jepa.batch, with `images` uint8 [B, H, W, 3]
Metrics = dict[str, jax.Array]  # float32 scalars by name


class Method(Protocol):
    """A pretraining method as pure functions of explicit parameters.

    `params` are parameters by name of network; the one called "encoder" belongs to `encoder`. `extra` is what a method
    keeps beside them and the optimizer never sees: an average of the encoder, a teacher, or {} for nothing.
    """

    encoder: VisionTransformer
    mean_over_images: bool  # whether the loss of a batch is the mean of the losses of its equal parts
    heldout_variants: tuple[str, ...]  # the ways in which `heldout` looks at a batch, by name

    def init(
        self,
        key: jax.Array,
        example: Batch,
        frozen: Params,
        given: Params | None = None,
        given_extra: Params | None = None,
    ) -> tuple[Params, Params]:
        """Returns the trained parameters and the extra state before the first step.

        Args:
          key: the only source of randomness.
          example: one row of a batch, without the leading axis. Only its shapes and dtypes are used.
          frozen: parameters of networks that are not trained, by name. They are not part of the result.
          given: trained parameters that replace their initial values, nested like them and not necessarily complete.
          given_extra: the extra state of a method that does not derive it from the parameters, such as a teacher's.
        """

    def loss(
        self, params: Params, extra: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss and what is logged beside it: terms as "loss/NAME", and `feature_metrics` of features.

        Args:
          params: trained and frozen parameters.
          extra: the extra state.
          batch: the global batch.
          key: for random draws of the method's own.
          step: number of finished updates, int32 scalar.
        """

    def after_update(self, extra: Params, params: Params, step: jax.Array) -> Params:
        """Returns the extra state after an update to `params`; `step` is the number of updates before it."""

    def evaluation_encoder(self, params: Params, extra: Params) -> Params:
        """Returns the parameters of the encoder that is monitored, evaluated and exported."""

    def heldout(self, params: Params, extra: Params, batch: Batch, variant: jax.Array) -> Metrics:
        """Returns diagnostics of a held-out batch. `variant`, int32, is an index into `heldout_variants`."""

    def heldout_summary(self, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Returns what is logged, from the means over batches of what `heldout` returns for each variant by name."""


class Stateless:
    """What methods without extra state share: they train an encoder, evaluate it as it is, and report their loss.

    `head` names the field with the network that reads the encoder's pooled features [B, D], and so its parameters.
    """

    encoder: VisionTransformer
    head: ClassVar[str]
    mean_over_images: ClassVar[bool] = False
    heldout_variants: ClassVar[tuple[str, ...]] = ("loss",)

    def init(
        self,
        key: jax.Array,
        example: Batch,
        frozen: Params,
        given: Params | None = None,
        given_extra: Params | None = None,
    ) -> tuple[Params, Params]:
        """The parameters before training, and no extra state: see Method.init. Nothing is frozen."""
        del frozen, given_extra
        params = {"encoder": init_encoder(self.encoder, example.images.shape, key)}
        features = jnp.zeros((1, self.encoder.size.width))
        params[self.head], _ = initialise(getattr(self, self.head), jax.random.fold_in(key, 1), features)
        return (merge(params, given) if given else params), {}

    def features(self, params: Params, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] -> patch features float32 [B, N, D]."""
        return self.encoder.apply({"params": params["encoder"]}, layers.normalise_images(images))

    def after_update(self, extra: Params, params: Params, step: jax.Array) -> Params:
        return extra

    def evaluation_encoder(self, params: Params, extra: Params) -> Params:
        return params["encoder"]

    def heldout(self, params: Params, extra: Params, batch: Batch, variant: jax.Array) -> Metrics:
        """The loss and its terms, under the same random draws at every step."""
        loss, terms = self.loss(params, extra, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
        found = {name: value for name, value in terms.items() if name.startswith("loss/")}
        return {"heldout/loss": loss} | {name.replace("loss/", "heldout/"): value for name, value in found.items()}

    def heldout_summary(self, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return dict(means["loss"])


def init_encoder(encoder: VisionTransformer, image_shape: tuple[int, int, int], key: jax.Array) -> Params:
    """Returns an encoder's parameters before training. Every method calls it with the key of its own `init`.

    So "the encoder at initialisation" is a function of the seed alone, whatever else a run trains.
    """
    params, _ = initialise(encoder, jax.random.fold_in(key, 0), jnp.zeros((1, *image_shape)))
    return params


def initialise(module, key: jax.Array, *arguments) -> tuple[Params, Any]:
    """Returns a module's initial parameters ({} where it has none) and its output."""
    output, variables = module.init_with_output(key, *arguments)
    return variables["params"] if variables else {}, output


def merge(params: Params, given: Params) -> Params:
    """`params` with the entries of `given` in place of its own, at any depth."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | traverse_util.flatten_dict(given))
