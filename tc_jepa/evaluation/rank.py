"""How many directions features use: signs of collapse that need no labels."""

import numpy as np

EPSILON = 1e-7  # as in the RankMe paper, equation 1


def rankme(features_BxD: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values, between 1 and min(B, D).

    It is bounded by the number of examples: give at least 2 x D of them.
    """
    singular_values = np.linalg.svd(np.asarray(features_BxD, np.float32), compute_uv=False)
    p = singular_values / singular_values.sum() + EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def feature_std(features_BxD: np.ndarray) -> float:
    """The deviation of each channel over examples, averaged over channels; 0 is full collapse."""
    return float(np.asarray(features_BxD, np.float32).std(axis=0).mean())
