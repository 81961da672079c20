"""Positions of patches: fixed two-dimensional sine-cosine embeddings, and their interpolation to another grid."""

import jax
import jax.numpy as jnp
import numpy as np


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine embedding of a (rows, columns) grid: float32 [rows * columns, width].

    The first half of the channels encodes the column, the second the row, each as [sines, cosines], computed in
    float64 (ijepa src/models/vision_transformer.py:22-82, whose variable names say the opposite).
    """
    if width % 4:
        raise ValueError(f"a 2-D sine-cosine embedding needs a width divisible by 4, not {width}")
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")

    def encode(position):
        angles = np.outer(position.ravel(), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(column), encode(row)], axis=1).astype(np.float32)


BICUBIC_A = -0.75  # torch's and OpenCV's coefficient; jax.image.resize has -0.5


def resized_positions(positions_NxD: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int]) -> jax.Array:
    """A position embedding, interpolated to another grid: float32 [rows * columns of new_grid, D].

    Bicubic, as torch's interpolate(mode="bicubic", align_corners=False), which Hugging Face's I-JEPA uses for images of
    another size (the official interpolation assumes a class token that does not exist, ijepa issue 42).
    """
    if grid == new_grid:
        return positions_NxD
    rows, columns = (_bicubic_weights(old, new) for old, new in zip(grid, new_grid, strict=True))
    image = positions_NxD.reshape(*grid, -1)
    resized = jnp.einsum("Rr,Cc,rcd->RCd", rows, columns, image, precision="highest")
    return resized.reshape(-1, image.shape[-1])


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: each new position is a weighted mean of four old ones; the border is repeated outside."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        source = np.floor(place) + tap
        x, a = np.abs(place - source), BICUBIC_A
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(source, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)
