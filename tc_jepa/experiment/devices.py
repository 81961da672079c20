"""Whether an experiment's step can be computed on its devices."""

from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import Experiment


def check_step(experiment: Experiment) -> None:
    """Raises UserError, naming the key, where a step cannot be computed on the devices, or a batch not in parts."""
    config, mesh = experiment.config, experiment.mesh
    if config.model.kernels not in ("plain", sharding.platform(mesh)):
        raise UserError(
            f"model.kernels={config.model.kernels} is not for {sharding.platform(mesh)} devices; give plain",
            about="model.kernels",
        )
    parts, images = config.train.accumulate, config.train.batch_size
    if parts > 1 and not experiment.method.mean_over_images:
        raise UserError(
            f"train.accumulate={parts}: the loss of method.name={config.method.name} here is that of a whole batch, not"
            " a mean over images (so are LeJEPA's, target_encoder.normalise=batch and objective.anti_collapse.*); give "
            "1, and save memory with model.remat or mesh.fsdp",
            about="train.accumulate",
        )
    sharding.check_batch(mesh, images, "train.batch_size")
    if images % (parts * mesh.size):
        raise UserError(
            f"train.accumulate={parts} does not divide the {images // mesh.size} images that each device has of "
            f"train.batch_size={images}; give a divisor of that",
            about="train.accumulate",
        )
