"""Anti-collapse terms: values and gradients against float64, what they act on, and nothing where their weight is 0."""

import dataclasses
import functools

from flax.core import FrozenDict
import jax
import numpy as np
import pytest

from configs import base
from tc_jepa.config import jepa as config_jepa
from tc_jepa.distributed import sharding
from tc_jepa.methods import anti_collapse
from tc_jepa.methods.anti_collapse import anti_collapse_terms, TERMS
from tests import tiny

KEY = jax.random.key(3)


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Channels of unlike variance, correlated, some above VICReg's deviation of 1, and images with padding."""
    rng = np.random.default_rng(0)
    x_BxKxD = rng.normal(size=(8, 3, 4)) * [2.0, 0.5, 0.3, 0.1] + rng.normal(size=(8, 3, 1)) * 0.3 + 1.0
    return x_BxKxD, np.arange(3) < rng.integers(1, 4, (8, 1))


def reference(name: str, x_BxKxD: np.ndarray, valid_BxK: np.ndarray) -> float:
    """In float64, from the definitions."""
    if name == "sigreg":
        pooled = np.stack([x[v].mean(axis=0) for x, v in zip(x_BxKxD, valid_BxK)])
        directions = np.asarray(jax.random.normal(KEY, (4, anti_collapse.SLICES)), np.float64)
        along = pooled @ (directions / np.linalg.norm(directions, axis=0))
        t = np.linspace(0, 3, 17)
        weights = np.exp(-(t**2) / 2) * np.where((t == 0) | (t == 3), 3 / 16, 6 / 16)
        difference = np.exp(1j * along[..., None] * t).mean(axis=0) - np.exp(-(t**2) / 2)
        return len(pooled) * (np.abs(difference) ** 2 * weights).sum(axis=-1).mean()
    C = np.cov(x_BxKxD[valid_BxK], rowvar=False)
    return {
        "participation": np.trace(C @ C) / np.trace(C) ** 2,
        "variance": np.maximum(0, 1 - np.sqrt(np.diag(C) + 1e-4)).mean(),
        "covariance": (np.square(C).sum() - np.square(np.diag(C)).sum()) / 4,
    }[name]


@pytest.mark.parametrize("name", TERMS)
def test_values_and_gradients_are_those_of_float64_on_any_number_of_devices(name):
    x, valid = sample()
    garbage = np.where(valid[..., None], x, 1e3).astype(np.float32)
    term = jax.jit(jax.value_and_grad(lambda x, valid: anti_collapse_terms(x, valid, KEY, (name,))[name]))
    laid = jax.device_put((garbage, valid), sharding.batch_sharding(sharding.make_mesh(8, 1)))
    value, gradient = term(*laid)
    assert float(value) == pytest.approx(reference(name, x, valid), rel=1e-4)
    expected = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-5
        expected[place] = (reference(name, x + step, valid) - reference(name, x - step, valid)) / 2e-5
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3 and not np.any(np.asarray(gradient)[~valid])


@functools.cache
def method(**weights):
    return dataclasses.replace(
        tiny.jepa(), objective=dataclasses.replace(tiny.OBJECTIVE, anti_collapse=FrozenDict(weights))
    )


def test_a_weight_of_0_adds_nothing_and_another_the_weighted_term_before_the_last_layer_norm():
    state, batch = tiny.state(tiny.jepa()), tiny.batch(4)
    params = tiny.lively(state.params)

    config = base.get_config()
    assert config_jepa.objective(config).anti_collapse == {}
    config.objective.anti_collapse.participation = 0.5
    assert config_jepa.objective(config).anti_collapse == {"participation": 0.5}
    jaxpr = [str(jax.make_jaxpr(m.loss)(params, state.extra, batch, KEY, 0)) for m in (method(), method(variance=1.0))]
    assert "unnormalised" not in jaxpr[0] and jaxpr[0].count("\n") < jaxpr[1].count("\n")
    plain, without = jax.jit(method().loss)(params, state.extra, batch, KEY, 0)
    weighted = method(participation=0.5, sigreg=2.0)

    def term(params):
        total, terms = weighted.loss(params, state.extra, batch, KEY, 0)
        return terms["loss/participation"], (total, terms)

    gradient, (total, terms) = jax.jit(jax.grad(term, has_aux=True))(params)
    assert set(terms) - set(without) == {"loss/participation", "loss/sigreg"}
    added = 0.5 * float(terms["loss/participation"]) + 2 * float(terms["loss/sigreg"])
    assert float(total) == pytest.approx(float(plain) + added, rel=1e-5)
    # The last LayerNorm comes after what the terms act on: its parameters have no gradient of theirs.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]["norm"]))
    assert np.any(gradient["encoder"]["blocks_0"]["mlp"]["fc2"]["kernel"])
    assert not method(variance=1.0).mean_over_images and method().mean_over_images
