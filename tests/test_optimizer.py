"""Schedules, AdamW and the EMA have the official code's values, and the same parameters decay."""

import dataclasses
import functools
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from tc_jepa.experiment.experiment import schedules
from tc_jepa.methods.targets import EmaEncoder, Momentum
from tc_jepa.optimizer import adamw, match_rules, Schedules, weight_decay_rules
from tc_jepa.state import TrainState
from tc_jepa.step import train_step
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
def test_learning_rate_is_the_official_warmup_and_cosine(update, learning_rate):
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


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 1 / 8), ("linear", 1 / 64)])
def test_learning_rates_follow_the_batch_size(rule, factor):
    config = base.get_config()
    config.train.batch_size, config.optimizer.batch_rule = 32, rule
    expected = dataclasses.replace(schedules(base.get_config()), start_learning_rate=2e-4 * factor)
    expected = dataclasses.replace(expected, peak_learning_rate=1e-3 * factor, final_learning_rate=1e-6 * factor)
    assert schedules(config) == expected
    config.train.batch_size = 2048
    assert schedules(config) == schedules(base.get_config())


def test_only_matrices_and_the_mask_token_decay():
    params = tiny.state(tiny.jepa()).params
    decays = match_rules(weight_decay_rules(), params)
    for path, decay in jax.tree_util.tree_leaves_with_path(decays):
        name = "/".join(entry.key for entry in path)
        assert decay == (name.endswith("/kernel") or name == "predictor/mask_token"), name


def test_a_parameter_that_no_rule_covers_is_named():
    with pytest.raises(ValueError, match="encoder/strange"):
        match_rules(weight_decay_rules(), {"encoder": {"strange": jnp.zeros(1), "bias": jnp.zeros(1)}})


class GivenGradients:
    """A method whose gradients at each step are given, with the EMA encoder of a JEPA."""

    def __init__(self, gradients, momentum):
        self.gradients, self.momentum, self.target = gradients, momentum, EmaEncoder(None, normalise="layer")

    def loss(self, params, extra, batch, key, step):
        return optax.tree.vdot(jax.tree.map(lambda g: g[step], self.gradients), params), {}

    def after_update(self, extra, params, step):
        return self.target.update(extra, params["encoder"], self.momentum(step))


def official_training(params, gradients, decaying, steps, warmup):
    """Parameters and their moving averages, in float64 by path, after each step of I-JEPA's training loop.

    A step, as in ijepa src/train.py:291-336: both schedulers advance, torch.optim.AdamW updates, then the average.
    """
    average = dict(params)
    first, second = ({path: np.zeros_like(p) for path, p in params.items()} for _ in range(2))
    for t in range(1, steps + 1):
        # src/utils/schedulers.py:31-76, from 2e-2 by 5e-2 to 1e-3 and from 0.04 to 0.4
        rate = 1e-3 + (5e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup)))
        if t < warmup:
            rate = 2e-2 + t / warmup * (5e-2 - 2e-2)
        decay = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * t / steps))
        momentum = 0.9 + (t - 1) * (1.0 - 0.9) / steps  # src/train.py:228-229
        for path, p in params.items():
            g = gradients[path][t - 1]
            p = p * (1 - rate * decay) if path in decaying else p  # src/helper.py:121-139
            first[path] = 0.9 * first[path] + (1 - 0.9) * g
            second[path] = 0.999 * second[path] + (1 - 0.999) * g**2
            denominator = np.sqrt(second[path]) / math.sqrt(1 - 0.999**t) + 1e-8
            params = params | {path: p - rate / (1 - 0.9**t) * first[path] / denominator}
            average[path] = momentum * average[path] + (1 - momentum) * params[path]
        yield params, average


def test_five_steps_are_those_of_the_official_training_loop():
    rng, steps, warmup = np.random.default_rng(0), 5, 2
    shapes = {("encoder", "kernel"): (3, 2), ("encoder", "bias"): (2,), ("encoder", "scale"): (2,)}
    shapes |= {("predictor", "mask_token"): (4,), ("predictor", "bias"): (2,)}
    start = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    gradients = {path: 1e-3 * rng.normal(size=(steps, *shape)) for path, shape in shapes.items()}
    decaying = {("encoder", "kernel"), ("predictor", "mask_token")}

    single = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    params = single(traverse_util.unflatten_dict(start))
    method = GivenGradients(single(traverse_util.unflatten_dict(gradients)), Momentum(0.9, 1.0, steps))
    chosen = Schedules(steps, warmup, 2e-2, 5e-2, 1e-3, 0.04, 0.4)
    optimizer = adamw(chosen, 0.9, 0.999, 1e-8)
    state = TrainState(jnp.zeros((), jnp.int32), params, params["encoder"], optimizer.init(params))
    settings = {"method": method, "optimizer": optimizer, "schedules": chosen, "seed": 0}
    step = jax.jit(lambda state: train_step(state, None, {}, **settings)[0])
    for expected, average in official_training(start, gradients, decaying, steps, warmup):
        state = step(state)
        for path, value in traverse_util.flatten_dict(state.params).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=str(path))
        for name, value in state.extra.items():
            np.testing.assert_allclose(value, average["encoder", name], rtol=1e-5, atol=1e-6, err_msg=name)
