"""The door: from a resolved configuration to the typed objects that the rest of the library takes."""

from collections.abc import Callable
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from tc_jepa import optimizer
from tc_jepa.data import captions, pipeline
from tc_jepa.data.prepared import PreparedSource, splits, vocabulary_path
from tc_jepa.data.scenes import SceneSource
from tc_jepa.data.sources import Source, TRAIN, VALIDATION
from tc_jepa.errors import UserError
from tc_jepa.masking import BlockMasks, MaskSampler, OfficialMasks, RandomMasks
from tc_jepa.models import conditioner, layers, text, vit
from tc_jepa.models.predictor import Predictor
from tc_jepa.objective import Objective
from tc_jepa.state import Networks

Config = ml_collections.ConfigDict
Constrain = Callable[[jax.Array], jax.Array]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
HELD_OUT_SCENES = 10_000  # each of validation and test; drawn on the fly, so only those that are read cost anything


def unconstrained(x: jax.Array) -> jax.Array:
    return x


def grid(config: Config) -> tuple[int, int]:
    side = config.image.size // config.model.patch_size
    return side, side


def encoder(config: Config, constrain: Constrain = unconstrained) -> vit.VisionTransformer:
    return vit.VisionTransformer(vit.SIZES[config.model.encoder], config.model.patch_size, linear(config), constrain)


def linear(config: Config) -> layers.Linear:
    return layers.Linear(DTYPES[config.model.dtype], config.model.init_std)


def networks(config: Config, vocabulary_size: int, constrain: Constrain = unconstrained) -> Networks:
    return Networks(
        encoder=encoder(config, constrain),
        predictor=Predictor(
            grid=grid(config),
            width=config.model.predictor.width,
            depth=config.model.predictor.depth,
            heads=vit.SIZES[config.model.encoder].heads,
            conditioner=CONDITIONERS[config.model.conditioner](config.model.predictor.depth, linear(config)),
            linear=linear(config),
            constrain=constrain,
        ),
        text=text.EmbeddingText(vocabulary_size, config.model.text_width, config.captions.words, config.model.init_std),
    )


CONDITIONERS = {
    "none": lambda depth, linear: conditioner.Conditioner(),
    "word_cross_attention": conditioner.WordCrossAttention,
}
TEXT_ENCODERS = ("embedding",)


def objective(config: Config) -> Objective:
    return Objective(**config.objective)


def schedules(config: Config) -> optimizer.Schedules:
    return optimizer.Schedules(
        steps=config.train.steps,
        warmup_steps=config.optimizer.warmup_steps,
        start_learning_rate=config.optimizer.start_learning_rate,
        peak_learning_rate=config.optimizer.peak_learning_rate,
        final_learning_rate=config.optimizer.final_learning_rate,
        start_weight_decay=config.optimizer.start_weight_decay,
        final_weight_decay=config.optimizer.final_weight_decay,
        start_momentum=config.target_encoder.start_momentum,
        final_momentum=config.target_encoder.final_momentum,
    )


def masks(config: Config) -> MaskSampler:
    """UserError where the settings cannot be met."""
    return MASKS[config.masking.kind](config)


def _random_masks(config: Config) -> RandomMasks:
    masking = config.masking
    return RandomMasks(
        grid(config), masking.target_blocks, tuple(masking.ratio), masking.context_tokens, masking.min_context
    )


def _block_settings(config: Config) -> dict[str, Any]:
    masking = config.masking
    return {
        "grid": grid(config),
        "target_blocks": masking.target_blocks,
        "target_scale": tuple(masking.target_scale),
        "target_aspect": tuple(masking.target_aspect),
        "context_scale": tuple(masking.context_scale),
        "context_aspect": tuple(masking.context_aspect),
        "context_tokens": masking.context_tokens,
        "min_context": masking.min_context,
    }


MASKS = {
    "fixed": lambda config: BlockMasks(**_block_settings(config)),
    "official": lambda config: OfficialMasks(**_block_settings(config), group_size=config.masking.group_size),
    "random": _random_masks,
}


def source(config: Config, split: str) -> Source:
    """The data of one split; UserError where there is none."""
    if config.data.path:
        return PreparedSource(config.data.path, split)
    count = config.data.train_scenes if split == TRAIN else HELD_OUT_SCENES
    return SceneSource(config.data.scenes_seed, split, count, config.image.size)


def held_out_source(config: Config) -> Source:
    """Validation data for the monitor; where prepared data has none, the training data, said once."""
    if config.data.path and VALIDATION not in splits(config.data.path):
        logging.warning("%s has no split %r: the monitor looks at training images", config.data.path, VALIDATION)
        return source(config, TRAIN)
    return source(config, VALIDATION)


def tokenizer(config: Config) -> captions.CaptionTokenizer:
    """By precedence: the configured vocabulary, the one stored with the data, the scenes' own."""
    if config.captions.vocabulary:
        path = config.captions.vocabulary
    elif not config.data.path:
        path = captions.scenes_vocabulary_path()
    else:
        path = vocabulary_path(config.data.path)
        if path is None:
            raise UserError(
                f"{config.data.path} holds no vocabulary; give --config.captions.vocabulary=FILE, a SentencePiece model"
            )
    return captions.CaptionTokenizer(path, config.captions.words)


def augment(config: Config, tokenizer: captions.CaptionTokenizer) -> pipeline.Augment:
    image = config.image
    crop = pipeline.Crop(image.size, tuple(image.crop_scale), tuple(image.crop_aspect), image.flip)
    return pipeline.Augment(crop, tokenizer, config.captions.per_image)
