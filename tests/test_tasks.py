"""The table of evaluation tasks: what derives from the records, and that a file and a line add a task."""

import functools
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.errors import UserError
from tc_jepa.evaluation import encoder, examples, heads, labels, results, runner, tasks
from tc_jepa.evaluation.features import FeatureStore
from tc_jepa.evaluation.runner import evaluate
from tc_jepa.evaluation.task import (
    CAPTIONS,
    LABELS,
    MASKS,
    QUESTIONS,
    Score,
    Task,
    TEST_CAPTIONS,
    TOWER,
    train_and_test,
    VOCABULARY,
    WORDS,
)
from tc_jepa.evaluation.tasks import attentive, segmentation
from tests.test_evaluation import pixels, Written
from tests.test_house import ROOT

SIZES = {"train_examples": 60, "test_examples": 40, "dense_examples": 20}
NEEDS = {
    LABELS: "labels",
    MASKS: "masks",
    WORDS: "a run whose predictor attends to words; scenes, or masks of named classes",
    TOWER: "a run of `method.name=contrastive`",
    CAPTIONS: "captions",
    TEST_CAPTIONS: "captions of test images",
    QUESTIONS: "questions: scenes, or data with them",
    VOCABULARY: "a vocabulary",
}


def markdown_table() -> str:
    """The tasks as the documentation has them: name, description, needs."""
    rows = [
        f"| `{task.name}` | {tasks.TASKS[task.name]} | {'; '.join(NEEDS[need] for need in task.needs) or 'images'} |"
        for task in tasks.load_all()
    ]
    return "\n".join(["| task | what it is | needs |", "|---|---|---|", *rows])


def test_every_file_of_tasks_is_in_the_table_with_its_name():
    files = {path.stem for path in (ROOT / "tc_jepa" / "evaluation" / "tasks").glob("[a-z]*.py")}
    assert files == set(tasks.TASKS) == {task.name for task in tasks.load_all()}
    assert all(set(task.needs) <= set(NEEDS) and (task.scores or task.measures) for task in tasks.load_all())


def test_help_lists_the_tasks_without_loading_jax():
    code = "import sys; from launch.evaluate import flags; print('jax' in sys.modules, flags.FLAGS['tasks'].help)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert done.startswith("False ")
    assert all(f"{name} = {about}" in done for name, about in tasks.TASKS.items())


def test_the_documentation_has_the_table_of_tasks():
    documents = [ROOT / "README.md", *(ROOT / "tc_jepa").rglob("README.md")]
    assert any(markdown_table() in path.read_text() for path in documents)


def nearest_mean(inputs):
    """Class scores are minus the distances to the classes' mean features."""
    train, test = (inputs.features[split]["pooled"] for split in ("train", "test"))
    answers = {}
    for name, truth in inputs.train.truth.items():
        means = truth.classes.T.astype(np.float32) @ train / truth.classes.sum(axis=0)[:, None]
        answers["nearest_mean", name] = labels.Answer([-np.linalg.norm(test[:, None] - means, axis=-1)])
    return labels.outcome(inputs, answers)


@pytest.fixture
def added(monkeypatch):
    task = Task(
        "nearest_mean",
        nearest_mean,
        needs=(LABELS,),
        features=train_and_test("pooled"),
        scores=(Score("nearest_mean", "The class whose mean is nearest."),),
    )
    module = types.SimpleNamespace(TASK=task)
    monkeypatch.setitem(sys.modules, "tc_jepa.evaluation.tasks.nearest_mean", module)
    monkeypatch.setitem(tasks.TASKS, "nearest_mean", "the nearest class mean")


def test_a_file_and_a_line_add_a_task(added):
    found = evaluate(pixels(), {"init": pixels()}, Written(60, 0), Written(40, 1), ["nearest_mean", "knn"], **SIZES)
    assert found.scores["nearest_mean/row"] > 0.95 and found.scores["gain_over_init/nearest_mean/row_high"] == 0
    assert found.confusions["row"].probe == "knn" and "nearest_mean" in found.seconds
    report = results.render(found, Written(1, 0).tasks, {})
    assert "## nearest_mean" in report and "| chance" in report.partition("## nearest_mean")[2]
    assert "| `nearest_mean` | the nearest class mean | labels |" in markdown_table()
    with pytest.raises(UserError, match="nearest_mean"):
        tasks.possible(["rank", "nearest_mean"], {LABELS: "no labels"}, required=True)
    assert tasks.possible(["rank", "nearest_mean"], {LABELS: "no labels"}, required=False) == ["rank"]


def test_tasks_that_read_the_same_images_share_a_reading(monkeypatch):
    parts = []
    read = FeatureStore.read
    monkeypatch.setattr(
        FeatureStore, "read", lambda self, found, part: (parts.append(part), read(self, found, part))[1]
    )
    both = evaluate(pixels(), {}, Written(60, 0), Written(40, 1), ["knn", "lowshot", "rank"], **SIZES)
    assert sorted(part.name for part in parts) == [
        "test-patches-first200",
        "test-pooled",
        "test-pooled-first500-views8",
        "train-pooled",
    ]
    alone = evaluate(pixels(), {}, Written(60, 0), Written(40, 1), ["rank"], **SIZES).scores
    assert all(both.scores[key] == value for key, value in alone.items())


def test_a_shared_part_has_all_kinds_and_fewer_examples_have_their_own():
    few, many = (examples.Examples(Written(60, 0), np.arange(count)) for count in (20, 60))
    records = [tasks.load(name) for name in ("knn", "linear", "attentive")]
    parts = runner._parts(records, {True: few, False: many}, many, 0)
    assert parts["knn"]["train"] is parts["linear"]["train"] and parts["knn"]["train"].kinds == ("pooled", "last_four")
    assert list(parts["linear"]) == ["train", "test"]
    assert len(parts["attentive"]["train"].indices) == 20 and parts["attentive"]["test"] is parts["knn"]["test"]
    augmented = runner._parts(records, {True: few, False: many}, many, 2)["linear"]["views"]
    assert len(augmented.indices) == 2 * 60 and augmented.views == 2


def precisions(function, *arguments) -> set:
    """The precision of every matrix product in a traced function."""
    found = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.add(equation.params["precision"])
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def test_features_and_heads_are_computed_in_full_float32():
    highest = {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}
    frozen = encoder.FrozenEncoder(
        lambda params, x: x.reshape(len(x), -1).astype(jnp.float32) @ params,
        np.ones((768, 2), np.float32),
        width=2,
        image_size=16,
        patch_size=4,
        batch_size=8,
        mesh=pixels()._mesh,
    )
    assert precisions(frozen._forward, frozen._params, np.zeros((8, 16, 16, 3), np.uint8)) == highest

    head = heads.Head(lambda params, batch: (batch @ params).mean())
    params, states = heads._initial([np.ones((3, 2), np.float32)], (head,), (4,))
    step = functools.partial(heads._step, heads=(head,))
    assert precisions(step, params, states, np.ones((5, 3), np.float32), [np.ones((4, 2))]) == highest
    probe = attentive.probe_of(8, 3)
    features = np.ones((2, 4, 8), np.float32)
    params = jax.tree.map(lambda x: x[None], probe.init(jax.random.key(0), features)["params"])
    assert precisions(functools.partial(attentive._logits, module=probe), params, features) == highest
    weights = segmentation.PatchClassifier(np.ones((8, 3), np.float32), np.ones(3, np.float32))
    assert precisions(segmentation._labels, weights, features[0], *[np.ones((6, 2), np.float32)] * 2) == highest


def test_labels_and_masks_are_read_once():
    class Counting(Written):
        reads = 0

        def labels(self, index):
            Counting.reads += 1
            return super().labels(index)

    evaluate(pixels(), {"a": pixels()}, Counting(60, 0), Counting(40, 1), ["knn"], **SIZES)
    drawn_by_images = 100 * 2  # Written reads the labels of an image to draw it, once for each encoder
    assert Counting.reads == drawn_by_images + 100
    assert examples.validation_examples("knn", 6).tolist() == [True, False, False, False, False, True]
