"""Builds networks from a configuration: encoder, predictor, conditioner, text encoder."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from tc_jepa.convert import t5
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.data.photometric import PARAMETERS
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners import Conditioner, CONDITIONERS
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.layers import Params
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.text.embedding import EmbeddingText, StoredWords
from tc_jepa.models.text.t5 import T5Encoder

Config = ml_collections.ConfigDict

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMATS = {"none": (False, False), "blocks": (True, False), "conditioner": (False, True), "all": (True, True)}
INITS = {"official": False, "depth_rescaled": True}  # of layers.Linear.depth_rescaled
PATCH_INITS = {"official": False, "fan_in": True}  # of vit.VisionTransformer.patch_fan_in
TEXT_ENCODERS = ("embedding", "t5", "stored")


def grid(config: Config) -> tuple[int, int]:
    """Rows and columns of patches."""
    side = config.image.size // config.model.patch_size
    return side, side


def linear(config: Config) -> layers.Linear:
    return layers.Linear(DTYPES[config.model.dtype], config.model.init_std, INITS[config.model.init])


def remat(config: Config) -> tuple[bool, bool]:
    """Returns whether transformer blocks, and whether layers of a conditioner, are computed again for gradients."""
    return REMATS[config.model.remat]


def encoder(config: Config, backend: Backend = PLAIN) -> vit.VisionTransformer:
    """The encoder as it is evaluated: without what saves memory and compilation in training."""
    chosen = config.model
    return vit.VisionTransformer(
        vit.SIZES[chosen.encoder],
        chosen.patch_size,
        linear(config),
        stem=chosen.stem if "stem" in chosen else "linear",  # runs older than the keys have the official one
        patch_fan_in=PATCH_INITS[chosen.patch_init if "patch_init" in chosen else "official"],
        backend=backend,
    )


def trained_encoder(config: Config, backend: Backend = PLAIN) -> vit.VisionTransformer:
    return encoder(config, backend).clone(
        remat=remat(config)[0], scan=config.model.scan_blocks, residual=DTYPES[config.model.residual_dtype]
    )


def predictor(config: Config, output_width: int, backend: Backend = PLAIN) -> Predictor:
    """The predictor, with its conditioner, of targets with `output_width` channels."""
    return Predictor(
        grid=grid(config),
        width=config.model.predictor.width,
        depth=config.model.predictor.depth,
        heads=vit.SIZES[config.model.encoder].heads,
        output_width=output_width,
        conditioner=conditioner(config, backend),
        linear=linear(config),
        position_noise=config.model.position_noise,
        position_noise_levels=config.model.position_noise_levels,
        corruption=len(PARAMETERS) if config.image.context_corruption else 0,
        remat=remat(config)[0],
        residual=DTYPES[config.model.residual_dtype],
        backend=backend,
    )


def conditioner(config: Config, backend: Backend = PLAIN) -> Conditioner:
    """The conditioner that model.conditioner names, with the values of the keys that it declares."""
    chosen = CONDITIONERS[config.model.conditioner]
    built = chosen.build(linear(config), remat(config)[1], settings(config.conditioner, chosen.keys))
    return built.clone(backend=backend)


def settings(group: Config, names: Iterable[str]) -> dict[str, Any]:
    """The values of some keys of a group by name. Lists, which a stored configuration has, become tuples."""
    values = {name: group[name] for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def text_encoder(config: Config, reader: CaptionReader | None) -> tuple[nn.Module | None, Params]:
    """Returns the text encoder for the captions that `reader` reads, and its parameters if they are frozen, else {}.

    Without a reader the text encoder is None.
    """
    if reader is None:
        return None, {}
    if config.model.text == "embedding":
        words = config.captions.words
        return EmbeddingText(reader.vocabulary_size, config.model.text_width, words, config.model.init_std), {}
    if config.model.text == "t5":
        size, params = t5.load(config.model.text_weights)
        t5.check_vocabulary(size, reader.vocabulary_size, t5.vocabulary(config.model.text_weights))
        return T5Encoder(size, DTYPES[config.model.text_dtype]), {"text": params}
    return StoredWords(), {"text": {}}
