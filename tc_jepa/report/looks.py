"""Pictures of a trained run's features, whatever its method, and the galleries that a page is built from."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tc_jepa.config import models
from tc_jepa.data.images import decode_image
from tc_jepa.data.sources import Captioned
from tc_jepa.data.transforms import resize_and_centre_crop
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import frozen_vit, FrozenEncoder
from tc_jepa.evaluation.features import FeatureStore, Part
from tc_jepa.evaluation.tasks.rank import deviations
from tc_jepa.experiment.run import TrainedRun
from tc_jepa.methods.method import init_encoder
from tc_jepa.report import pictures

SHOWN = 6  # held-out images in the colours of their features
BATCH = 64  # images that an encoder reads at once


class Figure(NamedTuple):
    """Pictures in a row, each with its label, above a caption and a list of notes."""

    pictures: Sequence[tuple[str, np.ndarray]]  # uint8 [H, W, 3]
    caption: str = ""
    notes: Sequence[str] = ()


class Gallery(NamedTuple):
    """A section of figures; `broad` for figures of several pictures."""

    title: str
    about: str
    figures: Sequence[Figure]
    broad: bool = False


def encoders(run: TrainedRun) -> dict[str, FrozenEncoder]:
    """Returns the evaluation encoder, and the same encoder at initialisation."""
    module, size = run.experiment.method.encoder, run.config.image.size
    initial = jax.jit(lambda: init_encoder(module, (size, size, 3), jax.random.key(run.config.train.seed)))()
    mesh = sharding.local_mesh()
    return {
        name: frozen_vit(module, params, image_size=size, batch_size=BATCH, mesh=mesh)
        for name, params in (("trained", run.evaluation_encoder()), ("at initialisation", initial))
    }


def spectra(found: dict[str, FrozenEncoder], source: Captioned) -> dict[str, np.ndarray]:
    """Returns for each encoder the singular values of the pooled features of held-out images, in falling order.

    They are those of the features without their mean, divided by the largest.
    """
    width = next(iter(found.values())).width
    features = FeatureStore().read(found, Part(source, range(min(len(source), 2 * width)), ["pooled"], "spectra"))
    values = {name: deviations(x["pooled"]) for name, x in features.items()}
    return {name: x / x[0] for name, x in values.items() if x[0] > 0}


def features_in_colours(run: TrainedRun, found: dict[str, FrozenEncoder], source: Captioned) -> Gallery:
    """Returns the first held-out images, each beside its patch features in colours, for every encoder."""
    size, grid = run.config.image.size, models.grid(run.config)
    images = np.stack([resize_and_centre_crop(source[i].image, size) for i in range(min(SHOWN, len(source)))])
    colours = {name: pictures.pca_colours(np.asarray(encoder(images).patches)) for name, encoder in found.items()}
    figures = []
    for i, image in enumerate(images):
        drawn = [(name, pictures.patches_as_picture(one[i], grid)) for name, one in colours.items()]
        figures.append(Figure([("image", pictures.enlarged(image, grid)), *drawn]))
    about = (
        f"Step {run.step}, held-out images. Patch features minus their mean over these images; the first three "
        "principal directions are red, green and blue, each from its 2nd to its 98th percentile. Equal colours mean "
        "equal features."
    )
    return Gallery("Features in colours (PCA)", about, figures, broad=True)


def read_images(names: Sequence[str], size: int) -> np.ndarray:
    """Returns image files, resized and centre-cropped: uint8 [count, size, size, 3]. UserError for one that is none."""
    images = []
    for name in names:
        if not Path(name).is_file():
            raise UserError(f"--image={name}: there is no such file")
        try:
            images.append(resize_and_centre_crop(decode_image(Path(name).read_bytes()), size))
        except ValueError as error:
            raise UserError(f"--image={name}: {error}; give another file") from error
    return np.stack(images)


def pca_rows(encoder, images: np.ndarray) -> list[list[np.ndarray]]:
    """Returns a row of pictures per image: itself, and its patch features in colours.

    `encoder` is one of tc_jepa.load_encoder. Directions and scale of the colours are common to all the images.
    """
    side = encoder.image_size // encoder.patch_size
    colours = pictures.pca_colours(np.stack([np.asarray(encoder(image)) for image in images]))
    grid = side, side
    return [[pictures.enlarged(x, grid), pictures.patches_as_picture(c, grid)] for x, c in zip(images, colours)]
