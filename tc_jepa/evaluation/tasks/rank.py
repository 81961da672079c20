"""How many directions features use: signs of collapse that need no labels."""

import numpy as np
import scipy.linalg

EPSILON = 1e-7  # as in the RankMe paper, equation 1
RIDGE = 1e-4  # on the scatter within images, times its mean variance: features of any scale give the same
LIDAR_IMAGES, LIDAR_VIEWS = 500, 8  # images, and random crops of each


def rankme(features_BxD: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values, between 1 and min(B, D).

    It is bounded by the number of examples: give at least 2 x D of them.
    """
    return effective_number(np.linalg.svd(np.asarray(features_BxD, np.float32), compute_uv=False))


def effective_number(values: np.ndarray) -> float:
    """exp of the entropy of non-negative values that are made to sum to 1: between 1 and their number."""
    if not values.sum() > 0:
        return 1.0  # features that are all the same: the least there is
    p = values / values.sum() + EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def participation_ratio(features_BxD: np.ndarray) -> float:
    """(sum of eigenvalues)^2 / (sum of their squares) of the covariance, between 1 and D: the directions that hold
    variance. Unlike RankMe, blind to the mean and to a long tail."""
    features = np.asarray(features_BxD, np.float64)
    variances = np.linalg.eigvalsh(np.cov(features, rowvar=False))
    if not np.square(variances).sum() > 0:
        return 1.0
    return float(variances.sum() ** 2 / np.square(variances).sum())


def feature_std(features_BxD: np.ndarray) -> float:
    """The deviation of each channel over examples, averaged over channels; 0 is full collapse."""
    return float(np.asarray(features_BxD, np.float32).std(axis=0).mean())


def lidar(features_IxVxD: np.ndarray) -> float:
    """LiDAR (Thilak et al. 2024, arXiv 2312.04000): the effective number of directions that tell images apart, seen
    against the spread over V views of the same image. Between 1 and min(I - 1, D).

    The entropy is of the eigenvalues of linear discriminant analysis with each image as a class.
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

    Positions alone make patch features differ, also those of an encoder that sees nothing.
    """
    return (patches_BxNxD - patches_BxNxD.mean(axis=0)).reshape(-1, patches_BxNxD.shape[-1])
