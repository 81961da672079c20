"""The worked examples of tc_jepa/README.md, "How to extend": each is short, and works as it stands there."""

# ruff: noqa: F401 - the examples use what is imported here
import dataclasses
from pathlib import Path
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.data.datasets import DATASETS, open_dataset
from tc_jepa.data.inputs.jepa import CropAndCaptions, JepaInputs
from tc_jepa.data.pipeline import batches
from tc_jepa.data.sources import Example, LabelSet
from tc_jepa.data.transforms import Crop
from tc_jepa.evaluation import labels, tasks
from tc_jepa.evaluation.runner import evaluate
from tc_jepa.evaluation.task import LABELS, Score, Task, train_and_test
from tc_jepa.masking.masks import pack
from tc_jepa.methods.method import init_encoder, initialise, merge, Stateless
from tc_jepa.models import layers
from tc_jepa.models.conditioners import CONDITIONERS
from tc_jepa.models.conditioners.base import Conditioner
from tc_jepa.models.vit import VisionTransformer
from tc_jepa.optimizer import match_rules, weight_decay_rules
from tests import tiny
from tests.test_evaluation import pixels

README = (Path(__file__).parents[1] / "tc_jepa" / "README.md").read_text()
IMPORTS = dict(globals())


def executed(title: str) -> dict:
    """What the first code block under a title of the README defines."""
    block = re.search(rf"^### {title}\n(?:(?!^### ).)*?^```python\n(.*?)^```", README, re.M | re.S)[1]
    assert len(block.splitlines()) <= 25, title
    space = {**IMPORTS, "__name__": "example"}
    exec(compile(block, f"tc_jepa/README.md, {title}", "exec"), space)
    return space


def test_a_method():
    encoder = tiny.jepa().encoder
    method = executed("A method")["MeanColour"](encoder, nn.Dense(3))
    state, step, losses = tiny.state(method), jax.jit(tiny.step(method)), []
    for _ in range(8):
        state, metrics = step(state, tiny.batch(8))
        losses.append(float(metrics["loss/colour"]))
    assert losses[-1] < losses[0]
    numbers = method.heldout({**state.params}, state.extra, tiny.batch(2), 0)
    assert method.heldout_summary({"loss": numbers}).keys() == {"heldout/loss", "heldout/colour"}


def test_a_conditioner(monkeypatch):
    conditioner = executed("A conditioner")["GatedMean"]
    monkeypatch.setitem(CONDITIONERS, "gated_mean", conditioner)
    method, batch = tiny.jepa(conditioner()), tiny.batch(4)
    state = tiny.state(method)
    decays = match_rules(weight_decay_rules(), state.params)["predictor"]["conditioner"]
    assert decays == {"gate": False, "mean": {"kernel": True, "bias": False}}
    after, _ = jax.jit(tiny.step(method))(state, batch)
    assert np.any(after.params["predictor"]["conditioner"]["gate"] != 0)


def test_masks():
    masks = executed("Masks")["HalfMasks"](tiny.GRID)
    drawn = [masks.draw_at(0, index) for index in range(20)]
    assert {int(one.context_indices[0]) for one in drawn} == {0, 2}
    assert all(not set(one.context_indices) & set(one.target_indices[0]) for one in drawn)
    np.testing.assert_array_equal(masks.draw_at(0, 3).context_indices, drawn[3].context_indices)


def test_a_dataset(monkeypatch):
    dataset = executed("A dataset")["GreyDataset"]
    monkeypatch.setitem(DATASETS, "grey", lambda options: dataset())
    split = open_dataset("grey").open("val")
    crop = CropAndCaptions(Crop(tiny.IMAGE, (0.5, 1.0), (1.0, 1.0), False), None, 0)
    batch = batches(split, JepaInputs(crop, tiny.MASKS), batch_size=4, seed=0)[0]
    assert batch.images.shape == (4, tiny.IMAGE, tiny.IMAGE, 3)
    assert split.labels(200) == {"bright": 1}


def test_an_evaluation_task(monkeypatch):
    task = executed("An evaluation task")["TASK"]
    monkeypatch.setitem(tasks.TASKS, task.name, "the nearest class mean")
    monkeypatch.setattr(tasks, "load", lambda name: task)
    split = executed("A dataset")["Grey"]()
    sizes = {"train_examples": 100, "test_examples": 50, "dense_examples": 10}
    found = evaluate(pixels(), {"init": pixels()}, split, split, [task.name], **sizes)
    assert found.scores["nearest_mean/bright"] > 0.9 > found.scores["chance/bright"]


@pytest.mark.parametrize("title", re.findall(r"^### (.+)$", README, re.M))
def test_every_seam_has_an_example(title):
    assert executed(title)
