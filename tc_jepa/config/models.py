"""From a configuration to networks: encoder, predictor, conditioner, text encoder."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from tc_jepa.convert import t5
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners import base, fusion
from tc_jepa.models.conditioners.compared import AdaptiveNorm, InputFeature, WordSequence
from tc_jepa.models.conditioners.cross_attention import CaptionCrossAttention, CrossAttentionForm, WordCrossAttention
from tc_jepa.models.layers import Params
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.text.embedding import EmbeddingText, StoredWords
from tc_jepa.models.text.t5 import T5Encoder

Config = ml_collections.ConfigDict
Constrain = Callable[[jax.Array], jax.Array]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
FUSIONS = {"max": fusion.MaxPool, "mean": fusion.MeanPool, "attention": fusion.AttentionPool}
INITS = {"official": False, "depth_rescaled": True}  # of layers.Linear.depth_rescaled
TEXT_ENCODERS = ("embedding", "t5", "stored")


def unconstrained(x: jax.Array) -> jax.Array:
    """Leaves an activation where it is: the `constrain` of networks that run on one device."""
    return x


def grid(config: Config) -> tuple[int, int]:
    """Rows and columns of patches."""
    side = config.image.size // config.model.patch_size
    return side, side


def linear(config: Config) -> layers.Linear:
    return layers.Linear(DTYPES[config.model.dtype], config.model.init_std, INITS[config.model.init])


def encoder(config: Config, constrain: Constrain = unconstrained) -> vit.VisionTransformer:
    size = vit.SIZES[config.model.encoder]
    return vit.VisionTransformer(size, config.model.patch_size, linear(config), constrain=constrain)


def predictor(config: Config, output_width: int, constrain: Constrain = unconstrained) -> Predictor:
    """The predictor of features of `output_width` channels, with its conditioner."""
    return Predictor(
        grid=grid(config),
        width=config.model.predictor.width,
        depth=config.model.predictor.depth,
        heads=vit.SIZES[config.model.encoder].heads,
        output_width=output_width,
        conditioner=CONDITIONERS[config.model.conditioner](config),
        linear=linear(config),
        position_noise=config.model.position_noise,
        constrain=constrain,
    )


def cross_attention_layers(config: Config) -> tuple[int, ...]:
    return tuple(config.conditioner.layers) or tuple(range(config.model.predictor.depth))


def cross_attention_form(config: Config) -> CrossAttentionForm:
    chosen = config.conditioner
    return CrossAttentionForm(
        heads=chosen.heads,
        scaled=chosen.scaled,
        pre_norm=chosen.pre_norm,
        mlp_ratio=chosen.mlp_ratio,
        post_norm=chosen.post_norm,
        fuse_first=chosen.fuse_first,
        fusion=FUSIONS[chosen.fusion],
    )


CONDITIONERS = {
    "none": lambda config: base.Conditioner(),
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


def text_encoder(config: Config, reader: CaptionReader | None) -> tuple[nn.Module | None, Params]:
    """Returns the text encoder for what `reader` reads, and its parameters where they are not trained (else {}).

    None without a reader.
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
