"""Trains an encoder, or resumes: the same command with the same workdir continues from the newest checkpoint.

  python -m launch.train --config=configs/scenes_standard.py --workdir=runs/scenes [--config.train.steps=1000 ...]

With --teacher=configs/quickstart.py:teacher, say, a teacher is trained first, in WORKDIR/teacher, then --config as a
student that predicts its features: two stages, as SALT has them ("Rethinking JEPA", arXiv 2509.24317).

Writes WORKDIR/config.json, metrics.jsonl, tensorboard/ and checkpoints/, and at the end report/index.html (see
launch.report). Batch sizes are global.
Keys of the configuration, with defaults; those marked * do not change results and may differ between resumes:
"""

from collections.abc import Sequence
import os
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags
from ml_collections import ConfigDict as Config

from configs import base
from launch import common
from launch import distributed as processes
from tc_jepa.errors import UserError
from tc_jepa.storage.files import as_path, refuse_held, TRAINING_LOCK

TEACHER_FOLDER = "teacher"  # in the workdir
__doc__ += base.KEYS.describe()

CONFIG = config_flags.DEFINE_config_file(
    common.CONFIG_FLAG, help_string="Configuration file; --config.KEY=VALUE overrides one of its keys."
)
TEACHER = config_flags.DEFINE_config_file(
    "teacher", help_string="Configuration of a teacher to train first; --teacher.KEY=VALUE overrides one of its keys."
)
WORKDIR = common.define_workdir(
    "workdir", "Directory of the run, local or gs://BUCKET/PATH: made if missing, resumed if there."
)
flags.adopt_module_key_flags(processes)  # --distributed


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("config", "workdir")
    train_all(stages(CONFIG.value, TEACHER.value, as_path(WORKDIR.value)))


def stages(config: Config, teacher: Config | None, workdir: Path) -> list[tuple[Config, Path]]:
    """Configurations and workdirs in the order to train in. A teacher becomes the target of `config`."""
    if teacher is None:
        return [(config, workdir)]
    target = config.target_encoder
    if config.method.name != "jepa" or target.kind != "frozen" or target.teacher:
        raise UserError(
            "--teacher needs --config.target_encoder.kind=frozen, and no target_encoder.teacher beside it",
            about="target_encoder",
        )
    target.teacher = os.fspath(workdir / TEACHER_FOLDER)
    return [(teacher, workdir / TEACHER_FOLDER), (config, workdir)]


def train_all(runs: Sequence[tuple[Config, Path]]) -> None:
    """Trains each configuration in its workdir, one after another. All are checked before the first one starts."""
    if processes.DISTRIBUTED.value is None:  # of several processes the first alone holds the locks
        _refuse_held(runs)  # before JAX is loaded, which takes seconds
    # Imported here: data workers import this module again, and need none of it.
    from tc_jepa.config.validate import validate
    from tc_jepa.distributed.processes import is_first
    from tc_jepa.distributed.sharding import make_mesh
    from tc_jepa.experiment.experiment import build_experiment
    from tc_jepa.train import train

    logging.set_verbosity(logging.WARNING)
    for config, workdir in runs:
        validate(config)
        common.check_workdir(workdir, config)
    processes.start(stops_together=True)
    if is_first():
        _refuse_held(runs)  # before data and weights are read, which can take minutes
    for config, workdir in runs:
        train(build_experiment(config, make_mesh(config.mesh.data, config.mesh.fsdp)), workdir)
        report_on(workdir)


def _refuse_held(runs: Sequence[tuple[Config, Path]]) -> None:
    for _, workdir in runs:
        refuse_held(workdir / TRAINING_LOCK)


def report_on(workdir: Path) -> None:
    """Writes the report of the finished run, in one process. A report that cannot be written is only logged."""
    from launch.reporting import write_report
    from tc_jepa.distributed.processes import is_first, wait_for_all

    if is_first():
        try:
            path, _ = write_report(workdir)
        except UserError as error:
            logging.warning("there is no report: %s", error)
        else:
            print(f"report: {path}", flush=True)
    wait_for_all("report")  # JAX lets a process that has ended wait for the others for five minutes only


if __name__ == "__main__":
    common.run(main, processes.leave, configs=("config", "teacher"))
