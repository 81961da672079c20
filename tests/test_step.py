"""The step as a pure function: what it moves, by how much, and the same on any mesh."""

import dataclasses
import functools
import importlib
from pathlib import Path
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.experiment.devices import check_step
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners.base import Conditioner
from tc_jepa.models.conditioners.word_cross_attention import WordCrossAttention
from tc_jepa.models.kernels.backend import Backend
from tests import tiny


def test_step_moves_the_target_by_its_momentum_and_only_so():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(8)
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
    targets = method.target_features(params, images, batch.target_indices, batch.target_valid)
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


def remembering_less(blocks: bool, conditioner: bool):
    method = tiny.jepa(WordCrossAttention(remat=conditioner), remat=blocks)
    return dataclasses.replace(method, encoder=method.encoder.clone(remat=blocks))


def deeper(**changes):
    """A method whose encoder has two blocks; `changes` are fields of it."""
    method = tiny.jepa()
    encoder = method.encoder.clone(size=vit.Size(width=32, depth=2, heads=4, hidden=64), **changes)
    return dataclasses.replace(method, encoder=encoder, target=dataclasses.replace(method.target, encoder=encoder))


@functools.cache
def first_gradient(method, accumulate: int):
    """The gradient of one step, and its metrics, at parameters of ordinary size."""
    state = tiny.state(method)
    state = state.replace(params=tiny.lively(state.params))
    after, metrics = jax.jit(functools.partial(tiny.step(method), accumulate=accumulate))(state, tiny.batch(8))
    return jax.tree.map(lambda moment: np.asarray(moment) / 0.1, after.opt_state[0].mu), metrics


@pytest.mark.parametrize(
    ("method", "accumulate", "plain"),
    [
        (tiny.jepa(), 4, tiny.jepa()),
        (remembering_less(blocks=True, conditioner=True), 1, tiny.jepa()),
        (deeper(scan=True, remat=True), 1, deeper()),
    ],
    ids=["parts", "remat", "scan"],
)
def test_what_saves_memory_or_compilation_changes_no_gradient(method, accumulate, plain):
    gradient, metrics = first_gradient(method, accumulate)
    expected, expected_metrics = first_gradient(plain, 1)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(expected)))
    difference = jax.tree.map(np.subtract, gradient, expected)
    assert np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(difference))) <= 1e-5 * norm
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        if accumulate > 1 and name.startswith("features/"):
            continue  # those of a part, see tests/test_feature_metrics.py
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_a_bfloat16_residual_stream_changes_gradients_by_its_rounding_only():
    plain = tiny.jepa()
    encoder = plain.encoder.clone(residual=jnp.bfloat16)
    rounded = dataclasses.replace(plain, encoder=encoder, predictor=plain.predictor.clone(residual=jnp.bfloat16))
    (gradient, _), (expected, _) = first_gradient(rounded, 1), first_gradient(plain, 1)
    pairs = list(zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True))
    assert {leaf.dtype for leaf, _ in pairs} == {np.dtype(np.float32)}
    difference = sum(np.square(one - other).sum() for one, other in pairs)
    norm = sum(np.square(leaf).sum() for _, leaf in pairs)
    assert 1e-8 * norm < difference < 1e-2 * norm


@pytest.mark.parametrize(("blocks", "conditioner"), [(True, False), (False, True)])
def test_what_is_computed_again_is_what_was_asked_for(blocks, conditioner):
    method = remembering_less(blocks, conditioner)
    state = jax.eval_shape(lambda: tiny.state(method))
    jaxpr = str(jax.make_jaxpr(tiny.step(method))(state, tiny.batch(2)))
    again = (tiny.DEPTH + method.encoder.size.depth) * blocks + tiny.DEPTH * conditioner
    assert jaxpr.count("= remat2[") + jaxpr.count("= checkpoint[") == again


def test_a_loss_of_the_whole_batch_is_not_computed_in_parts():
    method = tiny.jepa()
    method = dataclasses.replace(method, target=dataclasses.replace(method.target, normalise="batch"))
    with pytest.raises(ValueError, match="accumulate"):
        tiny.step(method)(tiny.state(method), tiny.batch(2), accumulate=2)
    config = importlib.import_module("configs.imagenette").get_config()
    config.data.path, config.train.accumulate, config.train.batch_size = "", 2, 16
    with pytest.raises(UserError) as raised:
        tiny.train(config, Path("/nowhere"))
    assert raised.value.about == "train.accumulate"


def test_every_device_has_an_equal_share_of_every_part():
    config = base.get_config()
    mesh = sharding.make_mesh(8, 1)
    for images, parts, fault in ((32, 4, ""), (24, 2, "train.accumulate"), (12, 1, "train.batch_size")):
        config.train.batch_size, config.train.accumulate = images, parts
        experiment = types.SimpleNamespace(config=config, mesh=mesh, method=tiny.jepa())
        if not fault:
            check_step(experiment)
            continue
        with pytest.raises(UserError) as raised:
            check_step(experiment)
        assert raised.value.about == fault


def test_kernels_for_another_kind_of_device_are_refused():
    config = base.get_config()
    config.model.kernels = "tpu"
    experiment = types.SimpleNamespace(config=config, mesh=sharding.make_mesh(8, 1), method=tiny.jepa())
    with pytest.raises(UserError) as raised:
        check_step(experiment)
    assert raised.value.about == "model.kernels"


@functools.cache
def run_on(data: int, fsdp: int, steps: int = 10):
    """Losses of some steps, the first step's gradient, and how many arrays are sharded, on a mesh of some devices."""
    mesh = jax.make_mesh(
        (data, fsdp), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[: data * fsdp]
    )
    method = tiny.jepa(backend=Backend(sharding.constrain_to(mesh)))
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


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
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
