"""Frozen features, probes on them, and the command that judges a run."""

import dataclasses
import json

from absl import flags
from absl.testing import flagsaver
import cv2
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from configs import base
from launch import common
from launch import evaluate as launch_evaluate
from tc_jepa.config import models
from tc_jepa.convert import folder
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Example, LabelSet
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation import encoder, results
from tc_jepa.evaluation.examples import choose
from tc_jepa.evaluation.features import FeatureStore, Part
from tc_jepa.evaluation.runner import evaluate
from tc_jepa.evaluation.scores import Truth
from tc_jepa.evaluation.task import Findings
from tc_jepa.evaluation.tasks import knn, linear_fast, rank, segmentation
from tc_jepa.methods.method import init_encoder
from tc_jepa.models import layers, vit
from tc_jepa.models.positions import sincos_positions
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.state import TrainState
from tc_jepa.storage.checkpoint import Checkpoints, CONFIG_FILE
from tests import tiny


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]).reshape(devices, 1), sharding.AXES)


def images(count: int, size: int = tiny.IMAGE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def random_params(like):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape), jnp.float32), like)


def pixels(devices: int = 1, size: int = 16, patch_size: int = 4) -> encoder.FrozenEncoder:
    return encoder.frozen_pixels(image_size=size, patch_size=patch_size, batch_size=16, mesh=mesh_of(devices))


@dataclasses.dataclass(frozen=True)
class Written:
    """Images whose labels are written into them, or not: `signal` is how much of the label the pixels show."""

    count: int
    seed: int
    signal: float = 1.0
    tasks: dict = dataclasses.field(
        default_factory=lambda: {
            "row": LabelSet("single", ("a", "b", "c", "d")),
            "cells": LabelSet("multi", ("e", "f", "g")),
        }
    )
    segmentations: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = np.random.default_rng((self.seed, index)).integers(0, 60, (16, 16, 3)).astype(float)
        if not self.tasks:
            return Example(noise.astype(np.uint8), ())
        labels = self.labels(index)
        noise[4 * labels["row"], :8] += 150 * self.signal
        noise[1:4, 12:15] += 150 * self.signal * labels["cells"]  # one channel a class
        return Example(noise.astype(np.uint8), ())

    def labels(self, index):
        draw = np.random.default_rng((self.seed, index, 1))
        return {"row": int(draw.integers(4)), "cells": draw.random(3) < 0.4}


# Frozen encoders


def test_any_number_of_images_gives_the_same_features_on_one_and_eight_devices():
    module = tiny.jepa().encoder.clone(size=vit.Size(width=32, depth=2, heads=4, hidden=64))
    params = random_params(jax.eval_shape(lambda: init_encoder(module, (16, 16, 3), jax.random.key(0))))
    batch = images(33)  # two batches of 16, and 1
    expected = jax.jit(lambda x: module.apply({"params": params}, layers.normalise_images(x)))(batch)
    for devices in (1, 8):
        trained = module.clone(scan=devices == 8, remat=devices == 8)  # as a run may train it
        frozen = encoder.frozen_vit(trained, params, image_size=16, batch_size=16, mesh=mesh_of(devices))
        features = frozen(batch)
        np.testing.assert_allclose(features.patches, expected, atol=1e-5)
        np.testing.assert_allclose(features.pooled, expected.mean(axis=1), atol=1e-5)
        *_, before_last, last = np.split(features.last_four, module.size.depth, axis=1)
        np.testing.assert_allclose(last, features.pooled, atol=1e-5)
        assert np.abs(before_last - last).max() > 1e-3
        assert (frozen.width, frozen.image_size, frozen.patch_size) == (32, 16, 4)


def test_a_batch_that_the_devices_do_not_divide_is_rounded_up():
    frozen = encoder.frozen_pixels(image_size=16, patch_size=4, batch_size=9, mesh=mesh_of(8))
    assert frozen.batch_size == 16
    np.testing.assert_allclose(frozen(images(5)).pooled, pixels()(images(5)).pooled, atol=1e-6)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        pixels()(images(3, size=32))


@pytest.mark.parametrize("size", (16, 40))
def test_pixels_are_an_area_resize(size):
    batch = images(3, size)
    features = pixels(size=size, patch_size=8)(batch)
    small = [cv2.resize(image.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA) for image in batch]
    expected = layers.normalise_images(np.stack(small)).reshape(3, -1)
    np.testing.assert_allclose(features.pooled, expected, atol=1e-4)
    assert features.patches.shape == (3, (size // 8) ** 2, 768)


def test_features_come_in_the_order_of_the_indices():
    source, indices = Written(50, seed=0), [3, 49, 7] + list(range(20))
    found = FeatureStore().read({"one": pixels(), "other": pixels()}, Part(source, indices, ["pooled"], "test"))
    expected = pixels()(np.stack([source[i].image for i in indices])).pooled
    np.testing.assert_allclose(found["one"]["pooled"], expected, atol=1e-6)
    np.testing.assert_array_equal(found["one"]["pooled"], found["other"]["pooled"])


def test_features_that_are_not_finite_are_refused():
    def forward(params, batch):
        return encoder.EncoderOutput(*[jnp.log(-1.0 - batch[:, 0, 0].astype(jnp.float32))] * 2)

    broken = encoder.FrozenEncoder(forward, {}, width=3, image_size=16, patch_size=4, batch_size=8, mesh=mesh_of(1))
    with pytest.raises(UserError, match="not finite"):
        FeatureStore().read({"broken": broken}, Part(Written(9, seed=0), range(9), ["pooled"], "test"))


# Probes


def test_knn_is_the_weighted_vote_of_the_most_similar(rng):
    train, test = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(7, 6)).astype(np.float32)
    classes = rng.random((40, 3)) < 0.4
    found = knn.neighbours(train, 5 * test)  # cosine: length is nothing
    votes, fewer = knn.vote(found, classes), knn.vote(found.nearest(10), classes)
    lengths = np.linalg.norm(test, axis=1)[:, None] * np.linalg.norm(train, axis=1)
    for similarity, by_count in zip(test @ train.T / lengths, zip(votes, fewer), strict=True):
        for count, vote in zip((20, 10), by_count):
            nearest = np.argsort(-similarity)[:count]
            weights = np.exp(similarity[nearest] / 0.07)
            np.testing.assert_allclose(vote, weights @ classes[nearest] / weights.sum(), rtol=1e-4)


def test_knn_with_too_few_examples_names_both_numbers():
    with pytest.raises(UserError, match="19"):
        knn.neighbours(np.ones((19, 2)), np.ones((3, 2)))


@pytest.mark.parametrize(("kind", "strength"), [("single", 1e-1), ("single", 1e-3), ("multi", 1e-3)])
def test_linear_is_scikit_learns_logistic_regression(kind, strength, rng):
    """On correlated channels of very different scale, one of them constant."""
    mixing = rng.normal(size=(8, 8)) * np.logspace(0, -2, 8)[:, None]
    features = (rng.normal(size=(300, 8)) @ mixing + 5).astype(np.float32)
    features[:, 3] = 2.5
    hidden = (features - features.mean(axis=0)) @ rng.normal(size=(8, 4)) + rng.normal(size=(300, 4))
    classes = np.eye(4, dtype=bool)[hidden.argmax(axis=1)] if kind == "single" else hidden > 0.5
    (probe,) = linear_fast.fit(linear_fast.make_basis(features), Truth(kind, classes), [strength])
    ours = probe.logits(features)

    scale = np.where(features.std(axis=0) > 1e-3, features.std(axis=0), 1.0)
    standardised = (features - features.mean(axis=0, dtype=np.float64)) / scale
    reference = LogisticRegression(C=1 / (strength * 300), tol=1e-9, max_iter=5000)
    answers = [classes.argmax(axis=1)] if kind == "single" else classes.T
    theirs = np.column_stack([reference.fit(standardised, y).decision_function(standardised) for y in answers])
    if kind == "single":  # a softmax does not tell logits from logits + a constant
        ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0.005, atol=0.01 * theirs.std())


class Trial:
    """A probe of known accuracy on 10 examples that are all of class 0."""

    def __init__(self, right: int):
        self.right = right

    def logits(self, features):
        return np.stack([np.arange(10) < self.right, np.full(10, 0.5)], axis=1)


@pytest.mark.parametrize(
    ("right", "best", "tried"),
    [
        ((5, 5, 5, 5, 5, 9, 9, 1), 5, 8),  # a plateau ends nothing; of equals, the strongest
        ((5, 4, 4, 6, 2, 2, 2, 9), 3, 7),  # three in a row below the best end the search
    ],
)
def test_the_strength_is_the_best_and_the_search_ends_when_it_has_passed(right, best, tried):
    trials = iter([Trial(n) for n in right])
    truth = Truth("single", np.eye(2, dtype=bool)[np.zeros(10, int)])
    assert linear_fast.best_strength(trials, np.zeros((10, 1)), truth) == linear_fast.STRENGTHS[best]
    assert len(list(trials)) == len(right) - tried


@pytest.mark.parametrize("strong", (True, False))
def test_the_strength_is_chosen_on_every_fifth_train_example(strong, monkeypatch, rng):
    """The class is the first channel's sign. A strong probe also weighs the second, which resembles the first."""
    features = rng.normal(size=(400, 2)).astype(np.float32)
    features[:, 1] += features[:, 0]
    classes = features[:, :1] > 0
    if strong:  # there, the answer is what the strongest probe says
        features -= features.mean(axis=0)
        classes[::5] = (features / features.std(axis=0) @ (features.T @ (classes - 0.5)) > 0)[::5]
    chosen, fit = [], linear_fast.fit

    def watched(basis, truth, strengths):
        chosen.append((len(truth.classes), strengths))
        return fit(basis, truth, strengths)

    monkeypatch.setattr(linear_fast, "fit", watched)
    linear_fast.class_scores(features, {"task": Truth("multi", classes)}, features[:1])
    (fitted_on, grid), (refitted_on, (strength,)) = chosen
    assert (fitted_on, grid, refitted_on) == (320, linear_fast.STRENGTHS, 400)
    assert strength >= 1 if strong else strength < 0.1


def test_rankme_counts_directions(rng):
    orthogonal = np.linalg.qr(rng.normal(size=(50, 8)))[0]
    assert rank.rankme(orthogonal) == pytest.approx(8, rel=1e-4)
    assert rank.rankme(orthogonal[:, :1] * np.ones(8)) == pytest.approx(1, abs=1e-3)
    assert rank.rankme(orthogonal * np.array([3, 1, 0, 0, 0, 0, 0, 0])) == pytest.approx(4 / 3**0.75, rel=1e-3)
    assert rank.feature_std(np.tile([[1.0, 5.0], [3.0, 5.0]], (4, 1))) == pytest.approx(0.5)


# Everything together


def test_a_written_label_scores_all_and_a_random_one_chance():
    sizes = {"train_examples": 400, "test_examples": 300, "dense_examples": 1}
    protocols = ("knn", "linear_fast", "rank")
    visible = evaluate(pixels(), {"again": pixels()}, Written(500, 0), Written(310, 1), protocols, **sizes).scores
    for task in ("row", "cells"):
        assert visible[f"linear_fast/{task}"] == 1.0
        assert visible[f"gain_over_again/linear_fast/{task}"] == visible[f"gain_over_again/knn/{task}_high"] == 0.0
        assert visible[f"again/knn/{task}"] == visible[f"knn/{task}"] > visible[f"chance/{task}"] + 0.2
    assert visible["rank/rankme"] > 1 and visible["rank/std"] > 0
    hidden = evaluate(pixels(), {}, Written(500, 0, 0.0), Written(310, 1, 0.0), protocols[:2], **sizes).scores
    for task in ("row", "cells"):
        for protocol in ("knn", "linear_fast"):
            assert hidden[f"{protocol}/{task}"] == pytest.approx(hidden[f"chance/{task}"], abs=0.1)
    assert not any(key.startswith("rank") for key in hidden)


def test_data_without_labels_has_a_rank_and_no_probes():
    unlabelled = Written(40, 0, tasks={})
    sizes = {"train_examples": 30, "test_examples": 30, "dense_examples": 1}
    found = evaluate(pixels(), {}, unlabelled, unlabelled, ["rank"], **sizes).scores
    assert set(found) == {f"rank/{name}" for name in rank.TASK.measures}
    with pytest.raises(UserError, match="knn.*labels"):
        evaluate(pixels(), {}, unlabelled, unlabelled, ["knn", "rank"], **sizes)


def test_a_subset_is_spread_over_the_data():
    chosen = choose(1000, 100)
    assert len(set(chosen)) == 100 and (np.diff(chosen) > 0).all() and chosen[0] < 100 and chosen[-1] > 900
    np.testing.assert_array_equal(choose(7, 100), np.arange(7))


# The command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that saved steps 0, where the target encoder is still the initial one, and 3, of a model made smaller."""
    path = tmp_path_factory.mktemp("run")
    config = base.get_config()
    config.update_from_flattened_dict(
        {
            "image.size": 16,
            "model.encoder": "nano",
            "model.patch_size": 4,
            "model.dtype": "float32",
            "evaluation.tasks": "knn,rank",
            "evaluation.train_examples": 48,
            "evaluation.test_examples": 33,
            "evaluation.dense_examples": 20,
            "evaluation.batch_size": 16,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "nano", vit.Size(width=16, depth=1, heads=2, hidden=32))
        (path / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
        initial = jax.jit(
            lambda: init_encoder(models.encoder(config), (16, 16, 3), jax.random.key(config.train.seed))
        )()
        checkpoints = Checkpoints(path, keep=2)
        for step, target in ((0, initial), (3, random_params(initial))):
            checkpoints.save(TrainState(jnp.array(step), {"encoder": initial}, target, ()), config.to_dict())
        checkpoints.close()
        yield path


def run(**values):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        launch_evaluate.main([])


def test_the_command_writes_results_and_prints_the_table(workdir, capsys):
    run(encoder=str(workdir))
    output = workdir / "eval" / "3"
    found = results.read_results(output / "results.json")["scores"]
    for key in ("knn/shape", "init/knn/pair", "pixels/knn/background"):
        assert 0 <= found[f"{key}_low"] <= found[key] <= found[f"{key}_high"] <= 1
    assert found["rank/rankme"] != found["init/rank/rankme"] and not any("linear" in key for key in found)
    report = (output / "results.md").read_text()
    assert report in capsys.readouterr().out
    assert f"{100 * found['knn/shape']:.1f} [{100 * found['knn/shape_low']:.1f}, " in report
    assert "step 3" in report and "48 examples" in report and "33 examples" in report and "--step=3" in report
    assert not list(output.glob("*.tmp"))


def test_at_step_0_the_run_is_its_own_initialisation(workdir, tmp_path):
    run(encoder=str(workdir), step=0, tasks=["rank"], output=str(tmp_path / "here"))
    found = results.read_results(tmp_path / "here" / "results.json")["scores"]
    assert found["rank/rankme"] == pytest.approx(found["init/rank/rankme"], rel=1e-4)
    assert "pixels/rank/std" in found and not any(key.startswith("knn") for key in found)


def test_without_baselines_the_encoder_alone_is_evaluated(workdir, tmp_path):
    run(encoder=str(workdir), tasks=["knn", "rank"], output=str(tmp_path / "with"))
    run(encoder=str(workdir), tasks=["knn", "rank"], output=str(tmp_path / "without"), baselines=False)
    both, alone = (results.read_results(tmp_path / name / "results.json") for name in ("with", "without"))
    beside = ("init/", "pixels/", "gain_over_")
    assert alone["scores"] == {key: value for key, value in both["scores"].items() if not key.startswith(beside)}
    assert "--baselines=false" in (tmp_path / "without" / "results.md").read_text()


def test_segmentation_has_its_own_table_and_needs_masks(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "STEPS", 3)
    run(encoder=str(workdir), tasks=["segmentation"], output=str(tmp_path / "here"))
    found = results.read_results(tmp_path / "here" / "results.json")["scores"]
    for name in ("shape", "colour"):
        for prefix in ("", "init/", "pixels/"):
            assert 0 <= found[f"{prefix}segmentation/{name}_low"] <= found[f"{prefix}segmentation/{name}_high"] <= 1
        assert f"gain_over_pixels/segmentation/{name}" in found
    # A picture of background only: its share over all nine classes.
    masks = [SceneSource(0, "test", 10_000, 16).mask(int(i)) for i in choose(10_000, 33)]
    assert found["chance/segmentation/shape"] == pytest.approx(np.mean(np.stack(masks) == 0) / 9, abs=1e-6)
    assert "| shape  | mIoU     |" in (tmp_path / "here" / "results.md").read_text()
    for score in ("segmentation", "segmentation_knn"):  # every pixel of the test masks, by its true class
        rows = (tmp_path / "here" / f"confusion_{score}_shape.csv").read_text().splitlines()
        assert rows[0].startswith(f"true class ({score}),background,circle")
        assert sum(map(int, rows[1].split(",")[1:])) == (np.stack(masks) == 0).sum()
        assert len(rows) == 10
    with pytest.raises(UserError, match="segmentation.*masks"):
        evaluate(
            pixels(),
            {},
            Written(9, 0),
            Written(9, 0),
            ["segmentation"],
            train_examples=1,
            test_examples=1,
            dense_examples=1,
        )


@pytest.mark.parametrize("task", ["captioning", "vqa"])
def test_without_texts_a_task_that_reads_them_is_refused_before_anything_is_computed(
    workdir, tmp_path, task, monkeypatch
):
    draw = SceneSource.__getitem__
    monkeypatch.setattr(SceneSource, "__getitem__", lambda self, i: Example(draw(self, i).image, ()))
    monkeypatch.setattr(SceneSource, "questions", lambda self, i: [])
    with pytest.raises(UserError, match=f"--tasks={task}"):
        run(encoder=str(workdir), tasks=[task], output=str(tmp_path / "here"))
    assert not (tmp_path / "here").exists()


def test_a_run_of_before_is_judged_with_the_runtime_keys_that_it_lacks(workdir):
    path = workdir / CONFIG_FILE
    before = path.read_text()
    lacking = json.loads(before)
    del lacking["evaluation"]["dense_examples"], lacking["evaluation"]["data"]
    try:
        path.write_text(json.dumps(lacking))
        found = common.run_config(workdir)
        assert (found.evaluation.dense_examples, found.evaluation.data) == (1000, "")
        assert found.evaluation.test_examples == 33
        del lacking["captions"]["shuffled"]
        path.write_text(json.dumps(lacking))
        with pytest.raises(UserError, match="captions.shuffled"):
            common.run_config(workdir)
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"encoder": None}, "--encoder"),
        ({"encoder": "nowhere"}, "nowhere"),
        (
            {"tasks": ["knn", "linaer"]},
            "linaer.*linear, linear_fast",
        ),
        ({"step": 5}, "5.*0, 3"),
        ({"data": "no_such_folder"}, "no_such_folder"),
        ({"output": __file__}, "--output"),
    ],
)
def test_bad_input_is_one_clear_line(workdir, values, named):
    with pytest.raises(UserError, match=named) as caught:
        run(**({"encoder": str(workdir)} | values))
    assert "\n" not in str(caught.value)


def test_a_run_is_judged_on_its_evaluation_data(workdir, monkeypatch):
    config = common.run_config(workdir)
    config.evaluation.data = "no_such_folder"
    monkeypatch.setattr(common, "run_config", lambda path: config)
    with pytest.raises(UserError, match="no_such_folder"):
        run(encoder=str(workdir))


def test_an_encoder_is_judged_at_another_resolution(workdir, tmp_path):
    run(encoder=str(workdir), tasks=["rank"], output=str(tmp_path / "large"), set=["evaluation.image_size=32"])
    large = results.read_results(tmp_path / "large" / "results.json")
    assert large["about"]["image_size"] == 32
    run(encoder=str(workdir), tasks=["rank"], output=str(tmp_path / "own"))
    own = results.read_results(tmp_path / "own" / "results.json")
    assert own["about"]["image_size"] == 16 and own["scores"]["rank/rankme"] != large["scores"]["rank/rankme"]
    with pytest.raises(UserError, match="evaluation.test_examples=0"):
        run(encoder=str(workdir), tasks=["rank"], set=["evaluation.test_examples=0"])
    with pytest.raises(UserError, match="evaluation.image_size=18"):
        run(encoder=str(workdir), tasks=["rank"], set=["evaluation.image_size=18"])


def test_results_are_replaced_whole(tmp_path):
    for scores, report in (({"a": 1.0}, "first"), ({"b": 2.0}, "second")):
        results.write_results(tmp_path / "new", Findings(scores=scores), {"data": "here"}, report)
    found = results.read_results(tmp_path / "new" / "results.json")
    assert found["scores"] == {"b": 2.0} and found["about"] == {"data": "here"}
    assert (tmp_path / "new" / "results.md").read_text() == "second"


def test_a_folder_with_an_encoder_is_judged_as_its_run_is(workdir, tmp_path):
    weights = pretrained.open_encoder(workdir, step=3)
    # Positions of its own, which its initialisation does not begin with: that computes them.
    positions = sincos_positions((4, 4), 16)
    weights = weights._replace(
        encoder=weights.encoder.clone(stored_positions=True), params=weights.params | {"positions": positions}
    )
    path = tmp_path / "ours"
    path.mkdir()
    folder.save(weights, path, "here")
    with pytest.raises(UserError, match="--encoder=.*--data"):
        run(encoder=str(path))
    with pytest.raises(UserError, match="--tasks=grounding"):
        run(encoder=str(path), data="scenes", tasks=["rank", "grounding"])
    with pytest.MonkeyPatch.context() as patch:
        small = base.get_config()
        small.evaluation.test_examples, small.evaluation.batch_size = 33, 16
        patch.setattr(base, "get_config", lambda: small)
        run(encoder=str(path), data="scenes", tasks=["rank"])
    found = results.read_results(path / "eval" / "results.json")["scores"]
    run(encoder=str(workdir), tasks=["rank"], output=str(tmp_path / "run"))
    expected = results.read_results(tmp_path / "run" / "results.json")["scores"]
    for key in ("rank/rankme", "init/rank/rankme"):
        assert found[key] == pytest.approx(expected[key], rel=1e-4)
    assert "width 16, depth 1, patch 4, 16 px" in (path / "eval" / "results.md").read_text()
