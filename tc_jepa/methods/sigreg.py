"""SIGReg: distance of samples from an isotropic Gaussian, along random directions (arXiv 2511.08544, section 4)."""

import jax
import jax.numpy as jnp
import numpy as np

KNOTS, LAST_KNOT = 17, 3.0  # of the trapezoid rule over t (lejepa univariate/epps_pulley.py)


def sigreg(samples: jax.Array, key: jax.Array, slices: int) -> jax.Array:
    """Mean Epps-Pulley statistic of float [..., N, D] over `slices` random directions and the leading axes: scalar.

    Every leading index, such as a view, is a separate set of N samples; all sets have the same directions (lejepa
    MINIMAL.md; stable-pretraining uses the samples of all views as one set). Directions are a function of `key`, so
    under jit they are the same on all devices. Computed in float32.
    """
    directions = jax.random.normal(key, (samples.shape[-1], slices))
    directions /= jnp.linalg.norm(directions, axis=0)
    projected = jnp.matmul(samples.astype(jnp.float32), directions, precision="highest")
    return epps_pulley(projected).mean()


def epps_pulley(x: jax.Array) -> jax.Array:
    """The Epps-Pulley statistic of N samples against N(0, 1), float32 [..., N, S] -> [..., S].

    N times the integral over t of |empirical characteristic function - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the
    trapezoid rule on KNOTS points from 0 to LAST_KNOT, times two, because the integrand is even.
    """
    t = np.linspace(0.0, LAST_KNOT, KNOTS, dtype=np.float32)
    gaussian = np.exp(-(t**2) / 2)
    weights = np.full(KNOTS, 2 * LAST_KNOT / (KNOTS - 1), np.float32)
    weights[[0, -1]] /= 2
    x_t = x[..., None] * t  # [..., N, S, KNOTS]
    real, imaginary = jnp.cos(x_t).mean(axis=-3), jnp.sin(x_t).mean(axis=-3)
    distance = jnp.square(real - gaussian) + jnp.square(imaginary)
    return x.shape[-2] * (distance * (weights * gaussian)).sum(axis=-1)
