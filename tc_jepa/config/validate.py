"""Every rule between configuration keys that can be checked before any data is read or device is used."""

from collections.abc import Collection
import math

from absl import logging
import ml_collections

from tc_jepa.config import data, jepa, models
from tc_jepa.data.mixtures import whole_weights
from tc_jepa.data.prepared import Features
from tc_jepa.data.scenes.source import LEVELS, STANDARD
from tc_jepa.errors import UserError
from tc_jepa.masking import check_range
from tc_jepa.methods.losses import PREDICTION_FORMS, REGULARISER_FORMS
from tc_jepa.models import vit
from tc_jepa.models.conditioners.cross_attention import CrossAttentionForm

USUAL = CrossAttentionForm()
ONLINE_TASKS = ("knn", "linear_fast", "lowshot", "rank")  # of an evaluation: those that keep no patches of many images
CROSS_ATTENTION_KEYS = ("fuse_first", "heads", "scaled", "pre_norm", "mlp_ratio", "post_norm")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, one line that names the keys, where the configuration cannot be run."""
    _one_of("model.encoder", config.model.encoder, vit.SIZES)
    _one_of("model.conditioner", config.model.conditioner, models.CONDITIONERS)
    _one_of("model.text", config.model.text, models.TEXT_ENCODERS)
    _one_of("model.dtype", config.model.dtype, models.DTYPES)
    _one_of("masking.kind", config.masking.kind, jepa.MASKS)
    _one_of("data.scenes_level", config.data.scenes_level, LEVELS)
    _one_of("model.text_dtype", config.model.text_dtype, models.DTYPES)
    _one_of("model.init", config.model.init, models.INITS)
    _one_of("conditioner.fusion", config.conditioner.fusion, models.FUSIONS)
    _one_of("objective.prediction", config.objective.prediction, PREDICTION_FORMS)
    _one_of("objective.regulariser", config.objective.regulariser, REGULARISER_FORMS)
    _one_of("target_encoder.kind", config.target_encoder.kind, jepa.TARGETS)

    for name in config.train.eval_tasks.split(",") if config.train.eval_tasks else ():
        _one_of("train.eval_tasks", name, ONLINE_TASKS)

    for group, names in {
        "train": (
            "steps",
            "batch_size",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "eval_every",
            "eval_examples",
        ),
        "data": ("train_scenes",),
        "image": ("size",),
        "captions": ("per_image", "words"),
        "model": ("patch_size", "text_width"),
    }.items():
        for name in names:
            _at_least(f"{group}.{name}", config[group][name], 1)
    for name in ("width", "depth"):
        _at_least(f"model.predictor.{name}", config.model.predictor[name], 1)
    for name in ("sparsity", "consistency", "warmup_steps"):
        _at_least(f"objective.{name}", config.objective[name], 0)
    _at_least("train.eval_examples", config.train.eval_examples, 1)
    check_evaluation(config)
    _at_least("optimizer.warmup_steps", config.optimizer.warmup_steps, 0)
    _at_least("data.workers", config.data.workers, 0)
    _at_least("captions.candidates", config.captions.candidates, 0)
    for name, value in {
        "model.init_std": config.model.init_std,
        "conditioner.mlp_ratio": config.conditioner.mlp_ratio,
        "objective.temperature": config.objective.temperature,
    }.items():
        if value <= 0:
            raise UserError(f"{name}={value} must be positive")
    _at_least("model.position_noise", config.model.position_noise, 0)
    _at_least("conditioner.heads", config.conditioner.heads, 1)
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
    _check_features(config)
    _check_conditioner(config)
    _check_target(config)
    _check_data(config)
    jepa.masks(config)  # refuses impossible masks by itself
    if config.captions.shuffled and config.model.conditioner == "none":
        raise UserError("captions.shuffled would have no effect with model.conditioner=none; leave it out")
    if config.captions.shuffled and config.train.batch_size < 2:
        raise UserError("captions.shuffled needs other images in the batch; give a train.batch_size of at least 2")
    if config.image.flip and config.model.conditioner != "none":
        logging.warning("image.flip mirrors images but not captions: 'left of' becomes false in half of them")


def _check_features(config: ml_collections.ConfigDict) -> None:
    chosen = data.features(config)
    if not config.data.path and chosen != Features():
        raise UserError(
            "data.image_feature and the like name features of data.path, which is not given; leave them out"
        )
    both = set(chosen.captions) & set(chosen.descriptions)
    if both:
        names = ", ".join(sorted(both))
        raise UserError(f"{names} is in data.caption_features and in data.description_features; leave it out of one")


def _check_conditioner(config: ml_collections.ConfigDict) -> None:
    chosen, depth, width = config.conditioner, config.model.predictor.depth, config.model.predictor.width
    wrong = [layer for layer in chosen.layers if not 0 <= layer < depth]
    if wrong or len(set(chosen.layers)) < len(chosen.layers):
        raise UserError(
            f"conditioner.layers={tuple(chosen.layers)} must be different layers of the predictor, 0 to {depth - 1}"
        )
    if width % chosen.heads:
        raise UserError(f"model.predictor.width={width} is not divisible by conditioner.heads={chosen.heads}")
    kind = config.model.conditioner
    idle = []
    if kind not in ("word_cross_attention", "caption_cross_attention"):
        form = models.cross_attention_form(config)
        idle = [f"conditioner.{name}" for name in CROSS_ATTENTION_KEYS if getattr(form, name) != getattr(USUAL, name)]
        idle += ["conditioner.layers"] * bool(chosen.layers)
    if kind in ("none", "sequence") and models.FUSIONS[chosen.fusion] is not USUAL.fusion:
        idle.append("conditioner.fusion")
    if idle:
        raise UserError(f"{', '.join(idle)} would have no effect with model.conditioner={kind}; leave it out")


def _check_target(config: ml_collections.ConfigDict) -> None:
    target, text = config.target_encoder, config.model
    if (target.kind == "frozen") != bool(target.teacher):
        raise UserError(
            f"target_encoder.kind={target.kind} and target_encoder.teacher={target.teacher!r} do not fit: a frozen "
            "teacher, and nothing else, needs a workdir or a folder with an encoder"
        )
    if target.kind == "pixels" and config.objective.prediction != "mse":
        raise UserError(
            f"target_encoder.kind=pixels is trained by objective.prediction=mse, not {config.objective.prediction}"
        )
    if text.text == "embedding" and text.text_weights or text.text == "t5" and not text.text_weights:
        raise UserError(
            f"model.text={text.text} and model.text_weights={text.text_weights!r} do not fit: t5 needs the folder of a "
            "Hugging Face T5, and learned words have none"
        )
    if text.text == "t5" and config.captions.vocabulary:
        raise UserError("captions.vocabulary has no place beside model.text=t5, which brings its own; leave it out")


def _check_data(config: ml_collections.ConfigDict) -> None:
    paths, weights, vectors = data.data_paths(config), config.data.weights, config.captions.vectors
    if paths and config.data.scenes_level != STANDARD:
        raise UserError(
            f"data.scenes_level={config.data.scenes_level} would have no effect beside data.path; leave it out"
        )
    if "" in paths:
        raise UserError(f"data.path={config.data.path!r} names an empty path; separate folders with single commas")
    if weights and (len(paths) < 2 or len(weights) != len(paths)):
        raise UserError(
            f"data.weights={tuple(weights)} are {len(weights)} for {len(paths)} datasets in data.path; give one for "
            "each of several, or none"
        )
    if weights:
        whole_weights(weights)  # refuses impossible ones by itself
    if (config.model.text == "stored") != bool(vectors):
        raise UserError(
            f"model.text={config.model.text} and captions.vectors={vectors!r} do not fit: stored, and nothing else, "
            "needs the folder that launch.encode_captions wrote"
        )
    if vectors and len(vectors.split(",")) != len(paths):
        raise UserError(
            f"captions.vectors names {len(vectors.split(','))} folders for {len(paths)} datasets in data.path; give "
            "one for each, separated by commas (scenes drawn on the fly have none)"
        )


def check_evaluation(config: ml_collections.ConfigDict) -> None:
    """The rules of the group `evaluation` alone, which launch.evaluate may have changed."""
    for name in ("train_examples", "test_examples", "dense_examples", "batch_size"):
        _at_least(f"evaluation.{name}", config.evaluation[name], 1)
    for name in ("views", "image_size"):
        _at_least(f"evaluation.{name}", config.evaluation[name], 0)


def _one_of(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; one of {', '.join(choices)}")


def _at_least(name: str, value: float, low: float) -> None:
    if value < low:
        raise UserError(f"{name}={value} must be at least {low}")
