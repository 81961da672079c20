"""Losses that are not finite: what is skipped, what is said, and what is never saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import common
from tc_jepa import train
from tc_jepa.errors import UserError
from tc_jepa.experiment import non_finite
from tc_jepa.experiment.non_finite import NonFinite, skipping, STOPPED_FILE
from tc_jepa.monitoring.progress import Progress
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.state import initial_state
from tc_jepa.step import train_step
from tc_jepa.storage.checkpoint import saved_steps
from tests import tiny
from tests.test_train import final_state, lines, mite, tiny_config  # noqa: F401 - mite is a fixture

BAD = 4  # number of the step
OFTEN = {"model.conditioner": "none", "train.checkpoint_every": 1, "train.eval_every": 6, "train.log_every": 3}


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """A method whose loss, with its gradient, is NaN at step BAD."""

    method: object

    def __getattr__(self, name):
        return getattr(self.method, name)

    def loss(self, params, extra, batch, key, step):
        loss, metrics = self.method.loss(params, extra, batch, key, step)
        return loss * jnp.where(step + 1 == BAD, jnp.nan, 1.0), metrics


def poisoned_step(state, batch, frozen, *, method, **settings):
    return train_step(state, batch, frozen, method=Poisoned(method), **settings)


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@dataclasses.dataclass(frozen=True)
class Line:
    """A linear fit with noise, whose average is its extra state."""

    mean_over_images = True

    def init(self, key, example, frozen, given=None, given_extra=None):
        params = {"encoder": {"kernel": jnp.ones(3)}}
        return params, jax.tree.map(jnp.copy, params)

    def loss(self, params, extra, batch, key, step):
        noise = jax.random.normal(key, batch.shape)
        return jnp.square((batch + noise) @ params["encoder"]["kernel"]).mean(), {}

    def after_update(self, extra, params, step):
        return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, extra, params)


def test_a_skipped_step_changes_only_the_number_of_the_step():
    batch = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    settings = {"optimizer": tiny.OPTIMIZER, "schedules": tiny.SCHEDULES, "seed": 0, "method": Line()}
    plain = jax.jit(lambda state: train_step(state, batch, {}, **settings))
    skip = jax.jit(lambda state: skipping(poisoned_step)(state, batch, {}, **settings))
    state = initial_state(Line(), batch[0], tiny.OPTIMIZER, 0, {})
    for step in range(1, 7):
        before, skipped = state, int(step >= BAD)
        state, metrics = skip(before)
        assert int(state.step) == step and float(metrics["skipped_steps"]) == skipped
        rate = tiny.SCHEDULES.learning_rate(jnp.int32(step if step == BAD else step - skipped))
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        if step == BAD:
            assert not np.isfinite(metrics["loss"])
            same(state, before.replace(step=state.step))
        else:  # as without skipping, from the same state: draws are those of (seed, step)
            expected, plain_metrics = plain(before)
            same(state, expected)
            assert metrics["loss"] == plain_metrics["loss"]


@pytest.fixture(scope="module")
def skipped(tmp_path_factory, mite):  # noqa: F811
    """A run that was allowed from its start to skip a step, and did."""
    workdir = tmp_path_factory.mktemp("skipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", poisoned_step)
        tiny.train(tiny_config(**OFTEN, **{"train.skip_non_finite": 1}), workdir)
    return workdir


def test_a_run_that_stops_says_so_and_goes_on_where_it_may_skip(skipped, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", poisoned_step)
    config = tiny_config(**OFTEN)
    with pytest.raises(UserError, match="loss is nan at step 4; last good .*: step 2. .*train.skip_non_finite=1"):
        tiny.train(config, tmp_path)  # of steps 1, 2 and 3, which are saved, the last is followed by the NaN
    assert saved_steps(tmp_path)[-1] == 3
    with pytest.raises(UserError, match="stopped before: loss is nan at step 4"):
        common.check_resumable(tmp_path, config)
    config.train.skip_non_finite = 1
    common.check_resumable(tmp_path, config)
    tiny.train(config, tmp_path)
    assert not (tmp_path / STOPPED_FILE).exists()
    # Two programs made its steps, whose last digits may differ.
    rows, expected_rows = lines(tmp_path), lines(skipped)
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows] == [0, 3, BAD, 6]
    assert rows[-1]["loss"] == pytest.approx(expected_rows[-1]["loss"], rel=1e-5)
    assert rows[-1]["skipped_steps"] == 1
    expected, found = final_state(skipped), final_state(tmp_path)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_skipped_step_is_in_the_log_without_what_is_not_finite(skipped):
    rows = {row["step"]: row for row in lines(skipped)}
    assert sorted(rows) == [0, 3, 4, 6]
    assert [rows[step]["skipped_steps"] for step in (3, 4, 6)] == [0, 1, 1]
    assert "loss" not in rows[4] and "loss" in rows[6] and np.isfinite(list(rows[4].values())).all()


def test_more_steps_than_may_be_skipped_stop_the_run(tmp_path):
    with Progress(tmp_path, 0, 10, log_every=1, batch_size=1, skip=2) as progress:
        for step, (loss, skipped) in enumerate([(1.0, 0), (np.nan, 1), (1.0, 1), (np.inf, 2), (np.nan, 3)], start=1):
            metrics = {"loss": loss, "gradient_norm": 1.0, "skipped_steps": skipped}
            progress.dispatched(step, {name: jnp.float32(value) for name, value in metrics.items()})
        with pytest.raises(NonFinite, match="at step 5") as stopped:
            progress.flush()
    assert stopped.value.last_finite == 3
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["params", "extra", "opt_state"])
def test_a_state_that_is_not_finite_is_not_saved(part):
    state = initial_state(Line(), np.zeros(3), tiny.OPTIMIZER, 0, {})
    non_finite.check_parameters(state, 0)
    leaves, tree = jax.tree.flatten(getattr(state, part))
    leaves[-1] = leaves[-1].astype(float).at[(0,) * leaves[-1].ndim].set(jnp.inf)
    with pytest.raises(NonFinite, match=rf"\['{part}'\].* is not finite after the update at step 0"):
        non_finite.check_parameters(state.replace(**{part: tree.unflatten(leaves)}), 0)


def test_an_encoder_that_is_not_finite_is_not_opened(skipped, monkeypatch):
    restored = pretrained.restored_encoder

    def spoilt(*arguments, **keywords):
        params, step = restored(*arguments, **keywords)
        kernel = np.array(params["patch_embed"]["kernel"])
        kernel.flat[3] = np.nan
        return params | {"patch_embed": params["patch_embed"] | {"kernel": kernel}}, step

    pretrained.open_encoder(skipped)
    monkeypatch.setattr(pretrained, "restored_encoder", spoilt)
    with pytest.raises(UserError, match=r"\['encoder'\]\['patch_embed'\]\['kernel'\]"):
        pretrained.open_encoder(skipped)
