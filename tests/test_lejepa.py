"""LeJEPA: SIGReg is the Epps-Pulley statistic, views are independent and resumable, features do not collapse."""

import contextlib
import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from tc_jepa.batch import ViewBatch
from tc_jepa.config import lejepa as config_lejepa
from tc_jepa.data import photometric, pipeline
from tc_jepa.data.inputs.views import Views
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.transforms import Crop
from tc_jepa.distributed import sharding
from tc_jepa.evaluation.tasks.rank import participation_ratio
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.methods import lejepa
from tc_jepa.methods.lejepa import LeJepa
from tc_jepa.methods.method import init_encoder
from tc_jepa.methods.sigreg import epps_pulley, sigreg
from tc_jepa.models import layers, vit
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.projector import Projector
from tc_jepa.optimizer import match_rules, weight_decay_rules
from tc_jepa.report import looks_lejepa
from tests import tiny

NO_COLOURS = Photometric(0.0, 0.4, 0.4, 0.2, 0.1, 0.0, 0.0, (0.1, 2.0), 0.0)
COLOURS = dataclasses.replace(
    NO_COLOURS, jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5, solarise_probability=0.2
)
CROP = Crop(tiny.IMAGE, (0.3, 1.0), (3 / 4, 4 / 3), True)
INPUTS = Views(3, CROP, COLOURS)
KEY = jax.random.key(0)
SOURCE = SceneSource(0, "train", 20, 32)


def method(backend=PLAIN, **changes) -> LeJepa:
    linear = layers.Linear(std=0.1)
    encoder = vit.VisionTransformer(vit.Size(32, 1, 4, 64), tiny.PATCH, linear, backend=backend)
    return dataclasses.replace(LeJepa(encoder, Projector(32, 2, 8, linear), weight=0.05, slices=16), **changes)


def view_batch(size: int, views: int = 3, seed: int = 0) -> ViewBatch:
    """Random images; each view is a noisy copy of its image."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 1, tiny.IMAGE, tiny.IMAGE, 3))
    noise = rng.integers(-20, 21, (size, views, tiny.IMAGE, tiny.IMAGE, 3))
    return ViewBatch(np.clip(images + noise, 0, 255).astype(np.uint8))


def initial(chosen: LeJepa):
    example = jax.tree.map(lambda x: x[0], view_batch(1))
    return jax.jit(lambda: chosen.init(jax.random.key(0), example, {})[0])()


# SIGReg


def epps_pulley_by_hand(x: np.ndarray) -> float:
    """The statistic of N samples, in float64, sample by sample, integrated from -3 to 3."""
    t = np.linspace(-3.0, 3.0, 33)
    squared = []
    for point in t:
        empirical = sum(np.exp(1j * point * sample) for sample in x) / len(x)
        squared.append(abs(empirical - np.exp(-(point**2) / 2)) ** 2 * np.exp(-(point**2) / 2))
    return len(x) * float(sum((a + b) / 2 * (t[1] - t[0]) for a, b in itertools.pairwise(squared)))


def test_sigreg_is_the_mean_statistic_over_directions_and_views():
    samples = np.random.default_rng(0).normal(0.3, 1.7, (2, 9, 5)).astype(np.float32)
    key = jax.random.key(3)
    directions = np.asarray(jax.random.normal(key, (5, 7)), np.float64)
    directions /= np.sqrt(np.square(directions).sum(axis=0))
    expected = [epps_pulley_by_hand(samples[v].astype(np.float64) @ directions[:, s]) for v in (0, 1) for s in range(7)]
    assert float(sigreg(samples, key, 7)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_gaussian_scores_far_below_anything_else():
    normal = np.random.default_rng(0).normal(size=(2000, 1)).astype(np.float32)
    score = float(epps_pulley(normal)[0])
    for other in (normal * 0.5, normal * 2, normal + 1, np.sign(normal), normal * 0):
        assert float(epps_pulley(other)[0]) > 30 * score


def test_sigreg_pulls_a_collapsed_batch_apart():
    samples = jax.random.normal(jax.random.key(0), (256, 8)) * jnp.array([0.3] + [0.01] * 7) + 0.5
    assert participation_ratio(np.asarray(samples)) < 1.1
    optimizer = optax.adam(0.05)

    def step(carry, key):
        samples, state = carry
        updates, state = optimizer.update(jax.grad(sigreg)(samples, key, 32), state)
        return (optax.apply_updates(samples, updates), state), None

    keys = jax.random.split(jax.random.key(1), 300)
    (samples, _), _ = jax.jit(lambda s: jax.lax.scan(step, (s, optimizer.init(s)), keys))(samples)
    assert participation_ratio(np.asarray(samples)) > 7.5
    np.testing.assert_allclose(samples.mean(axis=0), 0.0, atol=0.2)
    np.testing.assert_allclose(samples.std(axis=0), 1.0, atol=0.2)


# The method


def test_equal_views_have_no_invariance_loss_and_others_their_variance():
    one = jax.random.normal(jax.random.key(0), (1, 5, 4))
    assert float(lejepa.invariance(jnp.tile(one, (3, 1, 1)))) == pytest.approx(0.0, abs=1e-12)
    views = np.random.default_rng(0).normal(size=(3, 5, 4))
    assert float(lejepa.invariance(views)) == pytest.approx(views.var(axis=0).mean(), rel=1e-5)


def test_projections_keep_image_and_view_apart():
    """Permuting images permutes projections; the projector alone sees the whole batch, which stays the same."""
    chosen = method()
    params, batch = tiny.lively(initial(chosen)), view_batch(4)
    project = jax.jit(lambda params, views: chosen.project(params, chosen.features(params, views)))
    projections = project(params, batch.views)
    assert projections.shape == (3, 4, 8)
    np.testing.assert_allclose(project(params, batch.views[::-1]), projections[:, ::-1], atol=1e-3)
    np.testing.assert_allclose(project(params, batch.views[:, ::-1]), projections[::-1], atol=1e-3)


def test_the_projector_normalises_each_channel_over_the_whole_batch():
    x = np.random.default_rng(0).normal(3.0, 5.0, (6, 2, 4)).astype(np.float32)
    projector = Projector(width=5, depth=1, output_width=3, linear=layers.Linear(std=1.0))
    params = tiny.lively(projector.init(jax.random.key(0), x)["params"])
    hidden = x @ params["fc_0"]["kernel"]
    normed = (hidden - hidden.mean(axis=(0, 1))) / np.sqrt(hidden.var(axis=(0, 1)) + 1e-5)
    normed = np.maximum(normed * params["norm_0"]["scale"] + params["norm_0"]["bias"], 0.0)
    expected = normed @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(projector.apply({"params": params}, x), expected, atol=1e-3)


def test_a_bfloat16_projector_does_not_round_its_projections():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
    projector = Projector(width=5, depth=1, output_width=3, linear=layers.Linear(jnp.bfloat16))
    projections, _ = projector.init_with_output(jax.random.key(0), x)
    assert projections.dtype == jnp.float32
    assert (projections != projections.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9


def test_the_initial_encoder_is_that_of_every_method():
    chosen = method()
    example = jax.tree.map(lambda x: x[0], view_batch(1))
    params, extra = chosen.init(jax.random.key(3), example, {})
    expected = init_encoder(chosen.encoder, (tiny.IMAGE, tiny.IMAGE, 3), jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], expected)
    assert extra == {} and chosen.after_update(extra, params, 0) == {}
    assert chosen.evaluation_encoder(params, extra) is params["encoder"]
    given = {"encoder": jax.tree.map(jnp.zeros_like, expected)}
    warm, _ = chosen.init(jax.random.key(3), example, {}, given)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(warm["encoder"]))
    jax.tree.map(np.testing.assert_array_equal, warm["projector"], params["projector"])


@functools.cache
def gradient_on(devices: int):
    """The terms of the loss, and its gradient, on a mesh of some devices."""
    mesh = jax.make_mesh(
        (devices, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )
    chosen = method(Backend(sharding.constrain_to(mesh)))
    params = jax.device_put(tiny.lively(initial(chosen)), sharding.replicated(mesh))
    function = jax.value_and_grad(lambda p, batch: chosen.loss(p, {}, batch, KEY, 0), has_aux=True)
    (loss, terms), gradient = jax.jit(function)(params, sharding.put_batch(mesh, view_batch(16)))
    return {name: float(value) for name, value in (terms | {"loss": loss}).items()}, jax.device_get(gradient)


def test_the_loss_weighs_its_terms_and_reaches_every_parameter():
    terms, gradient = gradient_on(1)
    assert terms["loss"] == pytest.approx(0.05 * terms["loss/sigreg"] + 0.95 * terms["loss/invariance"], rel=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(leaf), jax.tree_util.keystr(path)
    match_rules(weight_decay_rules(), gradient)


def test_eight_devices_compute_what_one_does():
    (terms, gradient), (expected_terms, expected) = gradient_on(8), gradient_on(1)
    assert terms == pytest.approx(expected_terms, rel=1e-4)
    norm = float(optax.tree.norm(expected))
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(gradient), strict=True
    ):
        assert np.linalg.norm(other - one) <= 1e-4 * norm, jax.tree_util.keystr(path)


@functools.cache
def trainer():
    """60 steps on one batch as a function of the parameters and the weight of SIGReg -> (losses, spread)."""
    chosen, optimizer, batch = method(), optax.adam(3e-3), view_batch(32)

    def train(params, weight):
        weighed = dataclasses.replace(chosen, weight=weight)

        def step(carry, number):
            params, state = carry
            loss_of = functools.partial(weighed.loss, extra={}, batch=batch, step=number)
            key = jax.random.fold_in(KEY, number)
            (loss, _), gradient = jax.value_and_grad(lambda p: loss_of(p, key=key), has_aux=True)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(60))
        return losses, chosen.project(params, chosen.features(params, batch.views)).std(axis=(0, 1)).mean()

    return jax.jit(train), initial(chosen)


@pytest.mark.parametrize(
    ("weight", "fallen", "deviation"), [(0.05, (0.0, 0.7), (0.7, 1.3)), (0.0, (0.0, 0.1), (0.0, 0.3))]
)
def test_the_loss_falls_and_sigreg_alone_prevents_collapse(weight, fallen, deviation):
    train, params = trainer()
    losses, spread = train(params, weight)
    assert fallen[0] < losses[-1] / losses[0] < fallen[1]
    assert deviation[0] < spread < deviation[1]


def test_held_out_numbers_are_the_loss_in_fixed_directions():
    chosen = method()
    params, batch = initial(chosen), view_batch(8)
    numbers = jax.jit(chosen.heldout)(params, {}, batch, 0)
    loss, terms = jax.jit(chosen.loss)(params, {}, batch, jax.random.key(0), 0)
    expected = {name.replace("loss/", "heldout/"): value for name, value in terms.items() if "loss/" in name}
    expected["heldout/loss"] = loss
    assert {name: float(value) for name, value in numbers.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    assert chosen.heldout_summary({"loss": {"heldout/loss": 1.0}}) == {"heldout/loss": 1.0}


# Views


def batches(start: int, count: int, inputs: Views = INPUTS) -> list[np.ndarray]:
    dataset = inputs.rows(pipeline.grain.MapDataset.source(SOURCE).shuffle(seed=1).repeat(None), (2, 3))
    dataset = inputs.batched(dataset.batch(6, drop_remainder=True), 6, 1)
    with contextlib.closing(pipeline.iterate(dataset, start=start, workers=0)) as iterator:
        return [np.array(batch.views) for batch in itertools.islice(iterator, count)]


def test_a_resumed_stream_repeats_its_views():
    whole = batches(0, 5)
    assert whole[0].shape == (6, *INPUTS.example(SOURCE[0]).views.shape) and whole[0].dtype == np.uint8
    np.testing.assert_array_equal(batches(3, 2), whole[3:])


def test_views_are_independent_draws_of_the_same_image():
    examples = np.random.default_rng(0)
    view = INPUTS.random_map(SOURCE[0], examples).views
    assert len({image.tobytes() for image in view}) == 3
    again = INPUTS.random_map(SOURCE[0], examples).views
    assert not {image.tobytes() for image in view} & {image.tobytes() for image in again}
    # Another view does not change those before it: each has its own draws.
    few, many = (
        dataclasses.replace(INPUTS, count=count).random_map(SOURCE[0], np.random.default_rng(5)).views
        for count in (2, 4)
    )
    np.testing.assert_array_equal(many[:2], few)


def test_the_first_view_is_the_image_of_a_row_and_of_a_batch():
    row = INPUTS.example(SOURCE[0])
    np.testing.assert_array_equal(row.images, row.views[0])
    batch = view_batch(4)
    np.testing.assert_array_equal(batch.images, batch.views[:, 0])


def test_operations_happen_as_often_as_asked():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)

    def share(**changes):
        chosen = dataclasses.replace(NO_COLOURS, blur_sigma=(1.0, 2.0), **changes)
        return np.mean([not np.array_equal(chosen.apply(image, rng)[0], image) for _ in range(400)])

    assert share() == 0.0
    for name in ("jitter_probability", "grey_probability", "blur_probability", "solarise_probability"):
        assert share(**{name: 0.3}) == pytest.approx(0.3, abs=0.08), name
        assert share(**{name: 1.0}) == pytest.approx(1.0, abs=0.05), name


PIXELS = np.array([[[200, 100, 50], [0, 128, 255]]], np.uint8)


@pytest.mark.parametrize(
    ("operation", "amount", "expected"),
    [
        (photometric.adjust_brightness, 1.5, [[255, 150, 75], [0, 192, 255]]),
        (photometric.adjust_brightness, 0.0, [[0, 0, 0], [0, 0, 0]]),
        (photometric.adjust_contrast, 0.5, [[157, 107, 82], [57, 121, 184]]),  # the mean grey is 114
        (photometric.adjust_contrast, 2.0, [[255, 86, 0], [0, 142, 255]]),
        (photometric.adjust_saturation, 0.0, [[124, 124, 124], [104, 104, 104]]),
        (photometric.adjust_saturation, 2.0, [[255, 76, 0], [0, 152, 255]]),
        (photometric.shift_hue, 0.0, [[200, 100, 50], [0, 128, 255]]),
        (photometric.shift_hue, 1 / 3, [[50, 200, 100], [255, 0, 128]]),
    ],
)
def test_colours_change_as_in_torchvision(operation, amount, expected):
    np.testing.assert_allclose(operation(PIXELS, amount)[0].astype(int), expected, atol=3)


def test_solarise_inverts_the_bright_half_and_blur_keeps_the_mean():
    np.testing.assert_array_equal(photometric.solarise(PIXELS)[0], [[55, 100, 50], [0, 127, 0]])
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    blurred = photometric.blur(image, 2.0)
    assert blurred.mean() == pytest.approx(image.mean(), abs=3)
    assert blurred.std() < 0.5 * image.std()


@pytest.mark.parametrize(
    ("parameter", "changes", "again"),
    [
        ("brightness", {"brightness": 0.4}, lambda x, s: photometric.adjust_brightness(x, 1 + s)),
        ("contrast", {"contrast": 0.4}, lambda x, s: photometric.adjust_contrast(x, 1 + s)),
        ("saturation", {"saturation": 0.4}, lambda x, s: photometric.adjust_saturation(x, 1 + s)),
        ("hue", {"hue": 0.1}, photometric.shift_hue),
        ("grey", {"grey_probability": 1.0}, lambda x, _: photometric.adjust_saturation(x, 0.0)),
        ("blur", {"blur_probability": 1.0}, photometric.blur),
        ("solarise", {"solarise_probability": 1.0}, lambda x, _: photometric.solarise(x)),
    ],
)
def test_parameters_are_those_of_what_was_done(parameter, changes, again):
    still = Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (1.0, 2.0), 0.0)
    place, image = photometric.PARAMETERS.index(parameter), np.array(SOURCE[0].image)
    chosen = dataclasses.replace(still, jitter_probability=float(place < 4), **changes)
    assert not still.apply(image, np.random.default_rng(0))[1].any()
    for seed in range(5):
        found, done = chosen.apply(image, np.random.default_rng(seed))
        assert done.dtype == np.float32 and np.flatnonzero(done).tolist() == [place]
        expected = again(image, float(done[place]))
        assert np.abs(found.astype(int) - expected).mean() < 1  # hues are rounded


# The configuration


def test_the_configuration_reaches_method_and_inputs():
    config = base.get_config()
    config.lejepa.views, config.lejepa.weight, config.lejepa.slices, config.lejepa.hue = 5, 0.1, 33, 0.3
    config.lejepa.projector.width, config.lejepa.projector.depth, config.lejepa.projector.output = 24, 1, 6
    config.image.size, config.image.crop_scale, config.image.flip = 32, (0.1, 0.9), True
    config.model.encoder = "nano"
    chosen, inputs, *_ = config_lejepa.build(config)
    assert (chosen.weight, chosen.slices) == (0.1, 33)
    assert (chosen.projector.width, chosen.projector.depth, chosen.projector.output_width) == (24, 1, 6)
    assert chosen.encoder.size == vit.SIZES["nano"]
    assert inputs.crop == Crop(32, (0.1, 0.9), (3 / 4, 4 / 3), True)
    assert inputs.photometric == dataclasses.replace(COLOURS, hue=0.3)
    assert inputs.example(SOURCE[0]).views.shape == (5, 32, 32, 3)


def test_the_report_shows_the_views_of_the_first_batch():
    config = base.get_config()
    config.update_from_flattened_dict(
        tiny.SMALL_RUN | {"method.name": "lejepa", "lejepa.views": 3, "model.encoder": "nano", "data.train_scenes": 20}
    )
    experiment = build_experiment(config)
    (gallery,) = looks_lejepa.galleries(types.SimpleNamespace(experiment=experiment), None)
    shown = np.array([[view for _, view in figure.pictures] for figure in gallery.figures])
    np.testing.assert_array_equal(shown, experiment.first_batch(looks_lejepa.INPUTS).views)
    assert shown.shape == (6, 3, 32, 32, 3)
