"""From a configuration to CLIP, SigLIP and SPARC: method.name=contrastive."""

from collections.abc import Sequence
import math

import ml_collections

from tc_jepa.config import data, models
from tc_jepa.config.parts import MethodParts
from tc_jepa.config.stateless import averages_encoder as averages_encoder
from tc_jepa.config.stateless import teacher_path as teacher_path
from tc_jepa.data.inputs.pairs import CropAndCaption
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.errors import UserError
from tc_jepa.methods.contrastive import Contrastive
from tc_jepa.methods.reporting import Diagnostics
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.shared_space import CLIP_SCALE, SharedSpace
from tc_jepa.models.text.tower import TextTower
from tc_jepa.models.vit import VisionTransformer

Config = ml_collections.ConfigDict


def build(
    config: Config,
    words: Sequence[WordVectorFolder] = (),
    backend: Backend = PLAIN,
    teacher: VisionTransformer | None = None,
) -> MethodParts:
    """Returns the method and its inputs. It reads texts, trains its own text tower, and has no teacher."""
    chosen, reader = config.contrastive, data.tokenizer(config)
    linear, (remat, _) = models.linear(config), models.remat(config)
    text = TextTower(
        vocabulary_size=reader.vocabulary_size,
        width=chosen.text_width,
        depth=chosen.text_depth,
        heads=chosen.text_heads,
        words=config.captions.words,
        linear=linear,
        remat=remat,
    )
    most_scale = math.inf if chosen.loss == "siglip" else CLIP_SCALE  # big_vision's SigLIP does not limit it
    space = SharedSpace(chosen.width, chosen.scale, chosen.bias, most_scale, linear)
    encoder = models.trained_encoder(config, backend)
    method = Contrastive(encoder, text, space, chosen.loss, chosen.ring, chosen.fine_weight)
    pairs = CropAndCaption(data.crop(config), reader, config.captions.candidates)
    return MethodParts(method, pairs, pairs, reader)


def check(config: Config) -> None:
    """Raises UserError, naming the key, where the method cannot be trained by a configuration."""
    chosen, rows = config.contrastive, config.train.batch_size
    if rows < 2:
        raise UserError(
            f"train.batch_size={rows}: other images are negatives; give at least 2", about="train.batch_size"
        )
    if rows % chosen.ring:
        raise UserError(
            f"contrastive.ring={chosen.ring} does not divide train.batch_size={rows}; give a divisor",
            about="contrastive.ring",
        )
    if chosen.text_width % chosen.text_heads:
        raise UserError(
            f"contrastive.text_heads={chosen.text_heads} does not divide contrastive.text_width={chosen.text_width}",
            about="contrastive.text_heads",
        )


def reads_captions(config: Config) -> bool:
    return True


def reads_labels(config: Config) -> bool:
    return False


def diagnostics(config: Config) -> Diagnostics:
    """What to change against collapse. Losses without a description of their own are charted by name."""
    return Diagnostics(against_collapse="Raise train.batch_size, or lower optimizer.peak_learning_rate.")
