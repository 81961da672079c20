"""Supervised training: losses are those of their formulas, labels belong to their images, runs resume, refusals."""

import functools
import itertools

import jax
import numpy as np
from PIL import Image
import pytest

from tc_jepa.batch import LabelledBatch
from tc_jepa.data import pipeline
from tc_jepa.data.inputs.labels import CropAndLabels
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Labelled
from tc_jepa.data.transforms import Crop
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.experiment.run import open_run
from tc_jepa.methods.feature_metrics import feature_metrics
from tc_jepa.methods.supervised import Supervised, Task
from tc_jepa.models.label_heads import LabelHeads
from tc_jepa.optimizer import match_rules, weight_decay_rules
from tc_jepa.planning.step import planned
from tests import tiny
from tests.test_train import assert_stopped_and_resumed_equals, lines, mite, tiny_config  # noqa: F401 - mite is a fixture

SUPERVISED = {"method.name": "supervised"}
METHOD = Supervised(
    tiny.jepa().encoder, LabelHeads((("kind", 3), ("parts", 4))), (Task("kind", "single"), Task("parts", "multi"))
)


def labelled_batch(size: int, seed: int = 0) -> LabelledBatch:
    rng = np.random.default_rng(seed)
    labels = {"kind": rng.integers(0, 3, size, dtype=np.int32), "parts": rng.random((size, 4)) < 0.4}
    return LabelledBatch(rng.integers(0, 256, (size, tiny.IMAGE, tiny.IMAGE, 3), dtype=np.uint8), labels)


@functools.cache
def parameters():
    example = jax.tree.map(lambda x: x[0], labelled_batch(1))
    return tiny.lively(METHOD.init(jax.random.key(0), example, {})[0])


def test_losses_are_the_mean_log_likelihoods_of_each_image():
    batch = labelled_batch(5)
    loss, terms = METHOD.loss(parameters(), {}, batch, jax.random.key(0), 0)
    features = METHOD.features(parameters(), batch.images)
    logits = {name: np.asarray(x, np.float64) for name, x in METHOD.logits(parameters(), features).items()}
    single, multi = [], []
    for row in range(5):
        probabilities = np.exp(logits["kind"][row]) / np.exp(logits["kind"][row]).sum()
        single.append(-np.log(probabilities[batch.labels["kind"][row]]))
        there = 1 / (1 + np.exp(-logits["parts"][row]))
        multi.append(-sum(np.log(p if label else 1 - p) for p, label in zip(there, batch.labels["parts"][row])))
    expected = {"loss/kind": np.mean(single), "loss/parts": np.mean(multi)}
    signs = {name: float(value) for name, value in feature_metrics(features).items()}
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected | signs, rel=1e-4)
    assert float(loss) == pytest.approx((expected["loss/kind"] + expected["loss/parts"]) / 2, rel=1e-4)


def test_every_task_reaches_every_layer_of_the_encoder():
    for task in METHOD.tasks:
        alone = Supervised(METHOD.encoder, METHOD.heads, (task,))
        gradient = jax.grad(lambda p, chosen=alone: chosen.loss(p, {}, labelled_batch(4), None, 0)[0])(parameters())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["encoder"]):
            assert np.any(leaf), jax.tree_util.keystr(path)
    match_rules(weight_decay_rules(), gradient)


def test_the_loss_is_a_mean_over_images():
    assert METHOD.mean_over_images
    losses = [
        float(METHOD.loss(parameters(), {}, part, None, 0)[0]) for part in (labelled_batch(3), labelled_batch(3, 1))
    ]
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), labelled_batch(3), labelled_batch(3, 1))
    assert float(METHOD.loss(parameters(), {}, both, None, 0)[0]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_row_has_the_labels_of_its_image_whatever_the_order():
    source = SceneSource(0, "train", 12, 32)
    inputs = CropAndLabels(Crop(32, (1.0, 1.0), (1.0, 1.0), False), ("count", "shape"))
    stream = pipeline.batches(Labelled(source), inputs, batch_size=4, seed=3)
    index = {source[i].image.tobytes(): i for i in range(12)}
    for batch in itertools.islice(stream, 3):
        assert list(batch.labels) == ["count", "shape"] and batch.labels["count"].dtype == np.int32
        for row, image in enumerate(batch.images):
            expected = source.labels(index[image.tobytes()])
            assert batch.labels["count"][row] == expected["count"]
            np.testing.assert_array_equal(batch.labels["shape"][row], expected["shape"])


def test_a_run_resumes_as_if_it_had_never_stopped(mite, tmp_path):  # noqa: F811
    straight = tmp_path / "straight"
    config = tiny_config(**SUPERVISED, **{"supervised.tasks": ("count", "shape")})
    tiny.train(config, straight)
    assert_stopped_and_resumed_equals(straight, config, tmp_path / "stopped")
    last = lines(straight)[-1]
    assert last["heldout/loss"] == pytest.approx((last["heldout/count"] + last["heldout/shape"]) / 2, rel=1e-5)
    run = open_run(straight, config)
    assert run.params.keys() == {"encoder", "heads"} and run.params["heads"].keys() == {"count", "shape"}
    assert run.evaluation_encoder() is run.params["encoder"]


def test_without_a_choice_all_tasks_are_learned_and_the_encoder_starts_as_in_every_method(mite):  # noqa: F811
    experiment, other = (build_experiment(tiny_config(**changes)) for changes in (SUPERVISED, {}))
    names = [task.name for task in experiment.method.tasks]
    assert names == list(SceneSource(0, "train", 1, 8).tasks) == list(experiment.example.labels)
    found, expected = (jax.jit(one.initial_state)(one.frozen).params["encoder"] for one in (experiment, other))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert experiment.held_out[0].labels.keys() == set(names)


def test_a_short_run_learns_its_labels():
    example, batch = jax.tree.map(lambda x: x[0], labelled_batch(1)), labelled_batch(8)
    state = jax.jit(lambda: tiny.initial_state(METHOD, example, tiny.OPTIMIZER, 0, {}))()
    step, losses = tiny.step_function(METHOD), []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_a_plan_needs_neither_the_data_nor_its_tasks(mite):  # noqa: F811
    config = tiny_config(**SUPERVISED, **{"data.path": "nowhere", "supervised.tasks": ("breed",)})
    mesh = sharding.make_mesh(1, 8)
    assert planned(config, mesh).method.tasks


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"supervised.tasks": ("shape", "size")}, "supervised.tasks"),
        ({"supervised.tasks": ("shape", "shape")}, "supervised.tasks"),
        ({"data.path": "a,b"}, "data.path"),
    ],
)
def test_labels_that_are_not_there_are_refused(mite, changes, about):  # noqa: F811
    with pytest.raises(UserError) as refused:
        build_experiment(tiny_config(**SUPERVISED, **changes))
    assert refused.value.about == about and "\n" not in str(refused.value)


def test_data_without_labels_is_refused(mite, tmp_path):  # noqa: F811
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    lines_of = [f'{{"file": "{number}.png", "captions": []}}' for number in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines_of))
    prepare_folder(str(tmp_path / "images"), str(tmp_path / "captions.jsonl"), str(tmp_path / "data"))
    with pytest.raises(UserError) as refused:
        build_experiment(tiny_config(**SUPERVISED, **{"data.path": str(tmp_path / "data")}))
    assert refused.value.about == "data.path" and "\n" not in str(refused.value)
