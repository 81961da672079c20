"""From a resolved configuration to LeJEPA and its inputs."""

from collections.abc import Callable

import jax
import ml_collections

from tc_jepa.config import build
from tc_jepa.data.inputs.views import Views
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.pipeline import Crop
from tc_jepa.methods.lejepa import LeJepa
from tc_jepa.models.projector import Projector

Config = ml_collections.ConfigDict


def build_method(config: Config, constrain: Callable[[jax.Array], jax.Array] = build.unconstrained) -> LeJepa:
    chosen = config.lejepa
    projector = Projector(
        width=chosen.projector.width,
        depth=chosen.projector.depth,
        output_width=chosen.projector.output,
        linear=build.linear(config),
    )
    return LeJepa(build.encoder(config, constrain), projector, weight=chosen.weight, slices=chosen.slices)


def build_inputs(config: Config) -> Views:
    image, chosen = config.image, config.lejepa
    photometric = Photometric(
        jitter_probability=chosen.jitter_probability,
        brightness=chosen.brightness,
        contrast=chosen.contrast,
        saturation=chosen.saturation,
        hue=chosen.hue,
        grey_probability=chosen.grey_probability,
        blur_probability=chosen.blur_probability,
        blur_sigma=tuple(chosen.blur_sigma),
        solarise_probability=chosen.solarise_probability,
    )
    crop = Crop(image.size, tuple(image.crop_scale), tuple(image.crop_aspect), image.flip)
    return Views(chosen.views, crop, photometric)
