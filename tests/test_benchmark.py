"""Benchmarks: operations belong to their parts and agree with the compiler, and results can be compared."""

import json

import jax
import pytest

from configs import base
from tc_jepa.benchmark import figures, MEASUREMENTS, step
from tc_jepa.benchmark import input as input_rate
from tc_jepa.benchmark.figures import Figure, Options
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.models import vit
from tc_jepa.monitoring.profile import StepTrace
from tc_jepa.planning import loops
from tests import tiny
from tests.test_commands import launch

QUICK = Options(repeats=2, images=16)


@pytest.fixture(scope="module", autouse=True)
def mite():
    """An encoder that compiles in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "mite", vit.Size(width=32, depth=1, heads=4, hidden=64))
        yield


def config_of(**changes):
    config = base.get_config()
    config.update_from_flattened_dict(tiny.SMALL_RUN | {"model.encoder": "nano", "data.train_scenes": 20} | changes)
    return config


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/target/VisionTransformer/blocks_0", "target"),
        ("/jvp(context)/VisionTransformer", "context"),
        ("/transpose(jvp(context))/jvp(context)/VisionTransformer", "context, backward"),
        ("/jvp(predictor)/Predictor/conditioner.condition_layer/layers_0/key", "conditioner"),
        ("/transpose(jvp(predictor))/Predictor/conditioner.condition_layer/layers_0", "conditioner, backward"),
        ("/jvp(predictor)/Predictor/conditioner.condition_layer/blocks_0/mlp", "predictor"),
        ("/", "other"),
    ],
)
def test_scopes_name_the_part(path, part):
    assert step.part_of(path) == part


@pytest.mark.parametrize("changes", [{}, {"model.remat": "all", "train.accumulate": 1}])
def test_operations_of_the_parts_are_those_of_the_step(changes):
    _, _, traced = step.trace(config_of(**changes), sharding.make_mesh(-1, 1))
    parts = step.operations(traced.jaxpr.jaxpr)
    assert sum(parts.values()) == loops.product_flops(traced.jaxpr.jaxpr)
    forward = {name.removesuffix(", backward") for name in parts}
    assert forward == {"target", "context", "predictor", "conditioner", "other"}  # other: the features' covariance
    again = 2.6 if changes else 2  # two products for each one forward; with rematerialisation most of those once more
    assert parts["context, backward"] == pytest.approx(again * parts["context"], rel=0.1)
    assert "target, backward" not in parts


@pytest.mark.parametrize("changes", [{}, {"train.accumulate": 2, "train.batch_size": 16}])
def test_operations_agree_with_the_compilers_count(changes):
    _, _, traced = step.trace(config_of(**changes), sharding.make_mesh(-1, 1))
    jaxpr = traced.jaxpr.jaxpr
    found = step.checked(traced, loops.product_flops(jaxpr) + loops.other_operations(jaxpr))
    assert abs(found["step/operations/difference"].value) < 2


@pytest.mark.slow
def test_a_step_is_timed():
    config = config_of(**{"model.encoder": "mite"})
    found = step.measure(config, Options(repeats=2, texts=(1,), conditioners=("adaln",)))
    images = config.train.batch_size / found["step/seconds"].value
    assert found["step/images"].value == pytest.approx(images)
    assert found["step/text/adaln/1"].value > 0 and 0 < found["step/share"].value < 100


def test_an_input_is_measured_by_its_parts():
    found = input_rate.measure(config_of(), QUICK)
    names = {name.removeprefix("input/") for name in found}
    assert names >= {"read", "crop", "tokenise", "mask", "batch", "bare", "pipeline", "share"} and "decode" not in names
    assert all(figure.value > 0 for figure in found.values())
    assert found["input/bare"].value < min(found[f"input/{name}"].value for name in ("read", "crop", "mask"))


def test_repeats_are_summed_up_by_their_quartiles():
    assert figures.of_repeats([5.0, 1.0, 2.0, 4.0, 3.0], "s") == Figure(3.0, "s", 2.0, 4.0)
    assert figures.per_second(Figure(2.0, "s", 1.0, 4.0), 8, "images/s") == Figure(4.0, "images/s", 2.0, 8.0)


def test_a_comparison_marks_what_lies_apart():
    here = {"a": Figure(2.0, "s", 1.9, 2.1), "b": Figure(2.0, "s", 1.0, 3.0), "only": Figure(1.0, "s")}
    there = {"a": Figure(1.0, "s", 0.9, 1.1), "b": Figure(1.5, "s", 1.0, 2.0)}
    _, a, b = figures.compared(here, {"machine": figures.machine() | {"cores": -1}, "figures": there})
    assert "2.000 *" in a and "1.333" in b and "*" not in b


def test_the_command_writes_what_it_can_compare_with(tmp_path):
    arguments = ["--what=input", "--config=configs/scenes_standard.py", "--images=8", "--repeats=1"]
    done = launch(*arguments, f"--output={tmp_path}/new/one.json", command="benchmark")
    assert done.returncode == 0, done.stderr
    result = figures.read(tmp_path / "new" / "one.json")
    assert result["what"] == "input" and result["config"]["image.size"] == 60 and result["machine"]["devices"] >= 1
    assert result["figures"]["input/crop"].low > 0
    (same, *_) = figures.compared(result["figures"], result)
    assert "1.000" in same and "*" not in same


@pytest.mark.parametrize(
    "content", ["", "[]", '{"figures": {}}', '{"what": "step", "machine": {}, "config": {}, "figures": {"a": 1}}']
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UserError) as refused:
        figures.read(path)
    assert refused.value.about == "compare"


def test_every_measurement_is_described():
    assert set(MEASUREMENTS) == {"step", "input", "encode", "eval"} and json.dumps(MEASUREMENTS)


def traced_steps(folder) -> list[int]:
    """The steps that a profile has."""
    (path,) = folder.rglob("*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    return sorted({value for event in events for name, value in event.stats if name == "step_num"})


@pytest.mark.parametrize(("first", "stopped", "expected"), [(2, 5, [2, 3]), (3, 3, [3])])
def test_a_profile_has_its_steps_and_no_others(tmp_path, first, stopped, expected):
    trace, work = StepTrace(tmp_path, first, 2), jax.jit(lambda x: x + 1)
    for number in range(1, stopped + 1):
        with trace.step(number):
            x = work(number)
        trace.finish(number, x)
    trace.close()
    assert traced_steps(tmp_path) == expected


def test_no_profile_is_recorded_unasked(tmp_path):
    trace = StepTrace(tmp_path / "trace", 0, 5)
    with trace.step(1):
        pass
    trace.finish(1, 0)
    trace.close()
    assert not (tmp_path / "trace").exists()
