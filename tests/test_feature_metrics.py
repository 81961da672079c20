"""What a train step logs of its features: the definitions, padding, devices, and parts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.distributed import sharding
from tc_jepa.methods.feature_metrics import CONSTANT_SHARE, feature_metrics, PARTICIPATION
from tc_jepa.step import mean_over_parts


def features(size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x_BxKxD = 3.0 + rng.normal(size=(size, 5, 6)) * [3, 2, 1, 1, 0.5, 0]
    return x_BxKxD.astype(np.float32), rng.random((size, 5)) < 0.7


def expected(x: np.ndarray) -> dict[str, float]:
    """In float64, from eigenvalues. `x` [count, D]."""
    x = x.astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))
    share = np.square(x.mean(axis=0)).sum() / np.square(x).sum(axis=1).mean()
    return {PARTICIPATION: eigenvalues.sum() ** 2 / np.square(eigenvalues).sum(), CONSTANT_SHARE: share}


def test_they_are_those_of_the_valid_features_on_any_number_of_devices():
    x, valid = features()
    garbage = np.where(valid[..., None], x, 1e3)
    mesh = sharding.make_mesh(8, 1)
    laid = jax.device_put((garbage, valid), sharding.batch_sharding(mesh))
    for found in (feature_metrics(garbage, valid), jax.jit(feature_metrics)(*laid)):
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected(x[valid]), rel=1e-4)
    everything = {name: float(value) for name, value in feature_metrics(x).items()}
    assert everything == pytest.approx(expected(x.reshape(-1, 6)), rel=1e-4)


def test_a_constant_is_one_direction_that_holds_all_and_an_empty_batch_is_finite():
    ones = {PARTICIPATION: 1.0, CONSTANT_SHARE: 1.0}
    for x, valid in (
        (np.full((4, 3, 6), 2.0), None),
        (np.zeros((4, 3, 6)), None),
        (np.ones((2, 3, 6)), np.zeros((2, 3))),
    ):
        found = feature_metrics(jnp.asarray(x), None if valid is None else valid > 0)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(ones)


def test_parts_of_a_batch_have_nearly_the_same_mean():
    """The bias that the docstring names: participation a little lower, the constant's share a little higher."""
    x, _ = features(256)
    whole = feature_metrics(x)
    parts = mean_over_parts(lambda part, key: feature_metrics(part), x, jax.random.key(0), 4)
    assert 0.97 < float(parts[PARTICIPATION] / whole[PARTICIPATION]) < 1.0
    assert 1.0 < float(parts[CONSTANT_SHARE] / whole[CONSTANT_SHARE]) < 1.01


def test_no_gradient_comes_from_them():
    x, valid = features()
    gradient = jax.grad(lambda x: sum(feature_metrics(x, valid).values()))(x)
    assert not np.any(gradient)
