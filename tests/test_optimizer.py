"""Schedules at the official code's values, and which parameters decay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.methods.targets import Momentum
from tc_jepa.optimizer import adamw, match_rules, Schedules, weight_decay_rules
from tests import tiny

# The released H/14 recipe at a tenth of its steps (ijepa configs/in1k_vith14_ep300.yaml).
OFFICIAL = Schedules(18_750, 2_500, 2e-4, 1e-3, 1e-6, 0.04, 0.4)


@pytest.mark.parametrize(
    ("update", "learning_rate"),
    [
        (0, 2e-4),
        (1, 2e-4 + 8e-4 / 2500),
        (2499, 2e-4 + 2499 * 8e-4 / 2500),
        (2500, 1e-3),
        (2501, 1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * 1 / 16250))),
        (10_625, 1e-6 + (1e-3 - 1e-6) * 0.5),
        (18_750, 1e-6),
    ],
)
def test_learning_rate_follows_the_official_warmup_and_cosine(update, learning_rate):
    assert float(OFFICIAL.learning_rate(jnp.array(update))) == pytest.approx(learning_rate, rel=1e-5)


def test_weight_decay_is_a_cosine_and_momentum_a_line():
    momentum = Momentum(0.996, 1.0, 18_750)
    assert float(OFFICIAL.weight_decay(jnp.array(0))) == pytest.approx(0.04)
    assert float(OFFICIAL.weight_decay(jnp.array(1))) == pytest.approx(
        0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi / 18_750))
    )
    assert float(OFFICIAL.weight_decay(jnp.array(18_750))) == pytest.approx(0.4)
    assert float(momentum(jnp.array(0))) == pytest.approx(0.996)
    assert float(momentum(jnp.array(2_500))) == pytest.approx(0.996 + 0.004 * 2_500 / 18_750)
    assert float(momentum(jnp.array(18_750))) == pytest.approx(1.0)


def test_a_run_shorter_than_its_warmup_stays_on_the_ramp():
    short = Schedules(3, 100, 0.0, 1.0, 0.5, 0.04, 0.4)
    assert [float(short.learning_rate(jnp.array(i))) for i in (1, 2, 3)] == pytest.approx([0.01, 0.02, 0.03])


def test_only_matrices_and_the_mask_token_decay():
    params = tiny.state(tiny.jepa()).params
    decays = match_rules(weight_decay_rules(), params)
    for path, decay in jax.tree_util.tree_leaves_with_path(decays):
        name = "/".join(entry.key for entry in path)
        assert decay == (name.endswith("/kernel") or name == "predictor/mask_token"), name


def test_a_parameter_that_no_rule_covers_is_named():
    with pytest.raises(ValueError, match="encoder/strange"):
        match_rules(weight_decay_rules(), {"encoder": {"strange": jnp.zeros(1), "bias": jnp.zeros(1)}})


def test_the_first_update_uses_the_schedules_first_values():
    # AdamW's first step moves every weight by lr * (sign of the gradient + wd * weight), torch's rule.
    params = {"encoder": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}}
    transform = adamw(OFFICIAL, 0.9, 0.999, 1e-8)
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
    rate, decay = float(OFFICIAL.learning_rate(jnp.array(1))), float(OFFICIAL.weight_decay(jnp.array(1)))
    np.testing.assert_allclose(updates["encoder"]["kernel"], -rate * (1 + decay * 3.0), rtol=1e-5)
    np.testing.assert_allclose(updates["encoder"]["bias"], -rate, rtol=1e-5)
