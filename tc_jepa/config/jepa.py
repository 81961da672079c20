"""From a configuration to a JEPA: method.name=jepa."""

from collections.abc import Sequence
import dataclasses

from flax.core import FrozenDict
import ml_collections

from tc_jepa.config import data, jepa_rules, models
from tc_jepa.config.parts import MethodParts
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.data.inputs.jepa import CropAndCaptions, JepaInputs
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.masking import MASKS, MaskSampler
from tc_jepa.methods import jepa_reporting
from tc_jepa.methods.jepa import Jepa
from tc_jepa.methods.losses import Objective
from tc_jepa.methods.reporting import Diagnostics
from tc_jepa.methods.targets import EmaEncoder, FrozenTarget, Momentum, OnlineEncoder, Pixels, Target
from tc_jepa.models.conditioners import CONDITIONERS
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.vit import VisionTransformer

Config = ml_collections.ConfigDict

TARGETS = ("ema", "online", "frozen", "pixels")


def build(
    config: Config,
    words: Sequence[WordVectorFolder] = (),
    backend: Backend = PLAIN,
    teacher: VisionTransformer | None = None,
) -> MethodParts:
    """Returns the method and its inputs. `teacher` is the encoder of a frozen target."""
    reader = caption_reader(config, words)
    text, frozen = models.text_encoder(config, reader)
    encoder = models.trained_encoder(config, backend)
    predicted = target(config, encoder, teacher)
    method = Jepa(
        encoder=encoder,
        predictor=models.predictor(config, predicted.width, backend),
        text=text,
        target=predicted,
        objective=objective(config),
        momentum=momentum(config),
        joint_targets=config.model.joint_targets,
    )
    heldout_inputs = inputs(config, reader)
    captions = config.captions
    trained_on = dataclasses.replace(
        heldout_inputs,
        shuffle_captions=captions.shuffled,
        noise=captions.noise,
        noise_seed=config.train.seed,
        length_multiple=config.masking.length_multiple,
        corruption=corruption(config),
    )
    return MethodParts(method, trained_on, heldout_inputs, reader, frozen)


def check(config: Config) -> None:
    """Raises UserError, naming the keys, where a JEPA cannot be built from a configuration."""
    jepa_rules.check(config)
    masks(config)


def reads_captions(config: Config) -> bool:
    return CONDITIONERS[config.model.conditioner].reads_words


def caption_reader(config: Config, words: Sequence[WordVectorFolder] = ()) -> CaptionReader | None:
    """Of stored word vectors where there are any, else of texts; None where the predictor reads no captions."""
    return data.caption_reader(config, words) if reads_captions(config) else None


def reads_labels(config: Config) -> bool:
    return False


def averages_encoder(config: Config) -> bool:
    """Whether the evaluation encoder is the extra state, a moving average, and not the trained encoder itself."""
    return config.target_encoder.kind == "ema"


def teacher_path(config: Config) -> str:
    """The encoder whose features are predicted; empty for none."""
    return config.target_encoder.teacher if config.target_encoder.kind == "frozen" else ""


def diagnostics(config: Config) -> Diagnostics:
    """What the method offers to the report."""
    rectified = config.objective.regulariser == "rectified_cosine" and config.objective.sparsity > 0
    return jepa_reporting.diagnostics(reads_captions=reads_captions(config), rectified=rectified)


def target(config: Config, encoder: VisionTransformer, teacher: VisionTransformer | None) -> Target:
    if config.target_encoder.kind == "ema":
        return EmaEncoder(encoder, config.target_encoder.normalise)
    if config.target_encoder.kind == "frozen":
        return FrozenTarget(teacher, config.target_encoder.normalise)
    if config.target_encoder.kind == "online":
        return OnlineEncoder(encoder, config.target_encoder.normalise)
    return Pixels(config.model.patch_size)


def objective(config: Config) -> Objective:
    """The loss. Anti-collapse terms of weight 0 are left out of it."""
    values = dict(config.objective)
    weights = {name: weight for name, weight in values.pop("anti_collapse").items() if weight}
    return Objective(**values, anti_collapse=FrozenDict(weights))


def momentum(config: Config) -> Momentum:
    chosen = config.target_encoder
    return Momentum(chosen.start_momentum, chosen.final_momentum, config.train.steps)


def inputs(config: Config, reader: CaptionReader | None) -> JepaInputs:
    captions = config.captions
    return JepaInputs(
        CropAndCaptions(data.crop(config), reader, captions.per_image, captions.candidates), masks(config)
    )


def corruption(config: Config) -> Photometric | None:
    """What is done to the images that the context encoder sees, by IWM's recipe (arXiv 2403.00504); None for nothing.

    image.context_corruption scales the strengths of the colour jitter, not the probabilities.
    """
    strength = config.image.context_corruption
    if not strength:
        return None
    return Photometric(
        jitter_probability=0.8,
        brightness=0.4 * strength,
        contrast=0.4 * strength,
        saturation=0.2 * strength,
        hue=0.1 * strength,
        grey_probability=0.2,
        blur_probability=0.5,
        blur_sigma=(0.1, 2.0),
        solarise_probability=0.2,
    )


def masks(config: Config) -> MaskSampler:
    """Returns the mask sampler. UserError where the settings cannot be met."""
    sampler = MASKS[config.masking.kind]
    names = [field.name for field in dataclasses.fields(sampler) if field.name != "grid"]
    return sampler(models.grid(config), **models.settings(config.masking, names))
