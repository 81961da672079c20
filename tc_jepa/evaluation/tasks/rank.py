"""rank: how many directions features use, and how far they spread. Signs of collapse that need no labels."""

import numpy as np
import scipy.linalg

from tc_jepa.errors import UserError
from tc_jepa.evaluation.task import FeatureRequest, Outcome, Task, TaskInputs

EPSILON = 1e-7  # as in the RankMe paper, equation 1
RIDGE = 1e-4  # on the scatter within images, times its mean variance, so that the scale of features has no effect
LIDAR_IMAGES, LIDAR_VIEWS = 500, 8  # images, and random crops of each
PATCH_IMAGES = 200  # images whose patches are decomposed, at most


def run(inputs: TaskInputs) -> Outcome:
    """Numbers "rank/KEY": of pooled features; "patch_KEY" of patches without the mean at their position."""
    if len(inputs.test) < 2:
        raise UserError(f"rank has only {len(inputs.test)} test image; give it at least 2")
    pooled, views = inputs.features["pooled"]["pooled"], inputs.features["views"]["pooled"]
    patches_BxNxD = np.asarray(inputs.features["patches"]["patches"], np.float32)
    patches = position_centred(patches_BxNxD)
    energy = np.square(patches_BxNxD).sum(axis=-1).mean()
    numbers = {
        "rankme_centred": effective_number(deviations(pooled)),
        "rankme": rankme(pooled),
        "lidar": lidar(views),
        "participation": participation_ratio(pooled),
        "std": feature_std(pooled),
        "constant_share": constant_share(patches_BxNxD.mean(axis=(0, 1)), energy),
        "patch_rankme": rankme(patches),
        "patch_participation": participation_ratio(patches),
        "patch_std": feature_std(patches),
    }
    return Outcome(numbers={f"rank/{name}": value for name, value in numbers.items()})


TASK = Task(
    "rank",
    run,
    features={
        "pooled": FeatureRequest("test", ("pooled",)),
        "patches": FeatureRequest("test", ("patches",), at_most=PATCH_IMAGES),
        "views": FeatureRequest("test", ("pooled",), at_most=LIDAR_IMAGES, views=LIDAR_VIEWS),
    },
    measures={
        "rankme_centred": "RankMe of pooled features minus their mean",
        "rankme": "RankMe, pooled",
        "lidar": "LiDAR, pooled",
        "participation": "participation ratio, pooled",
        "std": "deviation over images, pooled",
        "constant_share": "share of the constant vector, patches",
        "patch_rankme": "RankMe, patches",
        "patch_participation": "participation ratio, patches",
        "patch_std": "deviation over images, patches",
    },
    about_measures="How many directions the test features use, and how far images differ. A constant vector that all "
    "features share lowers RankMe though images differ as before: judge by RankMe without the mean. Patches are those "
    "of some images, without the mean at their position (the share of the constant vector: with it). LiDAR counts the "
    "directions in which an image differs more from other images than from its own crops. RankMe and LiDAR are at most "
    "the number of images or channels: compare them only where both are equal.",
    during_training=True,
    context_encoder=True,
)


def rankme(features_BxD: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values, between 1 and min(B, D).

    The number of examples bounds it, so give at least 2 x D of them.
    """
    return effective_number(np.linalg.svd(np.asarray(features_BxD, np.float32), compute_uv=False))


def effective_number(values: np.ndarray) -> float:
    """exp of the entropy of non-negative values that are made to sum to 1: between 1 and their number."""
    if not values.sum() > 0:
        return 1.0  # all features are the same
    p = values / values.sum() + EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def deviations(features_BxD: np.ndarray) -> np.ndarray:
    """The spectrum of features without their mean: their standard deviations along the principal directions, falling.

    These are the singular values of the centred features, divided by sqrt(B): float32 [min(B, D)].
    """
    features = np.asarray(features_BxD, np.float32)
    return np.linalg.svd(features - features.mean(axis=0), compute_uv=False) / len(features) ** 0.5


def constant_share(mean_D: np.ndarray, energy: float) -> float:
    """The share of the features' energy that one vector holds which all of them have in common: between 0 and 1.

    `mean_D` is the mean feature over all patches and images, `energy` the mean of the features' squared norms. A
    constant vector carries no information, but counts as a direction in RankMe, and the largest.
    """
    return float(np.square(mean_D).sum() / energy) if energy > 0 else 1.0


def participation_ratio(features_BxD: np.ndarray) -> float:
    """(sum of eigenvalues)^2 / (sum of their squares) of the covariance: the number of directions that hold variance.

    Between 1 and D. Unlike RankMe it ignores the mean, and a long tail of small eigenvalues counts little.
    """
    variances = np.square(deviations(features_BxD), dtype=np.float64)
    if not variances.sum() > 0:
        return 1.0
    return float(variances.sum() ** 2 / np.square(variances).sum())


def feature_std(features_BxD: np.ndarray) -> float:
    """The standard deviation of each channel over examples, averaged over channels; 0 is full collapse."""
    return float(np.asarray(features_BxD, np.float32).std(axis=0).mean())


def lidar(features_IxVxD: np.ndarray) -> float:
    """LiDAR (Thilak et al. 2024, arXiv 2312.04000): the effective number of directions that tell images apart.

    Exp of the entropy of the eigenvalues of linear discriminant analysis, with each of I images as a class of V views.
    Between 1 and min(I - 1, D).
    """
    features = np.asarray(features_IxVxD, np.float64)
    I, V, D = features.shape
    means = features.mean(axis=1)
    inner = (features - means[:, None]).reshape(I * V, D)
    within = inner.T @ inner / (I * (V - 1))
    if not np.trace(within) > 0:
        return 1.0
    within += RIDGE * np.trace(within) / D * np.eye(D)
    between = np.cov(means, rowvar=False)
    return effective_number(np.maximum(scipy.linalg.eigh(between, within, eigvals_only=True), 0.0))


def position_centred(patches_BxNxD: np.ndarray) -> np.ndarray:
    """[B * N, D]: patch features without the mean over images at their position.

    Positions alone make patch features differ, even those of an encoder that ignores the image.
    """
    return (patches_BxNxD - patches_BxNxD.mean(axis=0)).reshape(-1, patches_BxNxD.shape[-1])
