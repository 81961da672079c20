"""The rules between configuration keys that can be checked before any data is read or device is used.

What one key may be by itself, and whether it has an effect, is declared with the keys and checked before.
"""

import ml_collections

from tc_jepa.config import data, methods
from tc_jepa.data.mixtures import whole_weights
from tc_jepa.errors import UserError


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, one line that names the keys, where the configuration cannot be run."""
    size, patch = config.image.size, config.model.patch_size
    if size % patch:
        raise UserError(
            f"image.size={size} is not divisible by model.patch_size={patch}; the nearest sizes that are: "
            f"{size // patch * patch} and {(size // patch + 1) * patch}",
            about="image.size",
        )
    _check_data(config)
    methods.chosen(config).check(config)


def _check_data(config: ml_collections.ConfigDict) -> None:
    paths, weights, chosen = data.data_paths(config), config.data.weights, data.features(config)
    if "" in paths:
        raise UserError(
            f"data.path={config.data.path!r} has an empty path; separate folders with single commas", about="data.path"
        )
    if paths and weights:
        if len(paths) < 2 or len(weights) != len(paths):
            raise UserError(
                f"data.weights={tuple(weights)} are {len(weights)} for {len(paths)} datasets in data.path; give one "
                "for each of several, or none",
                about="data.weights",
            )
        whole_weights(weights)  # raises UserError for weights without a common period
    both = set(chosen.captions) & set(chosen.descriptions)
    if both:
        names = ", ".join(sorted(both))
        raise UserError(
            f"{names} is in data.caption_features and in data.description_features; leave it out of one",
            about="data.caption_features",
        )
