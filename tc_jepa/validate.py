"""Every rule between configuration keys that can be checked before any data is read or device is used."""

from collections.abc import Collection
import math

from absl import logging
import ml_collections

from tc_jepa import build
from tc_jepa.errors import UserError
from tc_jepa.masking import check_range
from tc_jepa.models import vit
from tc_jepa.objective import PREDICTION_FORMS


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, one line that names the keys, where the configuration cannot be run."""
    _one_of("model.encoder", config.model.encoder, vit.SIZES)
    _one_of("model.conditioner", config.model.conditioner, build.CONDITIONERS)
    _one_of("model.text", config.model.text, build.TEXT_ENCODERS)
    _one_of("model.dtype", config.model.dtype, build.DTYPES)
    _one_of("masking.kind", config.masking.kind, build.MASKS)
    _one_of("objective.prediction", config.objective.prediction, PREDICTION_FORMS)

    for group, names in {
        "train": ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "eval_every"),
        "data": ("train_scenes",),
        "image": ("size",),
        "captions": ("per_image", "words"),
        "model": ("patch_size", "text_width"),
        "evaluation": ("train_examples", "test_examples", "batch_size"),
    }.items():
        for name in names:
            _at_least(f"{group}.{name}", config[group][name], 1)
    for name in ("width", "depth"):
        _at_least(f"model.predictor.{name}", config.model.predictor[name], 1)
    for name in ("sparsity", "consistency", "warmup_steps"):
        _at_least(f"objective.{name}", config.objective[name], 0)
    _at_least("optimizer.warmup_steps", config.optimizer.warmup_steps, 0)
    _at_least("data.workers", config.data.workers, 0)
    if config.model.init_std <= 0:
        raise UserError(f"model.init_std={config.model.init_std} must be positive")
    for name in ("start_momentum", "final_momentum"):
        if not 0 <= config.target_encoder[name] <= 1:
            raise UserError(f"target_encoder.{name}={config.target_encoder[name]} must lie between 0 and 1")

    size, patch = config.image.size, config.model.patch_size
    if size % patch:
        raise UserError(
            f"image.size={size} is not divisible by model.patch_size={patch}; the nearest sizes that are: "
            f"{size // patch * patch} and {(size // patch + 1) * patch}"
        )
    check_range("image.crop_scale", config.image.crop_scale, 1.0)
    check_range("image.crop_aspect", config.image.crop_aspect, math.inf)
    width, heads = config.model.predictor.width, vit.SIZES[config.model.encoder].heads
    if width % heads or width % 4:
        raise UserError(
            f"model.predictor.width={width} must be divisible by 4 and by the {heads} heads of "
            f"model.encoder={config.model.encoder}"
        )
    build.masks(config)  # refuses impossible masks by itself
    if config.image.flip and config.model.conditioner != "none":
        logging.warning("image.flip mirrors images but not captions: 'left of' becomes false in half of them")


def _one_of(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; one of {', '.join(choices)}")


def _at_least(name: str, value: float, low: float) -> None:
    if value < low:
        raise UserError(f"{name}={value} must be at least {low}")
