"""The report of a workdir, for launch.report and for the end of launch.train."""

from collections.abc import Sequence
from pathlib import Path
import shlex

from absl import logging

from configs import base
from configs.keys import flatten
from launch import common
from tc_jepa.distributed.processes import is_first, wait_for_all
from tc_jepa.errors import UserError
from tc_jepa.report import page
from tc_jepa.report.verdict import Verdict
from tc_jepa.storage.faults import StorageFault


def write_report(workdir: Path, others: Sequence[Path] = ()) -> tuple[Path, Verdict]:
    """Writes the report of a run into its workdir, with `others` drawn beside it; see tc_jepa.report.page."""
    configs = {path: common.run_config(path) for path in (workdir, *others)}
    config = configs[workdir]
    return page.write_report(configs, flatten(config), commands(workdir, config, others))


def commands(workdir: Path, config, others: Sequence[Path]) -> list[str]:
    """Returns the shell commands that train the run from the defaults, evaluate it, and write this page."""
    defaults, chosen = flatten(base.get_config()), flatten(config)
    names = [name for name in defaults if chosen[name] != defaults[name] and base.KEYS.is_used(name, chosen)]
    changed = [f"--config.{name}={chosen[name]}" for name in names]
    train = ["python", "-m", "launch.train", "--config=configs/base.py", *changed, f"--workdir={workdir}"]
    evaluate = ["python", "-m", "launch.evaluate", f"--encoder={workdir}"]
    report = ["python", "-m", "launch.report", f"--workdir={workdir}", *(f"--compare={path}" for path in others)]
    return [shlex.join(command) for command in (train, evaluate, report)]


def report_on(workdir: Path) -> None:
    """Writes the report of the finished run, in one process. Where it cannot be made that is only logged.

    Raises StorageFault where the machine cannot write it.
    """
    if is_first():
        try:
            path, _ = write_report(workdir)
        except StorageFault:
            raise
        except UserError as error:
            logging.warning("there is no report: %s", error)
        else:
            print(f"report: {path}", flush=True)
    wait_for_all("report")  # JAX lets a process that has ended wait for the others for five minutes only
