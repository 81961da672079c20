"""Trains an encoder, or resumes: the same command with the same workdir continues from the newest checkpoint.

  python -m launch.train --config=configs/scenes_standard.py --workdir=runs/scenes [--config.train.steps=1000 ...]

Writes WORKDIR/config.json, metrics.jsonl, tensorboard/ and checkpoints/, and at the end report/index.html (see
launch.report). Batch sizes are global.
Keys of the configuration, with defaults; those marked * do not change results and may differ between resumes:
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from configs import base
from launch import common
from launch import distributed as processes
from tc_jepa.errors import UserError
from tc_jepa.storage.files import as_path, refuse_held, TRAINING_LOCK

__doc__ += base.KEYS.describe()

CONFIG = config_flags.DEFINE_config_file(
    common.CONFIG_FLAG, help_string="Configuration file; --config.KEY=VALUE overrides one of its keys."
)
WORKDIR = common.define_workdir(
    "workdir", "Directory of the run, local or gs://BUCKET/PATH: made if missing, resumed if there."
)
flags.adopt_module_key_flags(processes)  # --distributed


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("config", "workdir")
    workdir = as_path(WORKDIR.value)
    if processes.DISTRIBUTED.value is None:  # of several processes the first alone holds the lock
        refuse_held(workdir / TRAINING_LOCK)  # before JAX is loaded, which takes seconds
    # Imported here: data workers import this module again, and need none of it.
    from tc_jepa.config.validate import validate
    from tc_jepa.distributed.processes import is_first
    from tc_jepa.distributed.sharding import make_mesh
    from tc_jepa.experiment.experiment import build_experiment
    from tc_jepa.train import train

    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    validate(config)
    common.check_workdir(workdir, config)
    processes.start(stops_together=True)
    if is_first():
        refuse_held(workdir / TRAINING_LOCK)  # before data and weights are read, which can take minutes
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    train(build_experiment(config, mesh), workdir)
    report_on(workdir)


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
    common.run(main, processes.leave)
