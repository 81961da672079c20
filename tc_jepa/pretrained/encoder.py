"""Trained vision encoders, opened the same way from a workdir, a converted folder or a Hugging Face I-JEPA folder."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from tc_jepa.config import methods, models
from tc_jepa.convert import folder, hf_ijepa
from tc_jepa.convert.tensors import read_json
from tc_jepa.convert.weights import abstract_params, EncoderWeights
from tc_jepa.errors import UserError
from tc_jepa.models import layers
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import VisionTransformer
from tc_jepa.storage.checkpoint import (
    CONFIG_FILE,
    on_one_device,
    read_config,
    restore_encoder,
    restore_trained,
    saved_steps,
    trained_networks,
)
from tc_jepa.storage.files import as_path, in_bucket
from tc_jepa.storage.finite import check_finite

ROUNDING = 1e-3  # how far floating point images, which resizing may round, may lie outside 0-1


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a path is a run's workdir and not a folder of weights. Raises UserError where it is neither."""
    path = as_path(path)
    if path.is_file():
        raise UserError(f"{path} is a file; convert it to a folder first, with launch.convert")
    if not (path / CONFIG_FILE).is_file():
        missing = f"holds no {CONFIG_FILE}" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {missing}; give a workdir, a converted folder or a Hugging Face folder")
    config = read_json(path / CONFIG_FILE)
    if saved_steps(path) or {"train", "model", "target_encoder"} <= config.keys():
        return True
    if "format" not in config and "model_type" not in config:
        raise UserError(f"{path / CONFIG_FILE} is not of a run, converted encoder or Hugging Face model; give another")
    return False


def open_encoder(path: str | os.PathLike, step: int | None = None, *, predictor: bool = False) -> EncoderWeights:
    """Returns the encoder of a workdir, a converted folder or a Hugging Face I-JEPA folder.

    Of a run it is the evaluation encoder, a moving average where the run keeps one, at `step` or the newest step; the
    module computes in the run's dtype. Other encoders compute in float32. Positions on another grid than the trained
    one are interpolated. `predictor` includes the predictor, if any. Raises UserError for what is missing or unfit, and
    for values that are not finite.
    """
    weights = _open(as_path(path), step, predictor)
    check_finite(path, {"encoder": weights.params, "predictor": weights.predictor or {}})
    return weights


def _open(path: Path, step: int | None, predictor: bool) -> EncoderWeights:
    if is_run(path):
        return _open_run(path, step, predictor)
    if step is not None:
        raise UserError(f"{path} is not a workdir and has no steps; leave step {step} out", about="step")
    if in_bucket(path):
        raise UserError(f"{path} holds no run; of what is in a bucket only workdirs can be read, so copy it from there")
    if "format" in read_json(path / CONFIG_FILE):
        return folder.load(path, predictor=predictor)
    return hf_ijepa.load(path)


def _open_run(workdir: Path, step: int | None, predictor: bool) -> EncoderWeights:
    config = read_config(workdir)
    try:
        encoder = models.encoder(config).clone(trained_grid=models.grid(config))
        image_size, averaged = config.image.size, methods.chosen(config).averages_encoder(config)
    except (AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{workdir / CONFIG_FILE} was written by another version ({reason}); use that one") from error
    params, step = restored_encoder(workdir, step, encoder, image_size, averaged=averaged)
    has_predictor = predictor and "predictor" in trained_networks(workdir, step)
    found = restore_trained(workdir, step, "predictor") if has_predictor else None
    return EncoderWeights(encoder, params, image_size, found)


def restored_encoder(
    workdir: Path, step: int | None, encoder: VisionTransformer, image_size: int, *, averaged: bool
) -> tuple[Params, int]:
    """Returns the parameters of a run's evaluation encoder as host arrays, and their step: see restore_encoder."""
    shapes = on_one_device(abstract_params(encoder, image_size))
    params, step = restore_encoder(workdir, step, shapes, averaged=averaged)
    return jax.device_get(params), step


def teacher(config: ml_collections.ConfigDict, path: str, backend: Backend = PLAIN) -> tuple[VisionTransformer, Params]:
    """Returns a teacher for the run of a configuration: the encoder at `path` and its newest parameters, on the host.

    It computes in the student's dtype. Raises UserError unless its patches form the student's grid; else it may differ.
    """
    size = config.image.size
    theirs = open_encoder(path)
    patch = theirs.encoder.patch_size
    if size % patch or size // patch != models.grid(config)[0]:
        key, (rows, columns) = "target_encoder.teacher", models.grid(config)
        wrong = f"which at image.size={size} do not form the student's {rows} x {columns} grid"
        raise UserError(f"{key}={path} has patches of {patch} px, {wrong}; give model.patch_size={patch}", about=key)
    return theirs.encoder.clone(linear=models.linear(config), backend=backend), theirs.params


def load_encoder(path: str | os.PathLike, step: int | None = None) -> "PretrainedEncoder":
    """Returns the encoder of a workdir, a converted folder or a Hugging Face I-JEPA folder, ready to be called.

    `step` chooses a checkpoint of a workdir; None is the newest. Raises UserError as `open_encoder`.
    """
    return PretrainedEncoder(open_encoder(path, step))


class PretrainedEncoder:
    """Maps images to patch features on JAX's default device. It is compiled once for every shape.

    Everything is computed in float32, matrix products with precision HIGHEST. On CPU that costs nothing: it is what
    float32 products have there anyway. GPU and TPU would by default round the factors (to TF32 and bfloat16), which is
    faster; how much slower HIGHEST is there has not been measured.

    Images are [B, H, W, 3], or [H, W, 3] for one. H and W are any multiples of `patch_size`: positions on another grid
    than that of `image_size` are interpolated. Images are uint8 in 0-255 or floating point in 0-1, to which ImageNet's
    normalisation is applied; with `normalise=False`, floating point that is normalised. Raises UserError otherwise.

    Attributes:
      image_size: side in pixels of the square images that the encoder was trained on.
      patch_size: side of a patch in pixels.
      width: D, the channels of a feature.
    """

    def __init__(self, weights: EncoderWeights):
        encoder = weights.encoder
        self.image_size, self.patch_size, self.width = weights.image_size, encoder.patch_size, encoder.size.width
        self._params = jax.device_put(weights.params)
        exact = encoder.clone(linear=layers.Linear())
        self._encode = jax.jit(functools.partial(_encode, exact), static_argnames="normalise")

    def __call__(self, images: np.ndarray | jax.Array, normalise: bool = True) -> jax.Array:
        """Returns the features of the patches, row-major: float32 [B, N, D], or [N, D] for one image."""
        images = self._checked(images, normalise)
        features = self._encode(self._params, images if images.ndim == 4 else images[None], normalise=normalise)
        return features if images.ndim == 4 else features[0]

    def pooled(self, images: np.ndarray | jax.Array, normalise: bool = True) -> jax.Array:
        """Returns the mean of an image's patch features: float32 [B, D], or [D] for one image."""
        return self(images, normalise).mean(axis=-2)

    def _checked(self, images: np.ndarray | jax.Array, normalise: bool) -> np.ndarray | jax.Array:
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        floating = jnp.issubdtype(images.dtype, jnp.floating)
        if not floating and (images.dtype != np.uint8 or not normalise):
            wanted = "uint8 in 0-255 or floating point in 0-1" if normalise else "floating point with normalise=False"
            raise UserError(f"images are {images.dtype}; give {wanted}")
        shape, patch = images.shape, self.patch_size
        if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
            raise UserError(f"images have shape {shape}; give [B, H, W, 3], or [H, W, 3] for one")
        if shape[-3] % patch or shape[-2] % patch:
            raise UserError(f"images of {shape[-3]} x {shape[-2]} px are not divisible by the patch size, {patch}")
        if floating and normalise and not isinstance(images, jax.core.Tracer):  # traced values are not known
            low, high = images.min(), images.max()
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):
                fix = "divide 0-255 by 255, clip, or give normalise=False for images that are normalised already"
                raise UserError(f"floating point images range from {low:.3g} to {high:.3g}, not from 0 to 1; {fix}")
        return images


def _encode(encoder: VisionTransformer, params: Params, images_BxHxWx3: jax.Array, *, normalise: bool) -> jax.Array:
    if images_BxHxWx3.dtype == jnp.uint8:
        images = layers.normalise_images(images_BxHxWx3)
    else:
        images = images_BxHxWx3.astype(jnp.float32)
        images = layers.normalise_unit_images(images) if normalise else images
    with jax.default_matmul_precision("highest"):
        return encoder.apply({"params": params}, images)
