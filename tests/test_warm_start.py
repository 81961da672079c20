"""train.init_from: which weights a new run takes, which it initialises, and what it refuses."""

import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest

from tc_jepa import train
from tc_jepa.convert import folder
from tc_jepa.convert.weights import EncoderWeights
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.experiment.warm_start import warm_start
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.storage.checkpoint import Checkpoints, CONFIG_FILE, restore_trained
from tests import tiny
from tests.test_train import lines, mite, tiny_config  # noqa: F401 - mite is a fixture

LEJEPA = {
    "method.name": "lejepa",
    "lejepa.views": 2,
    "lejepa.slices": 8,
    "lejepa.projector.width": 16,
    "lejepa.projector.output": 8,
}


@pytest.fixture(scope="module")
def begin(mite):  # noqa: F811
    """The compiled first state of a run with seed 5, as a function of its given parameters."""
    return jax.jit(first_state(tiny_config(**{"train.seed": 5}))[0])


@pytest.fixture(scope="module")
def run(begin, tmp_path_factory):
    """The workdir of a JEPA with parameters that no initialisation gives."""
    return save_run(tmp_path_factory.mktemp("runs") / "jepa", tiny_config(), begin())


@pytest.fixture(scope="module")
def lejepa_run(mite, tmp_path_factory):  # noqa: F811
    """The workdir of a LeJEPA with parameters that no initialisation gives."""
    config = tiny_config(**LEJEPA)
    return save_run(tmp_path_factory.mktemp("runs") / "lejepa", config, jax.jit(first_state(config)[0])())


@pytest.fixture(scope="module")
def converted(run, tmp_path_factory):
    """The run's weights as those of an I-JEPA: an encoder, and a predictor without a conditioner."""
    weights = pretrained.open_encoder(run, predictor=True)
    predictor = {name: value for name, value in weights.predictor.items() if name != "conditioner"}
    path = tmp_path_factory.mktemp("converted")
    folder.save(weights._replace(predictor=predictor), path, "a test")
    return path


def save_run(workdir, config, state):
    """Writes a workdir with a checkpoint of step 6, whose parameters are `state`'s with noise."""
    params, extra = tiny.lively(state.params), tiny.lively(state.extra, seed=2)
    workdir.mkdir()
    (workdir / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.save(state.replace(step=state.step + 6, params=params, extra=extra), config.to_dict())
    checkpoints.close()
    return workdir


def first_state(config):
    """The state before the first step as a function of given parameters, and the caption reader."""
    experiment = build_experiment(config)
    return functools.partial(experiment.initial_state, experiment.frozen), experiment.reader


def test_what_is_given_is_not_held_twice_on_the_devices(run, monkeypatch):
    config = tiny_config(**{"train.init_from": str(run)})
    mesh, placed, put = sharding.make_mesh(-1, 1), [], sharding.put_parameters
    experiment = build_experiment(config, mesh)
    monkeypatch.setattr(sharding, "put_parameters", lambda *arguments: placed.append(put(*arguments)) or placed[-1])
    abstract = jax.eval_shape(experiment.initial_state, experiment.frozen)
    state = train.first_state(experiment, sharding.parameter_sharding(mesh, abstract), {}, taken(config))
    given = jax.tree.leaves(placed)
    assert given and all(leaf.is_deleted() for leaf in given)
    assert same(state.params["encoder"], pretrained.open_encoder(run).params)


def taken(config):
    begin, reader = first_state(config)
    return warm_start(config, jax.eval_shape(begin).params, reader)


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), one, other))


def reason(start, network: str) -> str:
    """Why the report calls a network fresh; "" where it does not."""
    found = [line.split("fresh, because ")[1] for line in start.report.splitlines() if f"  {network}: fresh" in line]
    return found[0] if found else ""


def test_a_run_takes_all_networks_of_another(begin, run):
    start = taken(tiny_config(**{"train.init_from": str(run)}))
    state, evaluated = begin(start.params), pretrained.open_encoder(run).params
    assert same(state.params["encoder"], evaluated) and same(state.extra, evaluated)
    for network in ("predictor", "text"):
        assert same(state.params[network], restore_trained(run, None, network))
    assert state.step == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert "fresh, because" not in start.report and "text: taken, 4 arrays" in start.report


def test_an_encoder_and_predictor_without_a_conditioner_are_taken(begin, run, converted):
    start, fresh = taken(tiny_config(**{"train.init_from": str(converted)})), begin()
    state, conditioner = begin(start.params), fresh.params["predictor"]["conditioner"]
    evaluated = pretrained.open_encoder(run).params
    assert same(state.params["encoder"], evaluated) and same(state.extra, evaluated)
    assert same(state.params["predictor"], restore_trained(run, None, "predictor") | {"conditioner": conditioner})
    assert same(state.params["text"], fresh.params["text"])
    assert reason(start, "conditioner") and reason(start, "text")


def test_lejepa_takes_the_encoder_of_a_jepa_and_the_projector_of_a_lejepa(run, lejepa_run):
    config = tiny_config(**LEJEPA, **{"train.init_from": str(run)})
    start = taken(config)
    assert start.params.keys() == {"encoder"} and reason(start, "projector")
    assert same(start.params["encoder"], pretrained.open_encoder(run).params)
    config.train.init_from = str(lejepa_run)
    start = taken(config)
    assert start.params.keys() == {"encoder", "projector"} and "fresh, because" not in start.report
    for network, params in start.params.items():
        assert same(params, restore_trained(lejepa_run, None, network))
    config.lejepa.projector.output = 4
    start = taken(config)
    assert start.params.keys() == {"encoder"} and "output/" in reason(start, "projector")
    state = jax.jit(first_state(config)[0])(start.params)
    assert same(state.params["encoder"], start.params["encoder"]) and state.extra == {}


def test_a_jepa_takes_the_encoder_of_a_lejepa(lejepa_run):
    start = taken(tiny_config(**{"train.init_from": str(lejepa_run)}))
    assert start.params.keys() == {"encoder"}
    assert same(start.params["encoder"], restore_trained(lejepa_run, None, "encoder"))
    assert all(reason(start, network) for network in ("predictor", "conditioner", "text"))


@pytest.mark.parametrize(
    ("changes", "network", "name"),
    [
        ({"model.predictor.depth": 2}, "predictor", "blocks_1/"),
        ({"model.predictor.width": 32}, "predictor", "blocks_0/attn/proj/bias is 16, not 32"),
        ({"model.text_width": 12}, "conditioner", "layers_0/key/kernel is 8 x 16, not 12 x 16"),
        ({"captions.words": 12}, "text", "positions is 10 x 8, not 12 x 8"),
        ({"model.conditioner": "adaln"}, "conditioner", ""),
    ],
)
def test_a_network_that_does_not_fit_is_fresh_and_so_are_the_words(run, changes, network, name):
    start = taken(tiny_config(**{"train.init_from": str(run)} | changes))
    assert reason(start, network) and name in reason(start, network) and "encoder: taken" in start.report
    assert "text" not in start.params  # learned words are taken with the conditioner that read them, or not at all
    assert ("predictor" in start.params) == (not reason(start, "predictor"))
    assert "conditioner" not in start.params.get("predictor", {})


def test_learned_words_of_another_vocabulary_are_not_taken(run):
    config = tiny_config(**{"train.init_from": str(run)})
    trained = jax.eval_shape(first_state(config)[0]).params
    start = warm_start(config, trained, types.SimpleNamespace(model=b"another"))
    assert all("another vocabulary" in reason(start, network) for network in ("conditioner", "text"))


def test_a_warm_run_resumes_without_its_origin(run, tmp_path, capsys):
    origin, workdir = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(run, origin)
    still = {f"optimizer.{name}_learning_rate": 0.0 for name in ("start", "peak", "final")}
    config = tiny_config(**still, **{"train.init_from": str(origin), "train.steps": 2, "train.checkpoint_every": 1})
    tiny.train(config, workdir)
    assert "encoder: taken" in capsys.readouterr().out
    given = pretrained.open_encoder(run).params
    for step in (1, 2):
        kept = pretrained.open_encoder(workdir, step).params
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), kept, given)

    shutil.rmtree(workdir / "checkpoints" / "2")
    shutil.rmtree(origin)
    before = lines(workdir)
    tiny.train(config, workdir)
    assert lines(workdir) == before and "taken" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.encoder": "nano", "model.predictor.width": 16}, "model.encoder"),
        ({"model.patch_size": 4}, "model.patch_size"),
        ({"train.init_from": "nowhere"}, "nowhere"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(run, changes, named, tmp_path):
    config = tiny_config(**{"train.init_from": str(run)} | changes)
    with pytest.raises(UserError, match=named) as refused:
        tiny.train(config, tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_learned_positions_are_refused(run, tmp_path):
    weights = pretrained.open_encoder(run)
    stored = weights.encoder.clone(stored_positions=True)
    params = weights.params | {"positions": np.zeros((16, 32), np.float32)}
    folder.save(EncoderWeights(stored, params, weights.image_size), tmp_path, "a test")
    with pytest.raises(UserError) as refused:
        taken(tiny_config(**{"train.init_from": str(tmp_path)}))
    assert refused.value.about == "train.init_from"
