"""Trains an encoder, or resumes: the same command with the same workdir continues from the newest checkpoint.

  python -m launch.train --config=configs/scenes_standard.py --workdir=runs/scenes [--config.train.steps=1000 ...]

With --teacher=configs/quickstart.py:teacher, say, a teacher is trained first, in WORKDIR/teacher, then --config as a
student that predicts its features: two stages, as SALT has them ("Rethinking JEPA", arXiv 2509.24317).

Writes WORKDIR/config.json, metrics.jsonl, tensorboard/ and checkpoints/, and at the end report/index.html (see
launch.report). Batch sizes are global.
Keys of the configuration, with defaults; those marked * do not change results and may differ between resumes:
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from configs import base
from launch import common
from launch import distributed as processes
from launch.training import stages, train_all
from tc_jepa.storage.files import as_path

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


if __name__ == "__main__":
    common.run(processes.watched(main), processes.leave, configs=("config", "teacher"))
