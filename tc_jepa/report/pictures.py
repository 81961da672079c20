"""Pictures from plain arrays: masks, features in colours, maps over an image. uint8 [height, width, 3] in RGB."""

import base64

import cv2
import matplotlib
import numpy as np

from tc_jepa.masking.masks import Masks

BLOCK_COLOURS = ((230, 57, 70), (255, 183, 3), (42, 157, 143), (67, 97, 238), (181, 23, 158), (251, 133, 0))
UNSEEN = 0.25  # share of its brightness that is kept of a patch which the context encoder does not see
LEAST_WIDTH = 192  # of a picture, in pixels


def enlarged(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the image at least LEAST_WIDTH wide, with `grid` (rows, columns) of patches of equal size."""
    cell = _cell(grid)
    return cv2.resize(image, (grid[1] * cell, grid[0] * cell), interpolation=cv2.INTER_NEAREST)


def _cell(grid: tuple[int, int]) -> int:
    return -(-LEAST_WIDTH // grid[1])


def _patches_to_pixels(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[N, ...] -> [height, width, ...] of an enlarged image."""
    cell = _cell(grid)
    return values.reshape(*grid, *values.shape[1:]).repeat(cell, axis=0).repeat(cell, axis=1)


def drawn_masks(image: np.ndarray, masks: Masks, grid: tuple[int, int]) -> np.ndarray:
    """Returns the enlarged image with the masks of one image, without their padding.

    It is dimmed outside the context, and each target block is outlined in its own colour.
    """
    cell, picture = _cell(grid), enlarged(image, grid)
    seen = np.zeros(grid[0] * grid[1], bool)
    seen[masks.context_indices[masks.context_valid]] = True
    light = _patches_to_pixels(np.where(seen, 1.0, UNSEEN), grid)
    picture = (picture * light[..., None]).astype(np.uint8)
    thickness = max(2, cell // 12)
    for number, (block, valid) in enumerate(zip(masks.target_indices, masks.target_valid)):
        inside = np.zeros(len(seen), np.uint8)
        inside[block[valid]] = 1
        shape = _patches_to_pixels(inside, grid)
        # Outlines of later blocks are drawn further inside, so that blocks with a common edge are both visible.
        outer = _shrunk(shape, 1 + thickness * (number % 4))
        inner = _shrunk(outer, thickness)
        picture[(outer > 0) & (inner == 0)] = BLOCK_COLOURS[number % len(BLOCK_COLOURS)]
    return picture


def _shrunk(shape: np.ndarray, pixels: int) -> np.ndarray:
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    return cv2.erode(shape, np.ones((3, 3), np.uint8), iterations=pixels, **border)


def pca_colours(features_BxNxD: np.ndarray) -> np.ndarray:
    """Returns the first three principal components of patch features as red, green and blue: float [B, N, 3] in 0-1.

    Features minus their mean over all patches of all images; principal directions in order of variance, each with the
    sign that makes its largest entry positive; each component scaled from its 2nd to its 98th percentile. Images that
    are passed together share directions and scale, so equal colours mean equal features.
    """
    flat = features_BxNxD.reshape(-1, features_BxNxD.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    found = centred @ (directions * np.sign(largest)).T
    low, high = np.percentile(found, (2, 98), axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled.reshape(*features_BxNxD.shape[:-1], -1)


def patches_as_picture(colours_NxC: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns patches as squares of one colour each, from float [N, 3] in 0-1."""
    return _patches_to_pixels((255 * colours_NxC).round().astype(np.uint8), grid)


def heat_on_image(
    image: np.ndarray, values_N: np.ndarray, grid: tuple[int, int], low: float, high: float
) -> np.ndarray:
    """Returns the image in grey under a map of patches, from dark blue at `low` to yellow at `high`.

    Values beyond are clipped. A patch without a value (NaN) stays grey. The map is not smoothed.
    """
    grey = cv2.cvtColor(enlarged(image, grid), cv2.COLOR_RGB2GRAY)[..., None].astype(np.float64)
    scaled = np.clip((values_N - low) / max(high - low, 1e-12), 0, 1)
    colours = 255 * matplotlib.colormaps["plasma"](np.nan_to_num(scaled))[:, :3]
    strength = np.where(np.isfinite(values_N), 0.65, 0.0)
    colours, strength = _patches_to_pixels(colours, grid), _patches_to_pixels(strength, grid)[..., None]
    return (grey * (1 - strength) + colours * strength).round().astype(np.uint8)


def side_by_side(pictures: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Returns pictures of one height in a row, with white between them."""
    space = np.full((len(pictures[0]), gap, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (space, picture)][1:], axis=1)


def stacked(pictures: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Returns pictures of one width in a column, with white between them."""
    return side_by_side([picture.swapaxes(0, 1) for picture in pictures], gap).swapaxes(0, 1)


def png(picture: np.ndarray) -> bytes:
    """Returns the picture as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def data_uri(picture: np.ndarray) -> str:
    """Returns the picture as the src of an <img> that loads nothing."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
