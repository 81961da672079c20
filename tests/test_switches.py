"""Targets other than the EMA encoder's, noisy and interpolated positions, joint prediction, corrupted context images,
initialisation."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from tc_jepa.batch import JepaBatch
from tc_jepa.config import jepa as config_jepa
from tc_jepa.config import jepa_rules, models
from tc_jepa.convert import folder, weights
from tc_jepa.data.photometric import PARAMETERS
from tc_jepa.distributed.sharding import batch_sharding, make_mesh, put_batch
from tc_jepa.errors import UserError
from tc_jepa.methods import targets
from tc_jepa.methods.jepa import join_targets
from tc_jepa.methods.method import init_encoder
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners.base import Conditioner
from tc_jepa.models.positions import resized_positions, sincos_positions
from tc_jepa.optimizer import match_rules, weight_decay_rules
from tests import tiny


def initial(encoder, seed=0):
    return jax.jit(lambda: init_encoder(encoder, (tiny.IMAGE, tiny.IMAGE, 3), jax.random.key(seed)))()


def test_a_teacher_of_another_size_is_predicted_and_never_changes():
    teacher = vit.VisionTransformer(vit.Size(width=48, depth=1, heads=2, hidden=64), tiny.PATCH)
    params = tiny.lively(initial(teacher, 5))
    method = dataclasses.replace(tiny.jepa(output_width=48), target=targets.FrozenTarget(teacher, normalise="layer"))
    state, batch = tiny.state(method, teacher=params), tiny.batch(4)
    after, metrics = tiny.step_function(method)(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.extra, params)
    assert float(metrics["gradient_norm"]) > 0
    images = layers.normalise_images(batch.images)
    found = method.target_features(state.extra, images, batch.target_indices, batch.target_valid)
    whole = np.asarray(teacher.apply({"params": params}, images))[2, batch.target_indices[2, 1, 0]]
    np.testing.assert_allclose(found[2, 1, 0], (whole - whole.mean()) / whole.std(), atol=1e-3)
    assert method.target.evaluation_params(after.extra, after.params["encoder"]) is after.params["encoder"]


def test_pixel_targets_are_normalised_patches():
    width = 3 * tiny.PATCH**2
    method = dataclasses.replace(tiny.jepa(output_width=width), target=targets.Pixels(tiny.PATCH))
    state, batch = tiny.state(method), tiny.batch(4)
    assert state.extra == {}
    images = np.asarray(layers.normalise_images(batch.images))
    found = method.target_features({}, images, batch.target_indices, batch.target_valid)
    row, column = np.divmod(int(batch.target_indices[3, 0, 1]), tiny.GRID[1])
    p = tiny.PATCH
    patch = images[3, row * p : (row + 1) * p, column * p : (column + 1) * p].reshape(-1)
    np.testing.assert_allclose(found[3, 0, 1], (patch - patch.mean()) / patch.std(), atol=1e-4)
    step, losses = tiny.step_function(method), []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/prediction"]))
    assert losses[-1] < losses[0]


def test_without_a_teacher_the_encoder_learns_through_its_targets_too():
    with_teacher = tiny.jepa()
    method = dataclasses.replace(with_teacher, target=targets.OnlineEncoder(with_teacher.encoder, normalise="layer"))
    state, batch = tiny.state(method), tiny.batch(4)
    assert state.extra == {}
    params = tiny.lively(state.params)

    def gradient(method, extra):
        return jax.jit(jax.value_and_grad(lambda params: method.forward(params, extra, batch)[0]["prediction"]))(params)

    loss, through_both = gradient(method, {})
    same, through_context = gradient(with_teacher, params["encoder"])
    assert float(loss) == pytest.approx(float(same))
    difference = jax.tree.map(jnp.subtract, through_both, through_context)
    norms, before = ({name: optax.tree.norm(part) for name, part in x.items()} for x in (difference, through_context))
    assert norms["encoder"] > 0.01 * before["encoder"]
    assert norms["predictor"] < 1e-5 * before["predictor"]  # the predictor is not part of the targets
    after, _ = tiny.step_function(method)(state, batch)
    assert method.evaluation_encoder(after.params, after.extra) is after.params["encoder"]


def test_without_a_teacher_a_term_against_collapse_is_needed():
    config = base.get_config()
    config.target_encoder.kind = "online"
    with pytest.raises(UserError) as caught:
        jepa_rules.check(config)
    assert caught.value.about == "objective.anti_collapse"
    config.objective.anti_collapse.sigreg = 0.1
    jepa_rules.check(config)


def test_without_normalisation_the_targets_are_the_features_themselves():
    method = tiny.jepa()
    bare = dataclasses.replace(method, target=targets.EmaEncoder(method.encoder, normalise="none"))
    params, batch = tiny.lively(tiny.state(method).extra), tiny.batch(2)
    images = layers.normalise_images(batch.images)
    whole = np.asarray(method.encoder.apply({"params": params}, images))
    found = bare.target_features(params, images, batch.target_indices, batch.target_valid)
    np.testing.assert_allclose(found[0, 1, 0], whole[0, batch.target_indices[0, 1, 0]], atol=1e-5)


@pytest.mark.parametrize("form", ["batch", "instance"])
def test_standardised_targets_have_mean_0_and_variance_1_where_it_says(form):
    """Over eight devices; what the form does not standardise over, it leaves apart. No shared vector survives."""
    method = tiny.jepa()
    method = dataclasses.replace(method, target=targets.EmaEncoder(method.encoder, normalise=form))
    params, batch = tiny.lively(tiny.state(method).extra), tiny.batch(16)
    params["norm"]["bias"] += 7.0  # a vector that all patches share
    images = layers.normalise_images(batch.images)
    whole = np.asarray(method.encoder.apply({"params": params}, images), np.float64)
    laid = jax.device_put((images, batch.target_indices, batch.target_valid), batch_sharding(make_mesh(8, 1)))
    found = np.asarray(jax.jit(method.target_features)(params, *laid))
    chosen, valid = np.take_along_axis(whole[:, None], batch.target_indices[..., None], axis=2), batch.target_valid
    over = chosen[valid] if form == "batch" else whole
    axis, keep = (0, False) if form == "batch" else (1, True)
    mean, deviation = over.mean(axis=axis, keepdims=keep), over.std(axis=axis, keepdims=keep)
    if form == "instance":
        mean, deviation = mean[:, None], deviation[:, None]
    assert not valid.all()
    np.testing.assert_allclose(found[valid], ((chosen - mean) / deviation)[valid], atol=2e-3)
    assert method.mean_over_images == (form == "instance")


def test_position_noise_is_the_context_projection_of_a_normal_draw():
    sigma = 0.25
    quiet, noisy = tiny.jepa(), tiny.jepa(position_noise=sigma)
    state, batch = tiny.state(quiet), tiny.batch(4)
    params = tiny.lively(state.params)

    def loss(method, params, *key):
        return float(tiny.loss_function(method)(params, state.extra, batch, *key)["prediction"])

    one, other = jax.random.key(0), jax.random.key(1)
    assert loss(noisy, params) == loss(quiet, params)  # no key, as in monitoring
    assert loss(noisy, params, one) != loss(noisy, params, other) != loss(quiet, params)
    # The noise passes the projection A of the context, so a projection of zeros removes both.
    blind = jax.tree.map(lambda x: x, params)
    blind["predictor"]["predictor_embed"]["kernel"] = jnp.zeros_like(params["predictor"]["predictor_embed"]["kernel"])
    assert loss(noisy, blind, one) == loss(noisy, blind, other)
    first = tiny.step_function(noisy)(state, batch)[1]
    again = tiny.step_function(noisy)(state, batch)[1]
    later = tiny.step_function(noisy)(state.replace(step=jnp.array(1)), batch)[1]
    assert float(first["loss"]) == float(again["loss"]) != float(later["loss"])


class InputRecorder(Conditioner):
    """Stores the predictor's input."""

    def condition_input(self, tokens, words):
        self.sow("intermediates", "input", tokens.values_BxMxLxP)
        return tokens


def position_noise(batch, *key, **changes):
    """What StoP's noise of sigma 0.25 adds to the predictor's input [B, M, K + T, P]: its first P channels."""
    predictor = tiny.jepa(InputRecorder(), position_noise=0.25, depth=0, **changes).predictor
    context = np.zeros((*batch.context_indices.shape, 32), np.float32)
    places = batch.context_indices, batch.context_valid, batch.target_indices, batch.target_valid
    params = dict(predictor.init(jax.random.key(0), context, *places, None)["params"])
    params["predictor_embed"] = {"kernel": jnp.eye(32, 16), "bias": jnp.zeros(16)}

    def inputs(predictor, **rngs):
        _, stored = predictor.apply({"params": params}, context, *places, None, rngs=rngs, mutable="intermediates")
        return stored["intermediates"]["conditioner"]["input"][0]

    return np.asarray(inputs(predictor, **dict(zip(["positions"], key))) - inputs(predictor.clone(position_noise=0.0)))


def test_sigma_is_the_variance_of_the_noise_in_mask_tokens_alone():
    noise = position_noise(tiny.batch(8), jax.random.key(1))
    assert not noise[:, :, : tiny.MASKS.context_tokens].any()
    assert noise[:, :, tiny.MASKS.context_tokens :].var() == pytest.approx(0.25, rel=0.2)


def test_each_image_draws_one_of_the_levels_of_position_noise():
    """Its noise is StoP's of the same key times the square root of level / levels. Without a key there is none."""
    batch, key, levels = tiny.batch(64), jax.random.key(1), 4
    assert not position_noise(batch, position_noise_levels=levels).any()
    whole, noise = (position_noise(batch, key, position_noise_levels=n) for n in (1, levels))
    level = levels * np.square(noise).sum(axis=(1, 2, 3)) / np.square(whole).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(level, np.rint(level), rtol=1e-4)
    np.testing.assert_allclose(noise, np.sqrt(level / levels)[:, None, None, None] * whole, atol=1e-5)
    counts = np.bincount(np.rint(level).astype(int))
    assert len(counts) == levels + 1 and counts[0] == 0 and counts[1:].min() > 0.4 * 64 / levels


def test_joint_targets_see_each_other_and_weigh_the_same():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(3)
    params = tiny.lively(state.params)
    joined = join_targets(batch)
    assert joined.target_indices.shape == (3, 1, batch.target_indices[0].size)
    joint = tiny.loss_function(dataclasses.replace(method, joint_targets=True))(params, state.extra, batch)
    by_hand = tiny.loss_function(method)(params, state.extra, joined)
    apart = tiny.loss_function(method)(params, state.extra, batch)
    assert float(joint["prediction"]) == float(by_hand["prediction"]) != float(apart["prediction"])


def corrupted(size: int, seed: int = 0) -> JepaBatch:
    """A batch whose context images are others, with parameters of ordinary size."""
    rng, others = np.random.default_rng(seed), tiny.batch(size, seed + 100).images
    return tiny.batch(size)._replace(context_images=others, corruption=rng.normal(size=(size, 7)).astype(np.float32))


def test_the_context_alone_is_corrupted_and_its_parameters_change_predictions_image_by_image():
    method, batch = tiny.jepa(corruption=7), corrupted(4)
    state = tiny.state(method)
    predict = jax.jit(functools.partial(method.predict, tiny.lively(state.params), tiny.lively(state.extra)))
    first = predict(batch)

    def changed(**fields):
        guess = predict(batch._replace(**fields))
        parts = ("context", "targets", "predicted")
        return {name for name in parts if np.any(getattr(guess, name) != getattr(first, name))}

    assert changed(context_images=batch.images) == {"context", "predicted"}
    assert changed(images=batch.context_images) == {"targets"}
    parameters = batch.corruption.copy()
    for column in range(7):
        parameters[2, column] += 1.0
        assert changed(corruption=parameters) == {"predicted"}
        moved = np.abs(predict(batch._replace(corruption=parameters)).predicted - first.predicted).max(axis=(1, 2, 3))
        assert moved[2] > 1e-3 and not moved[[0, 1, 3]].any()
        parameters[2] = batch.corruption[2]
    clean, unchanged = predict(tiny.batch(4)), {"context_images": batch.images, "corruption": 0 * batch.corruption}
    np.testing.assert_allclose(clean.predicted, predict(batch._replace(**unchanged)).predicted, atol=1e-5)


def test_a_corrupted_step_without_captions_is_the_same_in_parts_on_eight_devices():
    method = dataclasses.replace(tiny.jepa(Conditioner(), corruption=7), text=None)
    wordless = {name: np.zeros((16, 0, 0), int) for name in ("caption_words", "word_valid")}
    batch = corrupted(16)._replace(**wordless, caption_valid=np.zeros((16, 0), bool))
    state = tiny.state(method)
    state = state.replace(params=tiny.lively(state.params))

    def gradient(batch, accumulate):
        after, _ = jax.jit(functools.partial(tiny.step(method), accumulate=accumulate))(state, batch)
        return jax.device_get(after.opt_state[0].mu)  # a tenth of the gradient

    whole = gradient(batch, 1)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(whole["predictor"]["corruption_mlp"]))
    assert np.any(whole["predictor"]["mask_token"])
    difference = jax.tree.map(np.subtract, whole, gradient(put_batch(make_mesh(8, 1), batch), 2))
    assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(whole)


def test_conditioning_adds_an_mlp_and_changes_no_other_initial_parameter():
    plain, conditioned = (tiny.state(tiny.jepa(corruption=n)).params for n in (0, 7))
    added = conditioned["predictor"].pop("corruption_mlp")
    assert [added[name]["kernel"].shape for name in ("fc1", "fc2", "fc3")] == [(16 + 7, 16), (16, 16), (16, 16)]
    jax.tree.map(np.testing.assert_array_equal, plain, conditioned)


def test_the_configuration_corrupts_training_and_no_held_out_images():
    config = base.get_config()
    config.update_from_flattened_dict(tiny.SMALL_RUN | {"model.conditioner": "none", "model.encoder": "nano"})
    built = config_jepa.build(config)
    assert built.inputs.corruption is None and not built.method.predictor.corruption
    config.image.context_corruption = 0.5
    method, inputs, heldout, *_ = config_jepa.build(config)
    assert method.predictor.corruption == len(PARAMETERS) and heldout.corruption is None
    found = inputs.corruption
    assert (found.brightness, found.contrast, found.saturation, found.hue) == (0.2, 0.2, 0.1, 0.05)
    assert (found.jitter_probability, found.grey_probability, found.solarise_probability) == (0.8, 0.2, 0.2)
    assert (found.blur_probability, found.blur_sigma) == (0.5, (0.1, 2.0))


@pytest.mark.parametrize("new", [(14, 14), (7, 9), (16, 11), (3, 2)])
def test_positions_on_another_grid_are_bicubic(new):
    grid = (6, 8)
    table = sincos_positions(grid, 16)
    # OpenCV's cubic kernel is torch's (a = -0.75, half-pixel centres, borders repeated, no antialiasing).
    expected = np.stack(
        [
            cv2.resize(plane, new[::-1], interpolation=cv2.INTER_CUBIC)
            for plane in table.reshape(*grid, 16).transpose(2, 0, 1)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(resized_positions(table, grid, new), expected.reshape(-1, 16), atol=1e-5)
    np.testing.assert_array_equal(resized_positions(table, grid, grid), table)


def test_images_of_other_sizes_have_positions_interpolated_from_the_trained_grid():
    trained = dataclasses.replace(tiny.jepa().encoder, trained_grid=tiny.GRID)
    params = tiny.lively(initial(trained))
    images = np.random.default_rng(0).normal(size=(2, 24, 20, 3)).astype(np.float32)
    found = trained.apply({"params": params}, images)
    assert found.shape == (2, 30, 32)
    exact = dataclasses.replace(trained, trained_grid=None).apply({"params": params}, images)
    assert np.abs(found - exact).max() > 1e-3  # the sine-cosine table of 6 x 5 differs
    same = np.random.default_rng(1).normal(size=(1, tiny.IMAGE, tiny.IMAGE, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        trained.apply({"params": params}, same),
        dataclasses.replace(trained, trained_grid=None).apply({"params": params}, same),
    )


def test_depth_rescaled_kernels_shrink_with_depth_where_they_write_to_the_residual_stream():
    linear = layers.Linear(depth_rescaled=True)
    encoder = vit.VisionTransformer(vit.Size(width=128, depth=4, heads=4, hidden=256), 4, linear)
    params = jax.jit(lambda: init_encoder(encoder, (16, 16, 3), jax.random.key(0)))()
    for i in range(4):
        block = params[f"blocks_{i}"]
        for kernel in (block["attn"]["proj"]["kernel"], block["mlp"]["fc2"]["kernel"]):
            assert float(kernel.std()) == pytest.approx(0.02 / (2 * (i + 1)) ** 0.5, rel=0.05)
        assert float(block["mlp"]["fc1"]["kernel"].std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("scan", [False, True])
def test_a_convolutional_stem_keeps_hidden_patches_hidden(scan):
    encoder = tiny.jepa().encoder.clone(stem="conv", scan=scan, size=vit.Size(width=32, depth=2, heads=4, hidden=64))
    params = initial(encoder)
    assert set(params["stem"]) == {"conv_0", "conv_1", "proj"} and "patch_embed" not in params
    match_rules(weight_decay_rules(), {"encoder": params})  # ValueError where a parameter has no rule
    images = np.random.default_rng(0).normal(size=(1, tiny.IMAGE, tiny.IMAGE, 3)).astype(np.float32)
    seen = np.array([[0, 5, 6]])

    gradient = np.asarray(
        jax.jit(jax.grad(lambda x: jnp.square(encoder.apply({"params": params}, x, seen)).sum()))(images)
    )
    reached = np.abs(np.asarray(layers.patchify(gradient, tiny.PATCH))[0]).max(axis=-1) > 0
    assert set(np.flatnonzero(reached)) == set(seen[0])


def test_a_stem_starts_with_tokens_as_large_as_its_pixels_where_it_is_scaled_by_fan_in():
    patches = np.random.default_rng(0).normal(size=(64, 9, 3 * 16**2)).astype(np.float32)
    size = vit.Size(width=256, depth=0, heads=4, hidden=64)
    images = patches.reshape(64, 3, 3, 16, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(64, 48, 48, 3)
    spread = {}
    for fan_in in (False, True):
        encoder = vit.VisionTransformer(size, 16, patch_fan_in=fan_in)
        params = jax.jit(lambda m=encoder: init_encoder(m, (48, 48, 3), jax.random.key(0)))()
        spread[fan_in] = float((layers.patchify(images, 16) @ params["patch_embed"]["kernel"]).std())
    assert spread[True] == pytest.approx(1.0, rel=0.05) and spread[False] == pytest.approx(0.02 * 768**0.5, rel=0.05)


def test_a_run_from_before_the_stem_opens_and_a_convolutional_one_is_not_converted(tmp_path):
    config = base.get_config()
    with config.unlocked():
        del config.model["stem"], config.model["patch_init"]
    assert models.encoder(config).stem == "linear" and not models.encoder(config).patch_fan_in
    encoder = tiny.jepa().encoder.clone(stem="conv")
    with pytest.raises(UserError) as error:
        folder.save(weights.EncoderWeights(encoder, {}, tiny.IMAGE), tmp_path, "a run")
    assert error.value.about == "model.stem" and not list(tmp_path.iterdir())
