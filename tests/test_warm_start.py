"""A run that begins with weights which exist already: what it takes, what it leaves, and what it refuses."""

import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest

from tc_jepa.convert import folder
from tc_jepa.convert.weights import EncoderWeights
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.experiment.warm_start import warm_start
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.storage.checkpoint import Checkpoints, CONFIG_FILE, restore_trained
from tests import tiny
from tests.test_train import lines, mite, tiny_config  # noqa: F401 - mite is a fixture


@pytest.fixture(scope="module")
def begin(mite):  # noqa: F811
    """The beginning of a run with seed 5, compiled; its given parameters are its argument."""
    return jax.jit(beginning(tiny_config(**{"train.seed": 5}))[0])


@pytest.fixture(scope="module")
def run(begin, tmp_path_factory):
    """The workdir of a run whose parameters are unlike those of any beginning."""
    workdir, config, state = tmp_path_factory.mktemp("runs") / "first", tiny_config(), begin()
    params, target = tiny.lively(state.params), tiny.lively(state.extra, seed=2)
    workdir.mkdir()
    (workdir / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.save(state.replace(step=state.step + 6, params=params, extra=target), config.to_dict())
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def converted(run, tmp_path_factory):
    """The run's weights as an I-JEPA would come: an encoder, and a predictor without conditioner."""
    weights = pretrained.open_encoder(run, predictor=True)
    predictor = {name: value for name, value in weights.predictor.items() if name != "conditioner"}
    path = tmp_path_factory.mktemp("converted")
    folder.save(weights._replace(predictor=predictor), path, "a test")
    return path


def beginning(config):
    """The state before the first step, as a function of its given parameters, and the tokenizer of the run."""
    experiment = build_experiment(config)
    return functools.partial(experiment.initial_state, experiment.frozen), experiment.reader


def taken(config):
    begin, tokenizer = beginning(config)
    return warm_start(config, jax.eval_shape(begin).params, tokenizer)


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), one, other))


def test_a_run_begins_where_another_ended(begin, run, converted):
    config = tiny_config(**{"train.init_from": str(run)})
    given, fresh = taken(config), begin()
    state = begin(given.params)
    judged = pretrained.open_encoder(run).params
    assert same(state.params["encoder"], judged) and same(state.extra, judged)
    for network in ("predictor", "text"):
        assert same(state.params[network], restore_trained(run, None, network))
    assert state.step == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert "fresh, because" not in given.report and "text: taken, 4 arrays" in given.report

    config.train.init_from = str(converted)
    given = taken(config)
    state, conditioner = begin(given.params), fresh.params["predictor"]["conditioner"]
    assert same(state.params["encoder"], judged) and same(state.extra, judged)
    assert same(state.params["predictor"], restore_trained(run, None, "predictor") | {"conditioner": conditioner})
    assert same(state.params["text"], fresh.params["text"])
    for network in ("conditioner", "text"):
        assert f"{network}: fresh, because it holds none" in given.report


@pytest.mark.parametrize(
    ("changes", "fresh"),
    [
        ({"model.predictor.depth": 2}, "predictor: fresh, because it has no blocks_1/"),
        ({"model.predictor.width": 32}, "predictor: fresh, because its blocks_0/attn/proj/bias is 16, not 32"),
        ({"model.text_width": 12}, "conditioner: fresh, because its layers_0/key/kernel is 8 x 16, not 12 x 16"),
        ({"captions.words": 12}, "text: fresh, because its text/positions is 10 x 8, not 12 x 8"),
        ({"model.conditioner": "adaln"}, "conditioner: fresh, because "),
    ],
)
def test_what_does_not_fit_is_fresh_and_told(run, changes, fresh):
    given = taken(tiny_config(**{"train.init_from": str(run)} | changes))
    assert fresh in given.report and "encoder: taken" in given.report
    assert "text" not in given.params  # words go with the conditioner that read them
    assert ("predictor" in given.params) == ("predictor: fresh" not in given.report)
    assert "conditioner" not in given.params.get("predictor", {})


def test_learned_words_of_another_vocabulary_are_not_taken(run):
    config = tiny_config(**{"train.init_from": str(run)})
    trained = jax.eval_shape(beginning(config)[0]).params
    report = warm_start(config, trained, types.SimpleNamespace(model=b"another")).report
    for network in ("conditioner", "text"):
        assert f"{network}: fresh, because it read another vocabulary" in report


def test_the_loop_begins_warm_and_resumes_without_the_origin(run, tmp_path, capsys):
    origin, workdir = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(run, origin)
    still = {f"optimizer.{name}_learning_rate": 0.0 for name in ("start", "peak", "final")}
    config = tiny_config(**still, **{"train.init_from": str(origin), "train.steps": 2, "train.checkpoint_every": 1})
    tiny.train(config, workdir)
    assert "encoder: taken" in capsys.readouterr().out
    for step in (1, 2):
        assert same(pretrained.open_encoder(workdir, step).params, pretrained.open_encoder(run).params)

    shutil.rmtree(workdir / "checkpoints" / "2")
    shutil.rmtree(origin)
    before = lines(workdir)
    tiny.train(config, workdir)
    assert lines(workdir) == before and "taken" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.encoder": "nano", "model.predictor.width": 16},
            "is no model.encoder=nano: .*; give the",
        ),
        ({"model.patch_size": 4}, "patches of 8 px; give model.patch_size=8"),
        ({"train.init_from": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(run, changes, said, tmp_path):
    config = tiny_config(**{"train.init_from": str(run)} | changes)
    with pytest.raises(UserError, match=said) as refused:
        tiny.train(config, tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_learned_positions_are_refused(run, tmp_path):
    weights = pretrained.open_encoder(run)
    stored = weights.encoder.clone(stored_positions=True)
    params = weights.params | {"positions": np.zeros((16, 32), np.float32)}
    folder.save(EncoderWeights(stored, params, weights.image_size), tmp_path, "a test")
    with pytest.raises(UserError, match="has learned positions"):
        taken(tiny_config(**{"train.init_from": str(tmp_path)}))
