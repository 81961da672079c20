"""The house rules that a reader relies on, held by walking the code."""

import ast
import importlib
from pathlib import Path
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import base, contrastive, imagenette, paper, quickstart
from tc_jepa.config import models
from tc_jepa.config.validate import validate
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.models.conditioners.base import Words
from tc_jepa.optimizer import match_rules, weight_decay_rules

ROOT = Path(__file__).parent.parent
NO_RUNS = {"__init__", "base", "keys", "paper", "plans", "uses"}
CONFIGS = sorted(
    [(stem, "") for stem in sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - NO_RUNS)]
    + [("quickstart", stage) for stage in quickstart.STAGES]
    + [("imagenette", method) for method in imagenette.STEPS]
    + [("contrastive", name) for name in contrastive.LOSSES]
    + [("paper", name) for name in (*paper.IJEPA, *paper.STOP, *paper.TC_JEPA)]
)


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
        (("data/**/*.py", "masking/*.py", "batch.py", "errors.py"), ("jax", "flax", "optax", "orbax")),
        (
            ("models/**/*.py", "methods/*.py", "step.py", "state.py"),
            (
                "tc_jepa.data",
                "tc_jepa.storage",
                "tc_jepa.distributed",
                "tc_jepa.config",
                "tc_jepa.train",
                "ml_collections",
            ),
        ),
        (("evaluation/**/*.py",), ("tc_jepa.train", "tc_jepa.monitoring")),
        (("**/*.py",), ("configs", "launch", "tests", "pickle", "tensorflow")),
    ],
)
def test_imports_flow_one_way(patterns, forbidden):
    for path in files(*patterns):
        wrong = {name for name in imports(path) for bad in forbidden if name == bad or name.startswith(bad + ".")}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_torch_has_one_door():
    assert [path.name for path in files("**/*.py") if "torch" in imports(path)] == ["torch_files.py"]


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


def code() -> list[Path]:
    return [path for room in ("tc_jepa", "launch", "configs") for path in sorted((ROOT / room).rglob("*.py"))]


def test_no_file_and_no_function_has_grown_too_long():
    for path in code():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


def test_the_main_path_is_short():
    """From the command line to the loss, as tc_jepa/README.md lists it: 7 hops and 1,300 lines at most."""
    listed = re.findall(r"^\| `(\S+?\.py)`", (ROOT / "tc_jepa" / "README.md").read_text(), re.M)
    path = [ROOT / name for name in listed]
    assert listed[0] == "launch/train.py" and listed[-1] == "tc_jepa/methods/losses.py" and len(path) - 1 <= 7
    for one, following in zip(path, path[1:]):
        module = ".".join(following.relative_to(ROOT).with_suffix("").parts)
        assert module in imports(one) or module == "tc_jepa.methods.jepa", f"{one} does not import {module}"
    assert "tc_jepa.methods.method" in imports(ROOT / "tc_jepa" / "step.py")  # the contract that jepa.py implements
    models = ["predictor", "vit", "layers", "conditioners/word_cross_attention"]
    path += [ROOT / "tc_jepa" / "models" / f"{name}.py" for name in models]
    assert sum(len(file.read_text().splitlines()) for file in path) <= 1300


@pytest.mark.parametrize(("stem", "name"), CONFIGS)
def test_every_config_builds(stem, name):
    config = importlib.import_module(f"configs.{stem}").get_config(*([name] if name else []))
    base.KEYS.check(config)
    # What a config leaves to the user's command line is replaced by what every machine has.
    config.data.path, config.data.train_scenes = "", 1
    if config.model.text == "t5":
        config.model.text = "embedding"
    if config.target_encoder.kind == "frozen":
        config.target_encoder.kind = "ema"
    validate(config)
    experiment = build_experiment(config)
    state = jax.eval_shape(experiment.initial_state, experiment.frozen)
    match_rules(weight_decay_rules(), state.params)


@pytest.mark.parametrize(
    ("name", "encoder", "predictor"), [("b16", 85.7, 11.2), ("l16", 303.1, 22.1), ("h14", 630.4, 22.3)]
)
def test_recipes_have_the_published_sizes(name, encoder, predictor):
    """Millions of parameters of encoder and I-JEPA predictor, as in the released checkpoints and the paper."""
    config = paper.get_config(f"ijepa_in1k_{name}")
    vit, predict = models.encoder(config), models.predictor(config, models.encoder(config).size.width)
    side, patch = models.grid(config)[0], config.model.patch_size
    images, one = np.zeros((1, side * patch, side * patch, 3)), np.zeros((1, 1), int)
    no_words = Words(np.zeros((1, 1, 1, 1)), one[..., None] > 0, one > 0)
    context = np.zeros((1, 1, vit.size.width))
    arguments = context, one, one == 0, one[:, None], one[:, None] == 0, no_words
    for millions, module, inputs in ((encoder, vit, (images,)), (predictor, predict, arguments)):
        shapes = jax.eval_shape(lambda m=module, x=inputs: m.init(jax.random.key(0), *x))["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.1)
