"""Terms that keep features from collapsing, on the encoder's features before its last LayerNorm.

Each is a function of the valid patch features of a global batch, so a batch cannot be computed in parts. All are
computed in float32, and 0 or smallest where features spread evenly.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tc_jepa.methods.sigreg import sigreg

DEVIATION = 1.0  # VICReg's gamma: the standard deviation from which a channel is not penalised
VARIANCE_EPSILON = 1e-4  # added to the variance under the root, as in VICReg
SLICES = 256  # SIGReg's random directions


def participation(features_BxKxD: jax.Array, valid_BxK: jax.Array, key: jax.Array) -> jax.Array:
    """tr(C^2) / tr(C)^2 of the covariance C over all patches: 1 / D to 1, the inverse of the participation ratio."""
    covariance_DxD = _covariance(features_BxKxD, valid_BxK)
    return jnp.square(covariance_DxD).sum() / jnp.maximum(jnp.square(jnp.trace(covariance_DxD)), 1e-12)


def variance(features_BxKxD: jax.Array, valid_BxK: jax.Array, key: jax.Array) -> jax.Array:
    """VICReg (arXiv 2105.04906), eq. 1: mean over channels of max(0, 1 - standard deviation over all patches)."""
    variances_D = jnp.diagonal(_covariance(features_BxKxD, valid_BxK))
    return jnp.maximum(DEVIATION - jnp.sqrt(variances_D + VARIANCE_EPSILON), 0.0).mean()


def covariance(features_BxKxD: jax.Array, valid_BxK: jax.Array, key: jax.Array) -> jax.Array:
    """VICReg, eq. 3 and 4: sum of the squared covariances between different channels, divided by their number D."""
    covariance_DxD = _covariance(features_BxKxD, valid_BxK)
    squares_DxD = jnp.square(covariance_DxD) * (1.0 - jnp.eye(len(covariance_DxD)))
    return squares_DxD.sum() / len(covariance_DxD)


def isotropy(features_BxKxD: jax.Array, valid_BxK: jax.Array, key: jax.Array) -> jax.Array:
    """SIGReg (arXiv 2511.08544) of the mean over each image's patches, along SLICES directions drawn from `key`.

    Of images, not of patches: for each sample it keeps SLICES x 17 numbers. Proportional to the batch size, as there.
    """
    weights_BxKx1 = valid_BxK[..., None].astype(jnp.float32)
    pooled_BxD = (features_BxKxD * weights_BxKx1).sum(axis=1) / jnp.maximum(weights_BxKx1.sum(axis=1), 1.0)
    return sigreg(pooled_BxD, key, SLICES)


TERMS: Mapping[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "participation": participation,
    "variance": variance,
    "covariance": covariance,
    "sigreg": isotropy,
}


def anti_collapse_terms(
    features_BxKxD: jax.Array, valid_BxK: jax.Array, key: jax.Array, names: tuple[str, ...]
) -> dict[str, jax.Array]:
    """Returns the unweighted terms of TERMS with these names, float32 scalars.

    Args:
      features_BxKxD: patch features of the global batch.
      valid_BxK: bool, which of them are not padding.
      key: for random directions.
      names: the terms to compute.
    """
    features_BxKxD = features_BxKxD.astype(jnp.float32)
    return {name: TERMS[name](features_BxKxD, valid_BxK, key) for name in names}


def _covariance(features_BxKxD: jax.Array, valid_BxK: jax.Array) -> jax.Array:
    """[D, D], over the valid patches; divided by their number minus 1, as in VICReg."""
    x_NxD, valid_Nx1 = features_BxKxD.reshape(-1, features_BxKxD.shape[-1]), valid_BxK.reshape(-1, 1)
    count = valid_Nx1.sum()
    mean_D = jnp.where(valid_Nx1, x_NxD, 0.0).sum(axis=0) / jnp.maximum(count, 1)
    centred_NxD = jnp.where(valid_Nx1, x_NxD - mean_D, 0.0)
    return jnp.matmul(centred_NxD.T, centred_NxD, precision="highest") / jnp.maximum(count - 1, 1)
