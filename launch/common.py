"""What the commands share: one way to start, and one way to fail."""

from collections.abc import Callable, Sequence
import difflib
from pathlib import Path
import re
import sys

from absl import app, flags

from configs import base
from tc_jepa.errors import UserError
from tc_jepa.storage.files import local_path

flags.disclaim_key_flags()  # flags that define_path defines are those of its caller, for --help
CONFIG_FLAG = "config"
# tc_jepa.evaluation.evaluate.PROTOCOLS, here for --help, which loads nothing heavy.
EVALUATION_TASKS = ("knn", "linear", "linear_fast", "attentive", "lowshot", "rank", "segmentation", "grounding")


def run(main: Callable[[Sequence[str]], None], leave: Callable[[int], None] = sys.exit) -> None:
    """Parses the flags and calls `main`; a UserError becomes one line on stderr and exit status 2, through `leave`."""
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        leave(2)


class PathParser(flags.ArgumentParser):
    """Parses the value of the flag `name` as a local path; `local_path` describes what is expanded and refused."""

    def __init__(self, name: str):
        self.name = f"--{name}"

    def parse(self, argument: str) -> str:
        return local_path(argument, self.name)


class PathListParser(flags.ListParser):
    """Parses the value of the flag `name` as local paths separated by commas."""

    def __init__(self, name: str):
        super().__init__()
        self.parser = PathParser(name)

    def parse(self, argument: str | list[str]) -> list[str]:
        return [self.parser.parse(path) for path in super().parse(argument)]


def define_path(name: str, default: str | None, description: str) -> flags.FlagHolder[str]:
    """Defines a flag that is a path."""
    return flags.DEFINE(PathParser(name), name, default, description)


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags as absl reads them, with one line for what goes wrong. Words that are no flag are refused, not ignored."""
    argv = list(argv)
    for place, argument in enumerate(argv):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == CONFIG_FLAG:
            path = local_path(value if equals else "".join(argv[place + 1 : place + 2]), f"--{CONFIG_FLAG}")
            if not Path(path).is_file():
                raise UserError(
                    f"--config={path}: there is no such file; give a path such as --config=configs/quickstart.py"
                )
            argv[place : place + 2 - bool(equals)] = [f"--{CONFIG_FLAG}={path}"]
        if argument.startswith("-") and flag.startswith(f"{CONFIG_FLAG}."):
            name = flag.removeprefix(f"{CONFIG_FLAG}.")
            if not any(key.name.startswith(f"{name}.") for key in base.KEYS):  # a group is left to ml_collections
                check_key(name, f"--{CONFIG_FLAG}.")
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # a config file that sets a key which configs/base.py does not declare
        reason, _, _ = str(error.args[0]).partition(". Other fields present")
        guess = re.search(r'Did you mean "(.+?)"', str(error.args[0]))
        mend = f"; did you mean {guess[1]!r}?" if guess else ""
        raise UserError(f"--config: {' '.join(reason.split())}; keys are declared in configs/base.py{mend}") from error
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; see --help") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    if CONFIG_FLAG in flags.FLAGS and flags.FLAGS[CONFIG_FLAG].value is not None:
        base.expand_paths(flags.FLAGS[CONFIG_FLAG].value)
    return rest


def check_key(name: str, prefix: str = "") -> None:
    """Refuses a name that is no configuration key, with the nearest that is; both are shown behind `prefix`."""
    names = [key.name for key in base.KEYS]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(f"{prefix}{name} is no key of configs/base.py; did you mean {prefix}{nearest}?")


def check_workdir(workdir: Path, config) -> None:
    """Refuses a workdir that cannot hold checkpoints, or of another experiment, naming the keys that differ.

    A key that names data may differ where the data itself does not: it has been moved. Raises UserError otherwise.
    """
    from tc_jepa.config import data, methods
    from tc_jepa.storage.checkpoint import check_directory, CONFIG_FILE, read_config, saved_steps
    from tc_jepa.storage.run_data import check_data, recorded

    check_directory(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a directory")
    if not (workdir / CONFIG_FILE).exists():
        if saved_steps(workdir):
            raise UserError(
                f"{workdir} holds checkpoints but no {CONFIG_FILE}; restore that file or give another --workdir"
            )
        return
    before = read_config(workdir)
    differing, checked = base.experiment_differences(before, config), recorded(workdir)
    names = [name for name in differing if name not in checked]
    if names:
        was, now = base.flatten(before), base.flatten(config)
        changes = ", ".join(
            f"{name} (there {was.get(name, 'absent')}, here {now.get(name, 'absent')})" for name in names
        )
        raise UserError(f"{workdir} belongs to another experiment: {changes}; give another --workdir or the same keys")
    if differing:
        check_data(workdir, data.run_data(config, methods.word_folders(config)))


def run_config(workdir: Path):
    """The configuration that a run was trained with, with the runtime keys that have come since."""
    from tc_jepa.storage.checkpoint import read_config

    config = read_config(workdir)
    base.add_runtime_keys(config)
    absent = sorted(base.flatten(base.get_config()).keys() - base.flatten(config).keys())
    if absent:
        raise UserError(f"{workdir} was trained by another version (no {', '.join(absent)}); open it with that")
    return config
