"""The rules between the keys of a JEPA."""

from absl import logging
import ml_collections

from tc_jepa.config import data
from tc_jepa.errors import UserError
from tc_jepa.models import vit
from tc_jepa.models.conditioners import CONDITIONERS


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, naming the keys, where a JEPA cannot be built from a configuration."""
    _check_predictor(config)
    _check_target(config)
    if CONDITIONERS[config.model.conditioner].reads_words:
        _check_captions(config)


def _check_predictor(config: ml_collections.ConfigDict) -> None:
    chosen, depth, width = config.conditioner, config.model.predictor.depth, config.model.predictor.width
    heads = vit.SIZES[config.model.encoder].heads
    if width % heads or width % 4:
        raise UserError(
            f"model.predictor.width={width} must be divisible by 4 and by the {heads} heads of "
            f"model.encoder={config.model.encoder}",
            about="model.predictor.width",
        )
    if width % chosen.heads:
        raise UserError(
            f"model.predictor.width={width} is not divisible by conditioner.heads={chosen.heads}; change one of them",
            about="conditioner.heads",
        )
    if any(layer >= depth for layer in chosen.layers) or len(set(chosen.layers)) < len(chosen.layers):
        raise UserError(
            f"conditioner.layers={tuple(chosen.layers)} must be different layers of the predictor, 0 to {depth - 1}",
            about="conditioner.layers",
        )


def _check_target(config: ml_collections.ConfigDict) -> None:
    target = config.target_encoder
    if target.kind == "frozen" and not target.teacher:
        raise UserError(
            "target_encoder.kind=frozen needs target_encoder.teacher, a workdir or a folder with an encoder",
            about="target_encoder.teacher",
        )
    if target.kind == "online" and not any(config.objective.anti_collapse.values()):
        raise UserError(
            "target_encoder.kind=online needs a term that keeps features from collapsing, such as "
            "objective.anti_collapse.sigreg=0.1",
            about="objective.anti_collapse",
        )
    if target.kind == "pixels" and config.objective.prediction != "mse":
        raise UserError(
            f"target_encoder.kind=pixels needs objective.prediction=mse, not {config.objective.prediction}",
            about="objective.prediction",
        )


def _check_captions(config: ml_collections.ConfigDict) -> None:
    paths, vectors = data.data_paths(config), config.captions.vectors
    if config.model.text == "t5" and not config.model.text_weights:
        raise UserError(
            "model.text=t5 needs model.text_weights, the folder of a Hugging Face T5", about="model.text_weights"
        )
    if config.model.text == "stored":
        if not vectors:
            raise UserError(
                "model.text=stored needs captions.vectors, the folder that launch.encode_captions wrote",
                about="captions.vectors",
            )
        if len(vectors.split(",")) != len(paths):
            raise UserError(
                f"captions.vectors names {len(vectors.split(','))} folders for {len(paths)} datasets in data.path; "
                "give one for each, separated by commas (scenes drawn on the fly have none)",
                about="captions.vectors",
            )
    if (config.captions.shuffled or config.captions.noise) and config.train.batch_size < 2:
        raise UserError(
            "captions.shuffled and captions.noise need other images in the batch; give a train.batch_size of 2 or more",
            about="train.batch_size",
        )
    if config.image.flip:
        logging.warning("image.flip mirrors images but not captions: 'left of' becomes false in half of them")
