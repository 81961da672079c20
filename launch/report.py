"""One page on a run: did it learn, and from the words?

  python -m launch.report --workdir=runs/quickstart [--compare=runs/other ...]

Writes WORKDIR/report/index.html, which needs nothing else: losses and schedules, the worth of the words, collapse,
regularisers, inputs with masks and captions, features in colours, maps of words and of prediction errors, scores,
configuration. Warnings stand on top, in words. launch.train writes it, too, when a run ends; after launch.evaluate,
this command adds the scores. Runs that --compare names are drawn into the charts and the table of scores.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from launch import common
from tc_jepa.errors import UserError

WORKDIR = common.define_path("workdir", None, "Workdir of the run to report on.")
COMPARE = flags.DEFINE_multi(
    common.PathParser("compare"), None, "compare", [], "Workdir of another run to draw beside it. May be repeated."
)


def main(argv: Sequence[str]) -> None:
    del argv
    if WORKDIR.value is None:
        raise UserError("give --workdir=DIR, the workdir of a training run")
    logging.set_verbosity(logging.WARNING)
    # Imported here, so that --help and a mistyped flag answer at once.
    from launch.reporting import write_report

    path, verdict = write_report(Path(WORKDIR.value), [Path(other) for other in COMPARE.value])
    print(f"Did it learn?   {verdict.learned}")
    print(f"From the words? {verdict.words}")
    for warning in verdict.warnings:
        print(f"warning: {warning}")
    print(f"written to {path}")


if __name__ == "__main__":
    common.run(main)
