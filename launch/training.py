"""What launch.train does once its flags are read: one run, or a teacher's and then its student's."""

from collections.abc import Sequence
import os
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict as Config

from launch import common
from launch import distributed as processes
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_held, TRAINING_LOCK

TEACHER_FOLDER = "teacher"  # in the workdir


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
        common.check_resumable(workdir, config)
    processes.start(stops_together=True)
    if is_first():
        _refuse_held(runs)  # before data and weights are read, which can take minutes
    for config, workdir in runs:
        train(build_experiment(config, make_mesh(config.mesh.data, config.mesh.fsdp)), workdir)
        from launch.reporting import report_on  # after training, which needs none of a page's libraries

        report_on(workdir)


def _refuse_held(runs: Sequence[tuple[Config, Path]]) -> None:
    for _, workdir in runs:
        refuse_held(workdir / TRAINING_LOCK)
