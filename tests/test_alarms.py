"""Alarms: said once, not of a dip, the same after a resume, and the checkpoint from before is kept."""

import pytest

from tc_jepa.config import methods
from tc_jepa.methods.feature_metrics import CONSTANT_SHARE, PARTICIPATION
from tc_jepa.methods.reporting import RANKME_CENTRED
from tc_jepa.monitoring import progress
from tc_jepa.monitoring.alarms import Alarms, describe, FALLEN, HEALTHY, WATCHED
from tc_jepa.report.verdict import judge, read_run
from tc_jepa.storage.checkpoint import saved_steps
from tests import tiny
from tests.test_train import interrupt_after, mite, tiny_config  # noqa: F401

LINES = WATCHED[0].lines


def rows(name: str, values) -> list[dict]:
    return [{"step": 10 * number, name: value} for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # Steps 10 to 100 of scenes_standard.py, where participation is high for a moment and low after it.
        (PARTICIPATION, [5.69, 1.84, 1.78, 2.35, 2.37, 4.09, 3.48, 3.83, 3.94, 2.38]),
        (PARTICIPATION, [8.0] * 3 + [1.0] * (LINES - 1) + [8.0] + [1.0] * (LINES - 1)),
        (CONSTANT_SHARE, [0.18] + [0.77] * 20),  # flickr8k, a run that came back and was the best
        (RANKME_CENTRED, [41.0, 21.0, 37.0]),
        (PARTICIPATION, [float("nan")] * 20),
    ],
)
def test_a_dip_is_no_alarm(name, values):
    assert Alarms(rows(name, values)).falls == []


@pytest.mark.parametrize(
    ("name", "good", "bad"), [(PARTICIPATION, 8.0, 1.3), (CONSTANT_SHARE, 0.2, 0.97), (RANKME_CENTRED, 40.0, 2.6)]
)
def test_a_fall_is_said_once_in_words_and_a_resumed_run_remembers(name, good, bad):
    lines = next(number.lines for number in WATCHED if number.name == name)
    logged = rows(name, [good, good, good] + [bad] * 10 + [good] * 3 + [bad] * 10)
    alarms = Alarms()
    given = [(row["step"], fall) for row in logged for fall in alarms.observe(row)]
    ((step, fall),) = given
    assert step == fall.step == 30 + 10 * lines and fall.healthy == 30
    text = describe(fall, [20, 40])
    assert all(part in text for part in (name, f"{bad}", f"step {step}", "checkpoint of step 20", "learning_rate"))
    assert "no checkpoint" in describe(fall, [40])
    for cut in range(len(logged)):
        resumed = Alarms(logged[:cut])
        for row in logged[cut:]:
            resumed.observe(row)
        assert resumed.falls == alarms.falls and resumed.kept([20, 30, 40, 200]) == alarms.kept([20, 30, 40, 200])


def test_what_is_kept_is_the_newest_healthy_checkpoint_and_the_one_before_each_alarm():
    logged = rows(PARTICIPATION, [8.0, 8.0, 8.0 * HEALTHY * 0.9, *[8.0 * FALLEN * 0.9] * LINES])
    alarms = Alarms(logged[:3])
    assert alarms.kept([10, 20, 30]) == {20}  # while it falls, before any alarm
    assert all(alarms.observe(row) == [] for row in logged[3:-1]) and len(alarms.observe(logged[-1])) == 1
    assert alarms.kept([10, 20, 30]) == {20} and alarms.kept([30]) == set()
    alarms.observe({"step": 100, PARTICIPATION: 8.0})
    assert alarms.kept([10, 20, 30, 100]) == {20, 100}


def test_a_run_that_falls_says_so_and_keeps_the_checkpoint_from_before(tmp_path, monkeypatch, caplog):
    write = progress.Progress.write

    def falling(self, step, metrics):
        write(self, step, dict(metrics) | {PARTICIPATION: 8.0 if step <= 4 else 1.0, CONSTANT_SHARE: 0.2})

    monkeypatch.setattr(progress.Progress, "write", falling)
    config = tiny_config(**{"train.steps": 14, "train.checkpoint_every": 2, "train.keep_checkpoints": 1})
    alarm = 4 + LINES
    with caplog.at_level("WARNING", logger="absl"):
        with monkeypatch.context() as patch:
            interrupt_after(patch, alarm + 2)
            with pytest.raises(SystemExit):
                tiny.train(config, tmp_path)
        assert saved_steps(tmp_path) == [4, alarm + 2]
        tiny.train(config, tmp_path)
    assert saved_steps(tmp_path) == [4, 14]
    (said,) = [text for record in caplog.records if PARTICIPATION in (text := record.getMessage())]
    assert f"step {alarm}" in said and "checkpoint of step 4" in said
    assert said in judge(read_run(tmp_path, methods.chosen(config).diagnostics(config))).warnings
    assert "target_encoder.normalise" in said
