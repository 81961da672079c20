"""The step as a pure function: what it moves, by how much, and the same on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.models import layers
from tc_jepa.models.conditioners.base import Conditioner
from tests import tiny


def test_step_moves_the_target_by_its_momentum_and_only_so():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(4)
    state = state.replace(step=jnp.array(10), extra=tiny.lively(state.extra))
    after, metrics = tiny.step_function(method)(state, batch)
    momentum = 0.9 + 10 / 100 * 0.1
    assert float(metrics["momentum"]) == pytest.approx(momentum)
    assert float(metrics["context_dropped"]) == pytest.approx(batch.context_dropped.mean())
    expected = jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, state.extra, after.params["encoder"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.extra, expected)
    assert int(after.step) == 11
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, after.params)
    assert all(jax.tree.leaves({name: moved[name] for name in ("predictor", "text")}))


def test_no_gradient_reaches_the_target_encoder():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(2)

    def loss(extra):
        return method.forward(state.params, extra, batch)[0]["prediction"]

    gradient = jax.jit(jax.grad(loss))(state.extra)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_targets_are_the_target_encoders_normalised_features_at_their_places():
    method = tiny.jepa()
    params, batch = tiny.lively(tiny.state(method).extra), tiny.batch(2)
    images = layers.normalise_images(batch.images)
    targets = method.target_features(params, images, batch.target_indices)
    whole = np.asarray(method.encoder.apply({"params": params}, images))
    chosen = whole[1, batch.target_indices[1, 0, 2]]
    np.testing.assert_allclose(targets[1, 0, 2], (chosen - chosen.mean()) / chosen.std(), atol=1e-4)


@pytest.mark.parametrize(
    "method", [tiny.jepa(), dataclasses.replace(tiny.jepa(Conditioner()), text=None)], ids=["words", "none"]
)
def test_loss_falls_on_a_fixed_batch(method):
    state, batch = tiny.state(method), tiny.batch(8)
    step = tiny.step_function(method)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/prediction"]))
    assert losses[-1] < 0.7 * losses[0]


@functools.cache
def run_on(data: int, fsdp: int, steps: int = 10):
    """Losses of some steps, the first step's gradient, and how many arrays are sharded, on a mesh of some devices."""
    mesh = jax.make_mesh(
        (data, fsdp), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[: data * fsdp]
    )
    method = tiny.jepa(constrain=sharding.constrain_to(mesh))
    state, batch = tiny.state(method), sharding.put_batch(mesh, tiny.batch(8))
    layout = sharding.parameter_sharding(mesh, state, min_size=64)
    step = jax.jit(
        tiny.step(method),
        in_shardings=(layout, sharding.batch_sharding(mesh)),
        out_shardings=(layout, sharding.replicated(mesh)),
    )
    state, losses, gradient = jax.device_put(state, layout), [], None
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if gradient is None:  # AdamW's first moment is then a tenth of the gradient
            gradient = jax.tree.map(lambda moment: np.asarray(moment) / 0.1, state.opt_state[0].mu)
    sharded = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
    return np.array(losses), gradient, len(sharded)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 8), (2, 4)])
def test_eight_devices_compute_what_one_does(data, fsdp):
    losses, gradient, sharded = run_on(data, fsdp)
    expected_losses, expected_gradient, _ = run_on(1, 1)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(expected_gradient)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected_gradient):
        other = functools.reduce(lambda node, entry: node[entry.key], path, gradient)
        assert np.linalg.norm(other - leaf) <= 1e-5 * norm, jax.tree_util.keystr(path)
    assert (sharded > 0) == (fsdp > 1)


def test_mesh_and_batch_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="mesh.data=3 x mesh.fsdp=1"):
        sharding.make_mesh(3, 1)
    with pytest.raises(UserError, match="mesh.data=-1, mesh.fsdp=-1"):
        sharding.make_mesh(-1, -1)
    mesh = sharding.make_mesh(-1, 2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    with pytest.raises(UserError, match="train.batch_size=12"):
        sharding.check_batch(mesh, 12, "train.batch_size")
