"""The house rules that a reader relies on, held by walking the code."""

import ast
import importlib
from pathlib import Path
import subprocess
import sys

import jax
import pytest

from configs import base
from tc_jepa import build
from tc_jepa.data import pipeline
from tc_jepa.optimizer import adamw, match_rules, WEIGHT_DECAY_RULES
from tc_jepa.state import initial_state
from tc_jepa.validate import validate

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, as dotted names; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in (ROOT / "tc_jepa").glob(pattern)]
    assert found, patterns
    return found


@pytest.mark.parametrize(
    ("patterns", "forbidden"),
    [
        (("data/*.py", "masking/*.py", "batch.py", "errors.py"), ("jax", "flax", "optax", "orbax")),
        (
            ("models/*.py", "objective.py", "step.py", "state.py"),
            (
                "tc_jepa.data",
                "tc_jepa.checkpoint",
                "tc_jepa.sharding",
                "tc_jepa.build",
                "tc_jepa.train",
                "ml_collections",
            ),
        ),
        (("evaluation/*.py",), ("tc_jepa.train", "tc_jepa.monitor")),
        (("**/*.py",), ("configs", "launch", "tests", "pickle", "tensorflow", "torch")),
    ],
)
def test_imports_flow_one_way(patterns, forbidden):
    for path in files(*patterns):
        wrong = {name for name in imports(path) for bad in forbidden if name == bad or name.startswith(bad + ".")}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, tc_jepa; tc_jepa.UserError; print(sorted({'jax', 'grain', 'cv2'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_every_export_exists():
    package = importlib.import_module("tc_jepa")
    for name in package.__all__:
        assert getattr(package, name)
    with pytest.raises(AttributeError):
        _ = package.nothing


def test_no_file_has_grown_too_long():
    for path in files("**/*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path):
    config = importlib.import_module(f"configs.{path.stem}").get_config()
    validate(config)
    config.data.path = ""  # a config for one's own data builds on scenes just as well
    tokenizer = build.tokenizer(config)
    networks = build.networks(config, tokenizer.vocabulary_size)
    optimizer = adamw(build.schedules(config), 0.9, 0.999, 1e-8)
    config.data.train_scenes = 1
    row = pipeline.example(build.source(config, "train"), build.augment(config, tokenizer), build.masks(config))
    state = jax.eval_shape(lambda: initial_state(networks, row, optimizer, 0))
    match_rules(WEIGHT_DECAY_RULES, state.params)
    build.objective(config)


def test_keys_are_declared_once_and_explained():
    names = [key.name for key in base.KEYS]
    assert len(names) == len(set(names))
    assert set(base.flatten(base.get_config())) == set(names)
    assert all(key.meaning for key in base.KEYS)
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        base.get_config().train.stpes = 3


def test_experiment_keys_tell_runs_apart_and_runtime_keys_do_not():
    one, other = base.get_config(), base.get_config()
    other.data.workers, other.mesh.fsdp, other.train.log_every = 3, 2, 7
    assert base.experiment_differences(one, other) == []
    other.train.seed = 1
    with other.unlocked():
        del other.image["flip"]
    assert base.experiment_differences(one, other) == ["image.flip", "train.seed"]
