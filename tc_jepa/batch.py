"""What one training step reads. A NamedTuple, so that it is a pytree for JAX and plain NumPy for the data pipeline."""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy.ndarray in the pipeline, jax.Array in the step


class JepaBatch(NamedTuple):
    """B images with their captions and masks (without the leading B: one example).

    Padded entries of the index arrays hold 0 and are marked False in the mask beside them; they influence nothing.
    A caption that is marked missing influences nothing either, whatever its words are.
    Where no captions are read (I-JEPA), C = S = 0. Where the context encoder sees `images` themselves, context_images
    have no pixels and corruption has no parameters, A = 0: see `uncorrupted`.
    """

    images: Array  # uint8 [B, height, width, 3], RGB
    caption_words: Array  # int32 [B, C, S], SentencePiece ids; or stored vectors, floating [B, C, S, E]
    word_valid: Array  # bool [B, C, S]
    caption_valid: Array  # bool [B, C]; all False where the image has no caption
    context_indices: Array  # int32 [B, K], row-major patch indices
    context_valid: Array  # bool [B, K]
    target_indices: Array  # int32 [B, M, T]
    target_valid: Array  # bool [B, M, T]
    context_dropped: Array  # int32 [B], context patches that did not fit into K
    context_images: Array  # uint8 [B, height, width, 3], RGB, the corrupted copy that the context encoder sees
    corruption: Array  # float32 [B, A], what was done to it: see data/photometric.py


def uncorrupted(*batch: int) -> dict[str, np.ndarray]:
    """The fields of a JepaBatch whose context encoder sees `images`. `batch` is B, or nothing for one example."""
    return {"context_images": np.zeros((*batch, 0, 0, 3), np.uint8), "corruption": np.zeros((*batch, 0), np.float32)}


class ViewBatch(NamedTuple):
    """V augmented views of each of B images (without the leading B: one example)."""

    views: Array  # uint8 [B, V, height, width, 3], RGB

    @property
    def images(self) -> Array:
        """The first view of each image: uint8 [B, height, width, 3]."""
        return self.views[..., 0, :, :, :]


class LabelledBatch(NamedTuple):
    """B images with their labels (without the leading B: one example)."""

    images: Array  # uint8 [B, height, width, 3], RGB
    labels: dict[str, Array]  # by task: int32 [B], the class; or bool [B, classes] where an image has several


class PairBatch(NamedTuple):
    """B images with one caption each (without the leading B: one example)."""

    images: Array  # uint8 [B, height, width, 3], RGB
    words: Array  # int32 [B, S], SentencePiece ids; 0 where padded
    word_valid: Array  # bool [B, S]
    caption_valid: Array  # bool [B]; False where the image has no caption
