"""What the commands share: how they start, how they fail, and how they read the configuration of a run."""

from collections.abc import Callable, Sequence
import contextlib
import functools
import logging
from pathlib import Path
import re
import sys
import warnings

from absl import app, flags
from ml_collections import config_flags

from configs import base
from configs.keys import flatten
from launch import streams
from tc_jepa.errors import UserError
from tc_jepa.storage.faults import fault_of, StorageFault
from tc_jepa.storage.files import local_path, workdir_path

flags.disclaim_key_flags()  # flags that define_path defines are those of its caller, for --help
CONFIG_FLAG = "config"


def run(
    main: Callable[[Sequence[str]], None],
    leave: Callable[[int], None] = sys.exit,
    configs: Sequence[str] = (CONFIG_FLAG,),
) -> None:
    """Parses the flags and calls `main`. An error that is expected becomes one line on stderr, and ends in `leave`.

    The exit status is 2 for a UserError and 74 (EX_IOERR) for a fault of the machine that ended in no other line.
    `configs` are the flags that are configuration files; a command may have none of them.
    """
    streams.outlive_readers()
    try:
        app.run(main, flags_parser=functools.partial(_parse, configs))
    except Exception as error:
        expected = error if isinstance(error, UserError) else fault_of(error)
        if expected is None:
            raise
        if isinstance(expected, StorageFault):
            logging.disable()  # what libraries say of the same error as their threads are ended
            warnings.simplefilter("ignore")
        with contextlib.suppress(OSError):  # standard error may be what cannot be written
            print(f"error: {expected}", file=sys.stderr, flush=True)
        leave(expected.status)


def require(*names: str) -> None:
    """Raises UserError for a flag without a value, or with an empty one."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise UserError(f"give --{name}; see --help", about=name)


class PathParser(flags.ArgumentParser):
    """Parses the value of the flag `name` as a local path; `local_path` describes what is expanded and refused."""

    def __init__(self, name: str):
        self.name = f"--{name}"

    def parse(self, argument: str) -> str:
        return local_path(argument, self.name)


class WorkdirParser(PathParser):
    """Parses the value of the flag `name` as a path that may also be in a bucket; see `workdir_path`."""

    def parse(self, argument: str) -> str:
        return workdir_path(argument, self.name)


class PathListParser(flags.ListParser):
    """Parses the value of the flag `name` as local paths separated by commas."""

    def __init__(self, name: str):
        super().__init__()
        self.parser = PathParser(name)

    def parse(self, argument: str | list[str]) -> list[str]:
        return [self.parser.parse(path) for path in super().parse(argument)]


def define_path(name: str, default: str | None, description: str) -> flags.FlagHolder[str]:
    """Defines a flag that is a local path."""
    return flags.DEFINE(PathParser(name), name, default, description)


def define_workdir(name: str, description: str) -> flags.FlagHolder[str]:
    """Defines a flag that is a path of a workdir, which may be in a bucket."""
    return flags.DEFINE(WorkdirParser(name), name, None, description)


def _parse(configs: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Parses flags as absl does, and checks the keys of configurations. UserError for anything that absl cannot read,
    and for arguments that are not flags."""
    argv = list(argv)
    for place, argument in enumerate(argv):
        flag, equals, value = argument.lstrip("-").partition("=")
        name, dot, key = flag.partition(".")
        if not argument.startswith("-") or name not in configs:
            continue
        if not dot:
            given = local_path(value if equals else "".join(argv[place + 1 : place + 2]), f"--{name}")
            path, _, _ = given.partition(":")  # FILE:STRING gives STRING to its get_config
            if not Path(path).is_file():
                raise UserError(f"--{name}={path} is not a file; try configs/quickstart.py", about=name)
            argv[place : place + 2 - bool(equals)] = [f"--{name}={given}"]
        elif not any(declared.name.startswith(f"{key}.") for declared in base.KEYS):  # ml_collections refuses groups
            base.KEYS.named(key, f"--{name}.")
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # a config file that sets a key which configs/base.py does not declare
        reason, _, _ = str(error.args[0]).partition(". Other fields present")
        guess = re.search(r'Did you mean "(.+?)"', str(error.args[0]))
        hint = f"keys are declared in configs/base.py{f'; did you mean {guess[1]!r}?' if guess else ''}"
        raise UserError(f"--{' or --'.join(configs)}: {reason}; {hint}", about=configs[0]) from error
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for name in configs:
        if name in flags.FLAGS and flags.FLAGS[name].value is not None:
            base.expand_paths(flags.FLAGS[name].value)
            base.KEYS.check(flags.FLAGS[name].value, config_flags.get_override_values(flags.FLAGS[name]))
    return rest


def check_workdir(workdir: Path, config) -> None:
    """Refuses a workdir that cannot hold checkpoints, or of another experiment, naming the keys that differ.

    A key that names data may differ where the data itself does not: it has been moved. Raises UserError otherwise.
    """
    from tc_jepa.config import data, methods
    from tc_jepa.storage.checkpoint import check_directory, CONFIG_FILE, read_config, saved_steps
    from tc_jepa.storage.run_data import check_data, recorded

    check_directory(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a directory", about="workdir")
    if not (workdir / CONFIG_FILE).exists():
        if saved_steps(workdir):
            fix = "restore that file or give another --workdir"
            raise UserError(f"{workdir} holds checkpoints but no {CONFIG_FILE}; {fix}", about="workdir")
        return
    stored = read_config(workdir)
    differing, checked = base.KEYS.differences(stored, config), recorded(workdir)
    names = [name for name in differing if name not in checked]
    if names:
        was, now = ({name: flatten(one).get(name, "absent") for name in names} for one in (stored, config))
        fix = "give another --workdir or the same keys"
        if {"train.steps", "train.batch_size"} & set(names):
            more = "train.steps and schedules for the steps to come"
            fix += f"; to train on from its weights, a new --workdir, --config.train.init_from={workdir}, {more}"
        changes = ", ".join(f"{name} (there {was[name]}, here {now[name]})" for name in names)
        raise UserError(f"{workdir} belongs to another experiment: {changes}; {fix}", about=names[0])
    if differing:
        check_data(workdir, data.run_data(config, methods.word_folders(config)))


def check_resumable(workdir: Path, config) -> None:
    """Refuses to train in a workdir that check_workdir refuses, or whose files do not let a run start or go on.

    Raises UserError, before anything is read that takes time.
    """
    from tc_jepa.experiment.non_finite import check_not_stopped
    from tc_jepa.experiment.resume import check_kinds, check_not_lost
    from tc_jepa.storage.checkpoint import CONFIG_FILE, read_config, saved_steps

    check_kinds(workdir)
    check_workdir(workdir, config)
    started, newest = (workdir / CONFIG_FILE).exists(), max(saved_steps(workdir), default=0)
    stored, now = flatten(read_config(workdir)) if started else {}, flatten(config)
    if not newest:
        every = stored.get("train.checkpoint_every", 0)
        check_not_lost(workdir, every if type(every) is int else now["train.checkpoint_every"])
    if stored == now:
        check_not_stopped(workdir, newest, config.train.skip_non_finite)


def run_config(workdir: Path):
    """The configuration that a run was trained with, completed with the keys that were declared since."""
    from tc_jepa.storage.checkpoint import CONFIG_FILE, read_config

    config, path = read_config(workdir), workdir / CONFIG_FILE
    for name in flatten(config):
        if any(key.name.startswith(f"{name}.") for key in base.KEYS):
            raise UserError(f"{path} is damaged: {name} is not a group of keys; restore it", about=name)
    if absent := base.KEYS.complete(config):
        missing = ", ".join(absent)
        raise UserError(f"{workdir} was trained by another version (no {missing}); open it with that", about=absent[0])
    values = flatten(config)
    for key in base.KEYS:
        try:
            key.check_type(values[key.name])
        except UserError as error:
            raise UserError(f"{path}: {error}", about=key.name) from error
    return config
