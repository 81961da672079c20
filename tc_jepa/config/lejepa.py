"""From a configuration to LeJEPA: method.name=lejepa."""

from collections.abc import Sequence

import ml_collections

from tc_jepa.config import data, models
from tc_jepa.config.parts import MethodParts
from tc_jepa.config.stateless import averages_encoder as averages_encoder
from tc_jepa.config.stateless import reads_captions as reads_captions
from tc_jepa.config.stateless import teacher_path as teacher_path
from tc_jepa.data.inputs.views import Views
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.errors import UserError
from tc_jepa.methods.lejepa import LeJepa
from tc_jepa.methods.reporting import Diagnostics
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.projector import Projector
from tc_jepa.models.vit import VisionTransformer

Config = ml_collections.ConfigDict


def build(
    config: Config,
    words: Sequence[WordVectorFolder] = (),
    backend: Backend = PLAIN,
    teacher: VisionTransformer | None = None,
) -> MethodParts:
    """Returns the method and its inputs. It reads no captions and has no teacher."""
    chosen = config.lejepa
    projector = Projector(
        width=chosen.projector.width,
        depth=chosen.projector.depth,
        output_width=chosen.projector.output,
        linear=models.linear(config),
    )
    encoder = models.trained_encoder(config, backend)
    method = LeJepa(encoder, projector, weight=chosen.weight, slices=chosen.slices)
    views = inputs(config)
    return MethodParts(method, views, views)


def check(config: Config) -> None:
    """Raises UserError, naming the key, where LeJEPA cannot be trained by a configuration."""
    if config.train.batch_size < 2:
        raise UserError(
            f"train.batch_size={config.train.batch_size}: SIGReg needs at least 2 images", about="train.batch_size"
        )


def reads_labels(config: Config) -> bool:
    return False


def diagnostics(config: Config) -> Diagnostics:
    """What to change against collapse. Losses without a description of their own are charted by name."""
    return Diagnostics(against_collapse="Raise lejepa.weight, or lower optimizer.peak_learning_rate.")


def inputs(config: Config) -> Views:
    chosen = config.lejepa
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
    return Views(chosen.views, data.crop(config), photometric)
