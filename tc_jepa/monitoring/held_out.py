"""Looks at held-out images on the way, which change nothing of the training.

A self-supervised loss does not measure the features: it may rise while they improve and fall as they collapse. So the
monitor measures the spread of the evaluation encoder's features, and what the method reports of itself.
"""

from collections.abc import Callable, Iterator
import functools

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.data import pipeline
from tc_jepa.distributed import sharding
from tc_jepa.evaluation.tasks.rank import (
    constant_share,
    deviations,
    effective_number,
    feature_std,
    participation_ratio,
    rankme,
)
from tc_jepa.experiment.experiment import Experiment
from tc_jepa.methods.method import Batch
from tc_jepa.models import layers
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import VisionTransformer
from tc_jepa.state import TrainState

SEED = 0  # the same held-out images and draws in every run


def held_out_monitor(
    experiment: Experiment, layout: TrainState, frozen: Params
) -> Callable[[TrainState], dict[str, float]]:
    """Returns a function from the train state to metrics of held-out images.

    The experiment has a mesh; `layout` are the shardings of the train state, `frozen` the frozen parameters on devices.
    """
    mesh, method = experiment.mesh, experiment.method
    images = sharding.batch_sharding(mesh)
    everywhere = sharding.replicated(mesh)
    heldout = jax.jit(
        lambda params, extra, frozen, batch, variant: method.heldout({**frozen, **params}, extra, batch, variant),
        in_shardings=(layout.params, layout.extra, None, images, None),
        out_shardings=everywhere,
    )
    encoder_layout = method.evaluation_encoder(layout.params, layout.extra)
    features_of = jax.jit(
        functools.partial(pooled_and_energy, method.encoder),
        in_shardings=(encoder_layout, images),
        out_shardings=everywhere,
    )
    batches = _batches(experiment)

    def look(state: TrainState) -> dict[str, float]:
        numbers = {name: [] for name in method.heldout_variants}
        features, energies = [], []
        for batch in batches():
            batch = sharding.put_batch(mesh, batch)
            # One by one: on CPUs of several processes, programs in flight at once can wait for each other for ever.
            for index, name in enumerate(method.heldout_variants):
                numbers[name].append(jax.device_get(heldout(state.params, state.extra, frozen, batch, index)))
            encoder = method.evaluation_encoder(state.params, state.extra)
            pooled, energy = jax.device_get(features_of(encoder, batch.images))
            features.append(pooled)
            energies.append(energy)
        means = {
            name: {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            for name, found in numbers.items()
        }
        return method.heldout_summary(means) | ranks(np.concatenate(features), float(np.mean(energies)))

    return look


def pooled_and_energy(encoder: VisionTransformer, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of the patch features of each image, [B, D], and the mean of their squared norms, a scalar."""
    features_BxNxD = encoder.apply({"params": params}, layers.normalise_images(images))
    return features_BxNxD.mean(axis=1), jnp.square(features_BxNxD).sum(axis=-1).mean()


def ranks(pooled_BxD: np.ndarray, energy: float) -> dict[str, float]:
    """Returns how many directions pooled features use, and how far they spread, by name in metrics.jsonl.

    `energy` is the mean squared norm of the patch features whose means over images are `pooled_BxD`.

    rank/rankme_centred: RankMe of the features without their mean.
    rank/rankme: RankMe as published, which a constant vector that all features share pulls to 1.
    rank/participation: participation ratio of the covariance.
    rank/constant_share: energy of the constant vector over that of the patch features.
    rank/feature_std: standard deviation of a channel over images, mean over channels.
    direction_n/deviation: standard deviation along the n-th principal direction, n = 1, 2, 4, 8, ...: the spectrum.
    """
    spectrum = deviations(pooled_BxD)
    return {
        "rank/rankme": rankme(pooled_BxD),
        "rank/rankme_centred": effective_number(spectrum),
        "rank/participation": participation_ratio(pooled_BxD),
        "rank/constant_share": constant_share(pooled_BxD.mean(axis=0), energy),
        "rank/feature_std": feature_std(pooled_BxD),
    } | {f"direction_{2**i}/deviation": float(spectrum[2**i - 1]) for i in range(len(spectrum).bit_length())}


def held_out_size(width: int, batch_size: int, available: int, devices: int) -> tuple[int, int]:
    """Returns (images a batch, batches): at least 2 x width images for a meaningful rank, if there are as many.

    No image is counted twice unless there are fewer than devices, whose number a batch must be divisible by.
    """
    batch = max(min(batch_size, available) // devices * devices, devices)
    wanted = -(-2 * width // batch)
    return batch, max(1, min(wanted, available // batch))


def _batches(experiment: Experiment) -> Callable[[], Iterator[Batch]]:
    """A function that reads the batches anew at each look: they may be too large to keep."""
    width, available = experiment.method.encoder.size.width, len(experiment.held_out)
    batch_size, count = held_out_size(width, experiment.config.train.batch_size, available, experiment.mesh.size)
    if batch_size * count < 2 * width:
        logging.warning("only %d held-out images: RankMe of %d channels wants %d", available, width, 2 * width)
    dataset = experiment.heldout_batches(batch_size, SEED)
    return lambda: pipeline.iterate(dataset, start=0, stop=count, workers=0)
