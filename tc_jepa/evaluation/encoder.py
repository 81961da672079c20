"""Frozen encoders: the one contract through which every evaluation gets features, whatever computes them.

uint8 images -> patch features and their pooled mean, in float32. Parameters and images are laid over the devices of a
mesh. The last batch is padded and the padding is cut off again, so that any number of images gives the same features on
any number of devices.
"""

from collections.abc import Callable, Iterator, Sequence
import copy
import functools
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from tc_jepa.data.sources import Captioned
from tc_jepa.data.transforms import resize, resize_and_centre_crop
from tc_jepa.distributed import sharding
from tc_jepa.models import layers
from tc_jepa.models.vit import VisionTransformer

LAST = 4  # blocks whose features are concatenated; all blocks where there are fewer
THUMBNAIL = 16  # side in pixels of the image that the pixel baseline keeps
READ_THREADS = 2  # each prepares one batch while the devices compute another


def full_precision(function: Callable) -> Callable:
    """The function with float32 matrix products in float32, for functions that JAX traces.

    By default a GPU multiplies float32 matrices in TF32 and a TPU in bfloat16, and scores would depend on the machine.
    On a CPU this changes nothing and costs nothing. On GPUs and TPUs products become several times slower; by how much
    has not been measured here. A model whose own dtype is bfloat16 computes in bfloat16 all the same.
    """

    @functools.wraps(function)
    def computed(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return computed


class EncoderOutput(NamedTuple):
    """The features of B images."""

    patches: jax.Array  # float32 [B, N, D], row-major
    pooled: jax.Array  # float32 [B, D]
    last_four: jax.Array | None = None  # float32 [B, 4 D]: pooled, of each of the last blocks; None without blocks


class FrozenEncoder:
    """Images uint8 [B, image_size, image_size, 3] -> EncoderOutput, for any B.

    `forward` is a pure function (parameters, images) -> EncoderOutput. It is compiled once, for `batch_size` images,
    rounded up to a multiple of the devices, and computes in full_precision. `mesh` holds devices of this process alone,
    as sharding.local_mesh does. Images of another size or type raise ValueError.
    """

    def __init__(
        self,
        forward: Callable[[Any, jax.Array], EncoderOutput],
        params: Any,
        *,
        width: int,
        image_size: int,
        patch_size: int,
        batch_size: int,
        mesh: Mesh,
    ):
        self.width, self.image_size, self.patch_size = width, image_size, patch_size
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._mesh = mesh
        self._params = sharding.put_parameters(mesh, params)
        self._forward = jax.jit(full_precision(forward), out_shardings=sharding.batch_sharding(mesh))

    def of(self, params: Any) -> "FrozenEncoder":
        """The same encoder with other parameters. Nothing is compiled again."""
        other = copy.copy(self)
        other._params = sharding.put_parameters(self._mesh, params)
        return other

    def __call__(self, images: np.ndarray) -> EncoderOutput:
        expected = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected or not len(images):
            raise ValueError(f"expected uint8 [B >= 1, {expected}], not {images.dtype} {images.shape}")
        starts = range(0, len(images), self.batch_size)
        parts = [self._encode(images[start : start + self.batch_size]) for start in starts]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if len(parts) > 1 else parts[0]

    def _encode(self, images: np.ndarray) -> EncoderOutput:
        padding = self.batch_size - len(images)
        padded = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
        features = self._forward(self._params, jax.device_put(padded, sharding.batch_sharding(self._mesh)))
        return jax.tree.map(lambda x: x[: len(images)], features)


def frozen_vit(
    encoder: VisionTransformer, params: Any, *, image_size: int, batch_size: int, mesh: Mesh
) -> FrozenEncoder:
    """A vision transformer with the given parameters. Its pooled features are the mean over patches.

    `last_four` concatenates the pooled output of its last blocks, each through the encoder's own final LayerNorm, as in
    DINO's get_intermediate_layers. I-JEPA's App. A.2 says that the last four layers are concatenated, but not how.
    """
    return FrozenEncoder(
        functools.partial(_vit_features, encoder.clone(scan=False)),  # in a loop its blocks' outputs are out of reach
        params,
        width=encoder.size.width,
        image_size=image_size,
        patch_size=encoder.patch_size,
        batch_size=batch_size,
        mesh=mesh,
    )


def _vit_features(encoder: VisionTransformer, params: Any, images: jax.Array) -> EncoderOutput:
    last = [f"blocks_{i}" for i in range(max(encoder.size.depth - LAST, 0), encoder.size.depth)]
    patches, kept = encoder.apply(
        {"params": params},
        layers.normalise_images(images),
        capture_intermediates=lambda module, _: module.name in last,
        mutable=["intermediates"],
    )
    patches = patches.astype(jnp.float32)
    norm = layers.layer_norm(None)

    def pooled(name: str) -> jax.Array:
        (block,) = kept["intermediates"][name]["__call__"]
        return norm.apply({"params": params["norm"]}, block).astype(jnp.float32).mean(axis=1)

    return EncoderOutput(patches, patches.mean(axis=1), jnp.concatenate([pooled(name) for name in last], axis=-1))


def frozen_pixels(*, image_size: int, patch_size: int, batch_size: int, mesh: Mesh) -> FrozenEncoder:
    """The baseline without a network: an image, or a patch of it, resized by area to 16 x 16 pixels and flattened."""
    return FrozenEncoder(
        functools.partial(_pixel_features, patch_size),
        {},
        width=3 * THUMBNAIL**2,
        image_size=image_size,
        patch_size=patch_size,
        batch_size=batch_size,
        mesh=mesh,
    )


def _pixel_features(patch_size: int, params: Any, images: jax.Array) -> EncoderOutput:
    del params  # there are none
    images = layers.normalise_images(images)
    patches = layers.patchify(images, patch_size)
    patches = patches.reshape(*patches.shape[:2], patch_size, patch_size, 3)
    return EncoderOutput(_thumbnails(patches), _thumbnails(images))


def _thumbnails(images: jax.Array) -> jax.Array:
    """[..., S, S, 3] -> [..., 16 * 16 * 3]."""
    weights = _area_weights(images.shape[-2])
    small = jnp.einsum("yh,...hwc,xw->...yxc", weights, images, weights, precision="highest")
    return small.reshape(*images.shape[:-3], -1)


def _area_weights(size: int) -> np.ndarray:
    """float32 [16, size]: the share of each cell of the thumbnail that each pixel covers; rows sum to 1."""
    edges = np.linspace(0, size, THUMBNAIL + 1)[:, None]
    covered = np.clip(edges, np.arange(size), np.arange(size) + 1)
    return (np.diff(covered, axis=0) * THUMBNAIL / size).astype(np.float32)


def read_images(
    source: Captioned, indices: Sequence[int], image_size: int, batch_size: int, *, whole: bool = False
) -> Iterator[np.ndarray]:
    """Images resized and centre-cropped: batches uint8 [<= batch_size, image_size, image_size, 3], in order.

    `whole`: images are stretched to squares instead, so that nothing is cut off.
    """

    def read(index: int) -> np.ndarray:
        image = source[int(index)].image
        return resize(image, (image_size, image_size)) if whole else resize_and_centre_crop(image, image_size)

    dataset = grain.MapDataset.source(indices).map(read).batch(batch_size)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_THREADS)))
