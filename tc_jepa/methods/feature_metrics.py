"""Signs of collapse in the features that a train step computes anyway, without a decomposition of a matrix."""

import jax
import jax.numpy as jnp

PARTICIPATION, CONSTANT_SHARE = "features/participation", "features/constant_share"


def feature_metrics(features: jax.Array, valid: jax.Array | None = None) -> dict[str, jax.Array]:
    """Returns, as float32 scalars, how many directions a batch's features use and how much of them is one constant.

    features/participation: tr(C)^2 / tr(C^2) of the covariance C over all valid features, between 1 and the smaller of
      D and their number; 1 where all are the same.
    features/constant_share: squared norm of the mean feature over the mean squared norm, between 0 and 1.

    Under jit both are those of the global batch, however it is laid over devices. Of a batch that is computed in parts
    (train.accumulate), the log has the mean over the parts. That of the constant's share is then slightly too high and
    that of participation slightly too low, the more, the fewer features a part has.

    Args:
      features: float [..., D], such as patch features of a batch [B, K, D].
      valid: bool [...], which of them count; None: all.
    """
    x = jax.lax.stop_gradient(features.astype(jnp.float32).reshape(-1, features.shape[-1]))
    weights = jnp.ones(len(x)) if valid is None else valid.reshape(-1).astype(jnp.float32)
    weights /= jnp.maximum(weights.sum(), 1.0)
    mean = weights @ x
    centred = (x - mean) * jnp.sqrt(weights)[:, None]
    covariance = centred.T @ centred
    total, squares = jnp.trace(covariance), jnp.square(covariance).sum()
    energy = weights @ jnp.square(x).sum(axis=-1)
    return {
        PARTICIPATION: jnp.where(squares > 0, total**2 / jnp.where(squares > 0, squares, 1.0), 1.0),
        CONSTANT_SHARE: jnp.where(energy > 0, jnp.square(mean).sum() / jnp.where(energy > 0, energy, 1.0), 1.0),
    }
