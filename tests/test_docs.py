"""The READMEs are short and true: links, paths, keys and flags exist, and the cheap commands run.

Elsewhere: the Python API (test_pretrained.py), the table of evaluation tasks (test_tasks.py), and what the other
commands do, at a smaller size (test_train.py, test_evaluation.py, test_sweep.py, test_warm_start.py, ...).
"""

import ast
from concurrent.futures import ThreadPoolExecutor
import importlib
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from configs import base
from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path

ROOT = Path(__file__).parent.parent
PROJECT, *ROOMS = READMES = [
    ROOT / "README.md",
    ROOT / "launch" / "README.md",
    *sorted((ROOT / "configs").rglob("README.md")),
    *sorted((ROOT / "tc_jepa").rglob("README.md")),
]
PHOTOS = ROOT / "tests" / "fixtures" / "photos"
COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "common.run(" in path.read_text())
SCRIPT_FLAGS = {flag for path in (ROOT / "launch").glob("*.sh") for flag in re.findall(r"--(\w+)", path.read_text())}
KEYS = {key.name for key in base.KEYS}
GROUPS = {name.rpartition(".")[0] for name in KEYS}
FILES = {"csv", "json", "jsonl", "lock", "md", "npz", "png", "py"}  # "captions.json" is not a key
CHEAP = (  # commands that a README gives, with PHOTOS, spiece.model and a.jpg in the folder
    "launch.show --what=masks",
    "launch.prepare_data --source=folder --images=PHOTOS --captions=PHOTOS/captions.jsonl",
)

each_readme = pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))


def code_blocks(text: str, language: str = "") -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    return [block for written_in, block in blocks if written_in == language]


def prose(text: str) -> str:
    """The text without code blocks and tables."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return "\n".join(line for line in without_code.splitlines() if not line.startswith("|"))


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def commands(text: str) -> list[tuple[str, str]]:
    """(name, arguments) of every `python -m launch.NAME ARGUMENTS`, in code blocks and in prose."""
    lines = [line for block in code_blocks(text) for line in block.replace("\\\n", "").splitlines()]
    parts = [part for line in (*lines, *inline_code(text)) for part in line.split("&&")]
    return [found.groups() for part in parts if (found := re.search(r"-m launch\.(\w+)(.*)", part))]


def flags_of(text: str) -> list[tuple[str, str]]:
    """(name, value) of every flag; "" where it has no value."""
    return re.findall(r"(?<![\w-])--(\w[\w.]*)=?(\S*)", text)


def is_placeholder(text: str) -> bool:
    return any(word.isupper() for word in re.findall(r"[A-Za-z]+", text))


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(path: Path) -> list[tuple[int, str]]:
    """(level, heading) of a README."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return [(len(marks), heading) for marks, heading in re.findall(r"^(#+) (.+)$", text, flags=re.M)]


def launch(name: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    call = [sys.executable, "-m", f"launch.{name}", *arguments]
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def known_flags() -> dict[str, set[str]]:
    """The flags of every command, from its --help."""
    with ThreadPoolExecutor(2) as pool:
        helps = dict(zip(COMMANDS, pool.map(lambda name: launch(name, "--help").stdout, COMMANDS)))
    return {name: {"help", *re.findall(r"^  --(?:\[no\])?(\w+):", text, flags=re.M)} for name, text in helps.items()}


def test_lengths():
    assert len(PROJECT.read_text().split()) <= 1100
    assert len(ROOMS) >= 4
    for room in ROOMS:
        assert len(prose(room.read_text()).split()) <= 1800, room


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_have_a_table_of_contents(room):
    contents, _, _ = room.read_text().partition("\n## ")
    linked = re.findall(r"\]\(#([\w-]+)\)", contents)
    assert [anchor(heading) for level, heading in headings(room) if level == 2 and anchor(heading) not in linked] == []


@each_readme
def test_links(readme):
    for target in re.findall(r"\]\(([^)\s]+)\)", readme.read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        linked = readme.parent / path if path else readme
        assert linked.exists(), target
        assert not fragment or fragment in {anchor(heading) for _, heading in headings(linked)}, target


@each_readme
def test_paths_and_modules(readme):
    text = readme.read_text()
    for path in re.findall(r"(?<![\w./-])((?:configs|launch|tc_jepa|tests)/[\w./-]*\w)", text):
        assert is_placeholder(Path(path).stem) or (ROOT / path).exists(), path
    for name in re.findall(r"\blaunch\.(\w+)", text):
        assert name in COMMANDS, f"launch.{name}"
    for block in code_blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tc_jepa"):
                for alias in node.names:
                    assert getattr(importlib.import_module(node.module), alias.name)


@each_readme
def test_keys(readme):
    for text in inline_code(readme.read_text()):
        name, _, _ = text.partition("=")
        if re.fullmatch(r"\w+(\.\w+)+", name) and name.split(".")[0] in GROUPS and name.split(".")[-1] not in FILES:
            assert name in KEYS | GROUPS, name


@each_readme
def test_flags(readme, known_flags):
    text = readme.read_text()
    in_commands = [(command, *flag) for command, rest in commands(text) for flag in flags_of(rest)]
    in_prose = [(None, *flag) for code in inline_code(text) if "launch." not in code for flag in flags_of(code)]
    for command, name, value in in_commands + in_prose:
        group, _, key = name.partition(".")
        if name == "set":
            group, key = "config", value.partition("=")[0]
        if group == "config" and key:
            assert key in KEYS or is_placeholder(key), f"{name}={value}"
        else:
            flags = known_flags[command] if command else set().union(SCRIPT_FLAGS, *known_flags.values())
            assert name in flags, f"{command} --{name}"


@each_readme
def test_named_configurations(readme):
    for file, name in re.findall(r"\b(configs/\w+\.py|configs/sweeps/\w+\.py):(\w+)", readme.read_text()):
        if name.isupper():
            continue
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert name in module.SWEEPS if "sweeps" in file else module.get_config(name)


def test_every_command_is_in_the_table():
    table = [line for line in (ROOT / "launch" / "README.md").read_text().splitlines() if line.startswith("| `python")]
    assert sorted(name for name, _ in commands("\n".join(table))) == COMMANDS


def test_cheap_commands_run(tmp_path):
    shutil.copytree(PHOTOS, tmp_path / "PHOTOS")
    photo = next((PHOTOS / "images").glob("*.jpg"))
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photo, tmp_path / name)
    shutil.copy(scenes_vocabulary_path(), tmp_path / "spiece.model")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    given = [command for readme in READMES for command in commands(readme.read_text())]
    chosen = [next((name, rest) for name, rest in given if f"launch.{name}{rest}".startswith(start)) for start in CHEAP]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda command: launch(command[0], *shlex.split(command[1]), folder=tmp_path), chosen))
    for (_, arguments), done in zip(chosen, runs, strict=True):
        assert done.returncode == 0, done.stderr
        (output,) = [value for flag, value in flags_of(arguments) if flag == "output"]
        assert (tmp_path / output).exists()
