"""The report answers its questions rightly, warns when it should and only then, and shows what is there."""

import json
from pathlib import Path
import re
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from configs import base, scenes_standard
from launch import reporting
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.masking.masks import pack
from tc_jepa.methods import jepa_reporting
from tc_jepa.methods.reporting import Answer, Diagnostic, Diagnostics, Question, Section
from tc_jepa.report import charts, looks, looks_jepa, page, pictures, verdict
from tc_jepa.report.verdict import read_run, Run
from tc_jepa.storage.metrics_file import cut_back

ROOT = Path(__file__).parent.parent
GRID = (4, 4)
JEPA = jepa_reporting.diagnostics(reads_captions=True, rectified=True)


def look(step: int, **changed) -> dict:
    """A line of metrics.jsonl of a healthy run, with a look at held-out images."""
    values = {
        "rank/rankme": 20.0,
        "rank/rankme_centred": 20.0,
        "rank/constant_share": 0.2,
        "rank/feature_std": 0.3,
        "text_worth/shuffled": 0.08 if step else 0.0,
        "layer_0/positive_cosines": 0.01,
        "layer_0/attention_entropy": 0.7 if step else 1.0,
        "captions": 4.0,
        "context_tokens": 12.0,
        "context_dropped": 1.0,
    }
    return {"step": step, **values, **changed}


def healthy(**changed) -> list[dict]:
    """Looks at steps 0 to 400; what is `changed` is so from step 200 on."""
    return [look(step, **(changed if step >= 200 else {})) for step in (0, 100, 200, 300, 400)]


def named(**values) -> dict:
    """metrics' names have slashes."""
    return {name.replace("__", "/"): value for name, value in values.items()}


def judge(rows, scores, diagnostics, scores_step=None) -> verdict.Verdict:
    return verdict.judge(Run("run", rows, diagnostics, scores, scores_step))


def answer(found: verdict.Verdict) -> Answer:
    return found.answers[jepa_reporting.QUESTION]


def test_a_healthy_run_has_no_warning():
    found = judge(healthy(), None, JEPA)
    assert found.warnings == []
    assert "+8.0 %" in answer(found).text and "step 400" in answer(found).text
    assert found.answers[verdict.LEARNED].text.startswith("Unknown")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (named(text_worth__shuffled=0.004), ["text_worth/shuffled is 0.004", "below 0.01"]),
        (named(layer_0__positive_cosines=5e-5), ["layer_0/positive_cosines", "objective.sparsity"]),
        (named(layer_0__attention_entropy=0.99), ["layer_0/attention_entropy is 0.99", "above 0.98"]),
        (named(rank__rankme_centred=4.0), ["rank/rankme_centred is 4, below 5", "20", "learning_rate"]),
        (named(rank__constant_share=0.95), ["rank/constant_share is 0.95, above 0.9", "learning_rate"]),
        (named(rank__feature_std=0.01), ["rank/feature_std"]),
    ],
)
def test_each_warning_comes_alone_with_its_number_and_first_step(changed, names):
    (warning,) = judge(healthy(**changed), None, JEPA).warnings
    assert all(name in warning for name in [*names, "since step 200"])


def test_a_constant_vector_alone_is_no_collapse():
    """Of a run that came back and was the best of several: RankMe as published fell to a quarter, centred to half."""
    dip = named(rank__rankme=5.0, rank__rankme_centred=10.2, rank__constant_share=0.77)
    assert judge(healthy(**dip), None, JEPA).warnings == []


def test_a_run_of_an_older_version_is_still_read():
    new = "rank/rankme_centred", "rank/constant_share"
    rows = [{key: value for key, value in row.items() if key not in new} for row in healthy()]
    found = judge(rows, None, JEPA)
    text = page.render(Run("old", rows, JEPA), [], found, None, trained="", settings={}, commands=[])
    assert found.warnings == [] and "RankMe</text>" in text and "Constant vector" not in text


def test_numbers_of_all_rows_are_checked_too():
    (dropped,) = judge(healthy(context_dropped=30.0), None, JEPA).warnings
    assert "masking.context_tokens keeps 12 patches" in dropped and "drops 18" in dropped
    (mute,) = judge([look(100, captions=0.0)], None, JEPA).warnings
    assert "caption" in mute


def test_a_number_that_has_recovered_is_not_warned_about():
    rows = [look(100, **named(text_worth__shuffled=0.0)), look(200)]
    assert judge(rows, None, JEPA).warnings == []
    rows.append(look(300, **named(text_worth__shuffled=0.0)))
    assert verdict.since(rows, jepa_reporting.SHUFFLED, lambda x: x < 0.01) == 300


def test_what_a_run_does_not_have_is_not_warned_about():
    rows = healthy(**named(text_worth__shuffled=0.0, layer_0__positive_cosines=0.0))
    without = jepa_reporting.diagnostics(reads_captions=False, rectified=True)
    found = judge(rows, None, without)
    assert found.warnings == [] and "model.conditioner=none" in answer(found).text
    rows = healthy(**named(layer_0__positive_cosines=0.0))
    other_regulariser = jepa_reporting.diagnostics(reads_captions=True, rectified=False)
    assert judge(rows, None, other_regulariser).warnings == []


@pytest.mark.parametrize(
    ("gains", "text", "good"),
    [
        ({"linear_fast/a": (0.05, 0.02, 0.08), "knn/a": (0.01, -0.02, 0.03)}, "Yes: 1 of 2 scores", True),
        ({"linear_fast/a": (0.01, -0.01, 0.02)}, "No: 0 of 1 scores", False),
        ({"linear_fast/a": (0.1, 0.05, 0.2), "knn/a": (-0.1, -0.2, -0.05)}, "In part: 1 of 2 scores", None),
        ({"knn_10/a": (0.1, 0.05, 0.2)}, "Unknown", None),  # not among the headline scores
        ({}, "Unknown", None),
    ],
)
def test_learning_is_judged_by_scores_over_initialisation(gains, text, good):
    scores = {"rank/rankme": 3.0}
    for name, values in gains.items():
        scores |= dict(zip((f"gain_over_init/{name}{end}" for end in ("", "_low", "_high")), values))
    learned = judge(healthy(), scores, JEPA).answers[verdict.LEARNED]
    assert learned.text.startswith(text) and learned.good is good


@pytest.mark.parametrize(
    "key", ["text_worth/shuffled", "rank/rankme_centred", "rank/feature_std", "layer_0/positive_cosines", "captions"]
)
def test_a_number_that_is_not_finite_is_not_taken_for_a_good_one(key):
    found = judge(healthy(**{key: float("nan")}), None, JEPA)
    assert any(key in warning and "not been finite since step 200" in warning for warning in found.warnings)
    assert answer(found).text.startswith("Unknown") == (key == "text_worth/shuffled")


def test_a_run_without_held_out_numbers_is_not_called_healthy():
    rows = [look(0), {"step": 50, "captions": 4.0}]
    (warning,) = judge(rows, None, JEPA).warnings
    assert "held-out" in warning


@pytest.mark.parametrize(("step", "stale"), [(300, True), (400, False), (None, False)])
def test_scores_of_an_earlier_step_are_warned_about(step, stale):
    found = judge(healthy(), {}, JEPA, scores_step=step)
    assert ["300" in text and "400" in text for text in found.warnings] == [True] * stale


# Any method


def other_method() -> Diagnostics:
    distance = Diagnostic(
        "heldout/distance", "distance", "Distance", "Of views.", higher_is_better=False, threshold=2.0, warning="Far"
    )
    question = Question("Are views near?", lambda rows: Answer(f"At {rows[-1]['heldout/distance']}.", good=True))
    return Diagnostics((Section("Views", "Two crops.", (distance,)),), (question,))


def other_rows(distance: float) -> list[dict]:
    numbers = {"loss": 1.0, "loss/views": 0.5, "rank/rankme": 9.0, "rank/feature_std": 0.3, "heldout/other": 1.0}
    return [{"step": step, **numbers, "heldout/distance": distance} for step in (0, 100)]


def test_a_method_brings_its_own_numbers_question_and_warnings():
    assert judge(other_rows(1.0), None, other_method()).warnings == []
    run = Run("run", other_rows(3.0), other_method())
    found = judge(run.rows, None, run.diagnostics)
    assert [text.startswith("Far since step 100 (heldout/distance is 3, above 2)") for text in found.warnings] == [True]
    text = page.render(run, [], found, None, trained="", settings={}, commands=[])
    for shown in (
        "Are views near?",
        "At 3.0.",
        "Two crops.",
        "Of views.",
        "warning above 2",
        "RankMe",
        "Training loss",
    ):
        assert shown in text
    assert "caption" not in text.lower().replace("figcaption", "") and "regulariser" not in text


def test_numbers_that_no_method_describes_have_charts_too():
    sections = {section.title: section for section in page.sections_of([Run("run", other_rows(1.0), Diagnostics())])}
    assert "loss/views" in [one.name for one in sections["Loss and schedules"].diagnostics]
    assert [one.name for one in sections["Held-out numbers"].diagnostics] == ["heldout/other", "heldout/distance"]


# Reading a workdir


def test_a_killed_run_is_read_to_its_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [row["step"] for row in read_run(tmp_path, JEPA).rows] == [1, 2]
    path.write_text('{"st')
    with pytest.raises(UserError, match=str(path)):
        read_run(tmp_path, JEPA)


@pytest.mark.parametrize("line", [b"\0" * 80, b"", b"[1]", b'{"loss": 1.0}', b"\xff"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    for read in (lambda: read_run(tmp_path, JEPA), lambda: cut_back(path, 2)):
        with pytest.raises(UserError, match=f"{path}, line 2 "):
            read()
    assert path.read_bytes().count(b"\n") == 3


def test_the_last_evaluated_step_is_read_and_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1000}\n')
    assert read_run(tmp_path, JEPA).scores_step is None
    for step in (900, 1000):  # as texts, 900 is the greater
        folder = tmp_path / "eval" / str(step)
        folder.mkdir(parents=True)
        scores = {"knn/a": step, "knn/a_low": 0.0, "knn/a_high": 1.0}
        (folder / "results.json").write_text(json.dumps({"about": {"data": "scenes"}, "scores": scores}))
    found = read_run(tmp_path, JEPA)
    assert found.scores["knn/a"] == 1000 and found.scores_step == 1000
    answers = judge(healthy(), found.scores, JEPA)
    text = page.render(found, [], answers, None, trained="", settings={}, commands=[])
    assert "Step 1000, on scenes." in text


# Pictures


@pytest.mark.parametrize("shuffled", [False, True])
def test_inputs_are_rows_of_the_first_batch_even_where_captions_are_shuffled(shuffled):
    config = scenes_standard.get_config()
    config.captions.shuffled = shuffled
    experiment = build_experiment(config)
    whole = experiment.batches(16)[0]
    for row, shown in enumerate(looks_jepa.inputs(experiment).figures, start=1):
        expected = [experiment.reader.decode(ids) for ids in whole.caption_words[row][whole.caption_valid[row]]]
        assert shown.notes == expected
    config.captions.shuffled, config.model.conditioner = False, "none"
    assert not any(shown.notes for shown in looks_jepa.inputs(build_experiment(config)).figures)


def test_the_picture_of_masks_dims_and_outlines_what_the_masks_say():
    image = np.full((8, 8, 3), 200, np.uint8)
    masks = pack(np.array([0, 1]), [np.array([10, 11, 14, 15]), np.array([3])], 4, 4, dropped=0)
    picture = pictures.drawn_masks(image, masks, GRID)
    cell = len(picture) // 4
    middle = picture[cell // 2 :: cell, cell // 2 :: cell]
    bright = (middle == 200).all(axis=-1)
    assert set(zip(*np.nonzero(bright))) == {(0, 0), (0, 1)}
    assert (middle[~bright] == int(200 * pictures.UNSEEN)).all()
    rows, columns = np.nonzero((picture == pictures.BLOCK_COLOURS[0]).all(axis=-1))
    assert 2 * cell <= rows.min() < 2 * cell + 4 and 2 * cell <= columns.min() < 2 * cell + 4
    rows, columns = np.nonzero((picture == pictures.BLOCK_COLOURS[1]).all(axis=-1))
    assert rows.max() < cell and columns.min() >= 3 * cell


def test_colours_of_features_have_one_recipe_whatever_sign_or_shift():
    features = np.random.default_rng(0).normal(size=(3, 16, 10)) * 2.0 ** -np.arange(10)
    colours = pictures.pca_colours(features)
    assert colours.shape == (3, 16, 3) and colours.min() == 0 and colours.max() == 1
    np.testing.assert_allclose(pictures.pca_colours(features + 5.0), colours, atol=1e-9)
    many = pictures.pca_colours(np.random.default_rng(0).normal(size=(1, 1000, 5)))
    np.testing.assert_allclose([(many == 0).mean(), (many == 1).mean()], 0.02)  # what is beyond the percentiles
    # Red is the widest direction, here nearly the first channel, and grows with it.
    assert np.corrcoef(colours[..., 0].ravel(), features[..., 0].ravel())[0, 1] > 0.9


def test_heat_runs_from_low_to_high_and_leaves_grey_what_has_no_value():
    values = np.linspace(0, 1, 16)
    values[5] = np.nan
    picture = pictures.heat_on_image(np.full((8, 8, 3), 100, np.uint8), values, GRID, 0.0, 1.0)
    cell = len(picture) // 4
    middle = picture[cell // 2 :: cell, cell // 2 :: cell].reshape(16, 3).astype(int)
    assert (middle[5] == 100).all() and middle[15, 0] > middle[0, 0] and middle[0, 2] > middle[15, 2]


def test_the_word_shown_is_the_one_whose_map_varies_most():
    tokenizer = CaptionTokenizer(scenes_vocabulary_path(), 12)
    texts = ["a red star", "the blue ring is large"]
    ids, valid = tokenizer.encode(texts)
    cosines = np.zeros((16, *ids.shape))
    cosines[0, 1] = np.where(ids[1] == tokenizer.encode(["ring"])[0][0, 0], 1.0, 0.0)
    cosines[:, 0] = 0.9 * valid[0]  # high everywhere: says nothing of where
    word = looks_jepa.liveliest_word(tokenizer, texts, ids, cosines)
    assert (word.caption, word.text, tokenizer.decode(ids[1][word.pieces])) == (1, "ring", "ring")


def test_a_word_of_several_pieces_has_the_mean_of_their_maps():
    tokenizer = CaptionTokenizer(scenes_vocabulary_path(), 12)
    caption, word = "a zebra near a star", "zebra"
    ids, _ = tokenizer.encode([caption])
    where = looks_jepa.word_pieces(tokenizer, ids[0], word)
    assert where.sum() > 1
    cosines = np.random.default_rng(0).normal(size=(1, 16, 1, 12))
    reader = SimpleNamespace(cosines=lambda *_: cosines)
    found = looks_jepa.word_map(reader, tokenizer, np.zeros((8, 8, 3), np.uint8), caption, word)
    np.testing.assert_allclose(found, cosines[0, :, 0, where].mean(axis=0))
    with pytest.raises(UserError, match="dog"):
        looks_jepa.word_map(reader, tokenizer, np.zeros((8, 8, 3), np.uint8), caption, "dog")


def test_the_error_without_words_is_measured_without_words(monkeypatch):
    config = scenes_standard.get_config()
    experiment = build_experiment(config)
    patches = int(np.prod(experiment.method.predictor.grid))

    class Reader:
        def cosines(self, images, ids, valid):
            return np.zeros((len(images), patches, *ids.shape[1:]), np.float32)

        def errors(self, images, ids, valid, masks, draws):
            return np.full((len(images), patches), 2.0 if valid.any() else 3.0)

    monkeypatch.setattr(looks_jepa, "word_reader", lambda run: Reader())
    seen = looks_jepa.word_figures(SimpleNamespace(config=config, experiment=experiment), experiment.held_out)
    assert len(seen) == looks_jepa.READ
    assert all("2.00 with captions, 3.00 without" in figure.caption for figure in seen)
    assert all((figure.pictures[2][1] != figure.pictures[3][1]).any() for figure in seen)


def test_spectra_fall_from_one(monkeypatch):
    directions = np.diag([1.0, 8.0, 2.0])
    features = np.concatenate([directions, -directions]) + 100.0  # whose constant vector is no direction
    monkeypatch.setattr(
        looks.FeatureStore, "read", lambda self, found, *rest: {name: {"pooled": features} for name in found}
    )
    found = looks.spectra({"trained": SimpleNamespace(width=3)}, range(100))
    np.testing.assert_allclose(found["trained"], [1.0, 0.25, 0.125])


# The page


def rendered(pics=None, scores=None, name="runs/a<b>") -> str:
    run = Run(name, healthy(), JEPA, scores)
    found = judge(run.rows, scores, JEPA)
    other = Run("other", healthy(**named(rank__rankme_centred=11.0)), JEPA)
    return page.render(run, [other], found, pics, trained="about", settings={"a.b": "<i>"}, commands=["x < y"])


def test_scores_during_training_have_their_charts():
    assert "Scores during training" not in rendered()
    rows = [row | {"eval/knn/a": 0.1 * row["step"], "eval/chance/a": 0.5, "eval/rank/lidar": 3.0} for row in healthy()]
    text = page.render(Run("run", rows, JEPA), [], judge(rows, None, JEPA), None, trained="", settings={}, commands=[])
    section = text[text.index("Scores during training") :]
    assert "Scores, as fractions" in section and "LiDAR" in section and "chance/a" not in section


def test_texts_are_escaped_and_nothing_is_loaded():
    bad = "<script>alert(1)</script>"
    dot = np.zeros((4, 4, 3), np.uint8)
    gallery = looks.Gallery(bad, bad, [looks.Figure([(bad, dot), ("plain", dot)], bad, [bad, "a star"])])
    text = rendered(page.Pictures([gallery], {"trained": np.ones(3)}))
    assert "<script" not in text and "<i>" not in text and "a<b>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6
    assert "a star" in text and text.count("data:image/png;base64,") == 2
    assert (
        not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text) and "@import" not in text and "url(http" not in text
    )


def test_the_page_shows_scores_chance_gains_and_what_is_missing():
    assert "Not evaluated yet" in rendered() and "There is no checkpoint yet" in rendered()
    scores = {"chance/a": 0.25, "chance/grounding/b": 0.125}
    for key, value in (("knn/a", 0.5), ("init/knn/a", 0.4), ("gain_over_init/knn/a", 0.1), ("grounding/b", 0.2)):
        scores |= {key: value, f"{key}_low": value - 0.01, f"{key}_high": value + 0.01}
    text = rendered(scores=scores)
    rows = [re.findall(r"<t[dh]>([^<]*)</t[dh]>", row) for row in text[text.index("<h2>Scores") :].split("<tr>")]
    assert rows[1][:4] == ["score", "runs/a&lt;b&gt;", "other", "chance"]
    assert rows[2] == ["knn/a", "50.0 [49.0, 51.0]", "-", "25.0", "40.0 [39.0, 41.0]", "-", "+10.0 [9.0, 11.0]"]
    assert rows[3][:4] == ["grounding/b", "20.0 [19.0, 21.0]", "-", "12.5"]
    assert "Yes: 1 of 1 scores" in text and "RankMe" in text and "x &lt; y" in text


def test_charts_scale_with_the_page_and_are_the_same_every_time():
    lines = {"one": ([0, 1], [1.0, 2.0]), "empty": ([], [])}
    svg = charts.line_chart("A & B", lines, levels={"low": 1.5})
    assert svg == charts.line_chart("A & B", lines, levels={"low": 1.5})
    head = svg[: svg.index(">")]
    assert head.startswith("<svg") and "viewBox" in head and "width=" not in head and "height=" not in head
    assert "A &amp; B" in svg and "low" in svg and "empty" not in svg
    assert charts.line_chart("none", {"empty": ([], [])}) == ""
    logarithmic = charts.line_chart("log", {"x": ([0, 1], [0.001, 1.0])}, log=True)
    assert "1e−02</text>" in logarithmic and "$" not in logarithmic
    assert "a$x^$b" in charts.line_chart("names", {"a$x^$b": ([0, 1], [1.0, 2.0]), "other": ([0], [1.0])})


def test_the_command_to_reproduce_names_what_is_not_the_default_and_only_that():
    config = base.get_config()
    config.train.steps, config.image.crop_scale = 7, (0.5, 1.0)
    command = reporting.commands(Path("runs/a"), config, [])[0]
    expected = "--config=configs/base.py '--config.image.crop_scale=(0.5, 1.0)' --config.train.steps=7 --workdir=runs/a"
    assert command == f"python -m launch.train {expected}"
    config.masking.ratio = (0.1, 0.2)  # without effect, and launch.train would refuse it
    assert reporting.commands(Path("runs/a"), config, [])[0] == command


# The commands


def launch(command: str, *arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", f"launch.{command}", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_masks_are_previewed_from_a_configuration_alone(tmp_path):
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), np.full((50, 80, 3), 255, np.uint8))
    output = tmp_path / "masks.png"
    where = f"--image={image},{image}", f"--output={output}"
    done = launch("show", "--what=masks", "--config=configs/scenes_standard.py", *where)
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(output))
    assert picture.shape == (2 * 192 + 6, 5 * 192 + 4 * 6, 3)  # the image and four draws, twice
    assert (picture[:192, :192] == 255).all() and (picture[:192, 198:390] < 70).all(axis=-1).any()


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("report", ["--workdir=nowhere"], "nowhere"),
        ("report", [], "--workdir"),
        ("show", ["--image=a", "--output=b"], "--what"),
        ("show", ["--what=words", "--image=a", "--output=b", "--encoder=c", "--caption=d"], "--word"),
        ("show", ["--what=masks", "--image=a", "--output=b"], "--config"),
        (
            "show",
            ["--what=masks", "--image=a", "--output=b", "--config=configs/scenes_standard.py"],
            "--image=a",
        ),
        ("show", ["--what=errors", "--image=a", "--output=b", "--encoder=c", "--caption=d"], "c "),
        ("show", ["--what=pca", "--image=a", "--output=no/b", "--encoder=c"], "--output=no/b"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(command, arguments, named):
    done = launch(command, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and named in done.stderr


FAILING = """
import launch.reporting
from launch.reporting import report_on
from tc_jepa.errors import UserError

def fail(workdir):
    raise ERROR

launch.reporting.write_report = fail
report_on("runs/a")
"""


def test_a_report_that_cannot_be_made_is_a_warning_and_loses_no_run():
    def end(error: str) -> subprocess.CompletedProcess:
        code = FAILING.replace("ERROR", error)
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    warned = end("UserError('no such thing')")
    assert warned.returncode == 0 and "no such thing" in warned.stderr
    assert end("ZeroDivisionError()").returncode == 1
