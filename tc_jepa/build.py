"""The door: from a resolved configuration to the typed objects that the rest of the library takes."""

from collections.abc import Callable
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from tc_jepa import optimizer, targets
from tc_jepa.convert import t5
from tc_jepa.data import captions, pipeline
from tc_jepa.data.prepared import Features, PreparedSource, splits, vocabulary_path
from tc_jepa.data.scenes import SceneSource
from tc_jepa.data.sources import Source, TRAIN, VALIDATION
from tc_jepa.errors import UserError
from tc_jepa.masking import BlockMasks, MaskSampler, OfficialMasks, RandomMasks
from tc_jepa.models import conditioner, fusion, layers, vit
from tc_jepa.models.compared_conditioners import AdaptiveNorm, InputFeature, WordSequence
from tc_jepa.models.cross_attention import CaptionCrossAttention, CrossAttentionForm, WordCrossAttention
from tc_jepa.models.layers import Params
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.t5 import T5Encoder
from tc_jepa.models.text import EmbeddingText
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
    return vit.VisionTransformer(
        vit.SIZES[config.model.encoder], config.model.patch_size, linear(config), constrain=constrain
    )


def linear(config: Config) -> layers.Linear:
    return layers.Linear(DTYPES[config.model.dtype], config.model.init_std, INITS[config.model.init])


def networks(
    config: Config,
    text_encoder: EmbeddingText | T5Encoder,
    teacher: vit.VisionTransformer | None = None,
    constrain: Constrain = unconstrained,
) -> Networks:
    online = encoder(config, constrain)
    predicted = target(config, online, teacher)
    return Networks(
        encoder=online,
        predictor=Predictor(
            grid=grid(config),
            width=config.model.predictor.width,
            depth=config.model.predictor.depth,
            heads=vit.SIZES[config.model.encoder].heads,
            output_width=predicted.width,
            conditioner=CONDITIONERS[config.model.conditioner](config),
            linear=linear(config),
            position_noise=config.model.position_noise,
            constrain=constrain,
        ),
        text=text_encoder,
        target=predicted,
        joint_targets=config.model.joint_targets,
    )


def target(config: Config, online: vit.VisionTransformer, teacher: vit.VisionTransformer | None) -> targets.Target:
    if config.target_encoder.kind == "ema":
        return targets.EmaEncoder(online, config.target_encoder.normalise)
    if config.target_encoder.kind == "frozen":
        return targets.FrozenEncoder(teacher, config.target_encoder.normalise)
    if config.target_encoder.kind == "pixels":
        return targets.Pixels(config.model.patch_size)
    raise UserError(f"target_encoder.kind={config.target_encoder.kind!r} is unknown; one of {', '.join(TARGETS)}")


def text_encoder(config: Config, vocabulary_size: int) -> tuple[EmbeddingText | T5Encoder, Params]:
    """The text encoder, and its parameters where they are not trained (else none)."""
    if config.model.text == "embedding":
        words = config.captions.words
        return EmbeddingText(vocabulary_size, config.model.text_width, words, config.model.init_std), {}
    if config.model.text == "t5":
        size, params = t5.load(config.model.text_weights)
        t5.check_vocabulary(size, vocabulary_size, t5.vocabulary(config.model.text_weights))
        return T5Encoder(size, DTYPES[config.model.text_dtype]), {"text": params}
    raise UserError(f"model.text={config.model.text!r} is unknown; one of {', '.join(TEXT_ENCODERS)}")


def cross_attention_layers(config: Config) -> tuple[int, ...]:
    return tuple(config.conditioner.layers) or tuple(range(config.model.predictor.depth))


def cross_attention_form(config: Config) -> CrossAttentionForm:
    chosen = config.conditioner
    return CrossAttentionForm(
        heads=chosen.heads,
        scaled=chosen.scaled,
        pre_norm=chosen.pre_norm,
        mlp_ratio=chosen.mlp_ratio,
        fuse_first=chosen.fuse_first,
        fusion=FUSIONS[chosen.fusion],
    )


CONDITIONERS = {
    "none": lambda config: conditioner.Conditioner(),
    "word_cross_attention": lambda config: WordCrossAttention(
        cross_attention_layers(config), linear(config), cross_attention_form(config)
    ),
    "caption_cross_attention": lambda config: CaptionCrossAttention(
        cross_attention_layers(config), linear(config), cross_attention_form(config)
    ),
    "adaln": lambda config: AdaptiveNorm(linear(config), FUSIONS[config.conditioner.fusion]),
    "feature": lambda config: InputFeature(linear(config), FUSIONS[config.conditioner.fusion]),
    "sequence": lambda config: WordSequence(linear(config)),
}
FUSIONS = {"max": fusion.MaxPool, "mean": fusion.MeanPool, "attention": fusion.AttentionPool}
INITS = {"official": False, "depth_rescaled": True}  # of layers.Linear.depth_rescaled
TEXT_ENCODERS = ("embedding", "t5")
TARGETS = ("ema", "frozen", "pixels")


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
        return PreparedSource(config.data.path, split, features(config))
    count = config.data.train_scenes if split == TRAIN else HELD_OUT_SCENES
    return SceneSource(config.data.scenes_seed, split, count, config.image.size)


def features(config: Config) -> Features:
    """What the data's features are to us."""
    data = config.data
    return Features(
        data.image_feature, tuple(data.caption_features), tuple(data.description_features), tuple(data.label_features)
    )


def held_out_source(config: Config) -> Source:
    """Validation data for the monitor; where prepared data has none, the training data, said once."""
    if config.data.path and VALIDATION not in splits(config.data.path):
        logging.warning("%s has no split %r: the monitor looks at training images", config.data.path, VALIDATION)
        return source(config, TRAIN)
    return source(config, VALIDATION)


def tokenizer(config: Config) -> captions.CaptionTokenizer:
    """By precedence: the T5's own vocabulary, the configured one, the one stored with the data, the scenes' own."""
    if config.model.text == "t5":
        path = t5.vocabulary(config.model.text_weights)
    elif config.captions.vocabulary:
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
    return pipeline.Augment(crop, tokenizer, config.captions.per_image, config.captions.candidates)
