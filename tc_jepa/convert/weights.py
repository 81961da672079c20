"""The form between all converters: a vision encoder with its parameters in this project's names and layout."""

from typing import NamedTuple

import jax

from tc_jepa.methods.method import init_encoder
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import Size, VisionTransformer


class EncoderWeights(NamedTuple):
    """An encoder that was trained on square images of `image_size` pixels; its `trained_grid` agrees with that.

    Parameters are host arrays, for the caller to put on devices. `predictor` holds the parameters of an I-JEPA
    predictor, or those of a run with its conditioner; None where there is none, or where it was not asked for.
    """

    encoder: VisionTransformer
    params: Params
    image_size: int
    predictor: Params | None = None


def square_encoder(size: Size, patch_size: int, image_size: int, stored_positions: bool) -> VisionTransformer:
    """Returns the module for square images of `image_size` pixels."""
    side = image_size // patch_size
    return VisionTransformer(size, patch_size, trained_grid=(side, side), stored_positions=stored_positions)


def abstract_params(encoder: VisionTransformer, image_size: int) -> Params:
    """Returns the shapes and dtypes of the encoder's parameters."""
    return jax.eval_shape(lambda: init_encoder(encoder, (image_size, image_size, 3), jax.random.key(0)))
