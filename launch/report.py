"""Writes one page on a run: did it learn, and is anything wrong?

  python -m launch.report --workdir=runs/quickstart [--compare=runs/other ...]

Writes WORKDIR/report/index.html, one file that loads nothing else: warnings on top, then losses and schedules, the
effect of captions, collapse, regularisers, inputs with masks and captions, features in colours, maps of words and of
prediction errors, scores, configuration. launch.train writes it too when a run ends; after launch.evaluate, this
command adds the scores. The runs of --compare are drawn in the charts and in the table of scores.
"""

from collections.abc import Sequence

from absl import flags, logging

from launch import common

WORKDIR = common.define_workdir("workdir", "Workdir of the run to report on.")
COMPARED = "Workdir of another run to draw beside it. May be repeated."
COMPARE = flags.DEFINE_multi(common.WorkdirParser("compare"), None, "compare", [], COMPARED)


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("workdir")
    logging.set_verbosity(logging.WARNING)
    # Imported late, so that --help and a mistyped flag are answered at once.
    from launch.reporting import write_report
    from tc_jepa.storage.files import as_path

    path, verdict = write_report(as_path(WORKDIR.value), [as_path(other) for other in COMPARE.value])
    for question, answer in verdict.answers.items():
        print(f"{question} {answer.text}")
    for warning in verdict.warnings:
        print(f"warning: {warning}")
    print(f"written to {path}")


if __name__ == "__main__":
    common.run(main)
