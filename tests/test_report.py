"""The report answers its two questions rightly, warns when it should and only then, and shows what is there."""

import json
from pathlib import Path
import re
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from configs import base, quickstart
from launch import reporting
from tc_jepa.config import models
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.masking.masks import pack
from tc_jepa.report import charts, looks, page, pictures, verdict

ROOT = Path(__file__).parent.parent
GRID = (4, 4)
SETTINGS = {"reads_captions": True, "rectified": True}


def look(step: int, **changed) -> dict:
    """A line of metrics.jsonl of a healthy run, with a look at held-out images."""
    values = {
        "rank/rankme": 20.0,
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


def test_a_healthy_run_has_no_warning():
    found = verdict.judge(healthy(), None, **SETTINGS)
    assert found.warnings == []
    assert found.words.startswith(
        "They are read: other images' captions change the held-out prediction loss by +8.0 % at step 400."
    )
    assert "only a run without them can tell" in found.words
    assert found.learned.startswith("Unknown: this run has not been evaluated")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (named(text_worth__shuffled=0.004), "Captions have had no effect since step 200"),
        (named(layer_0__positive_cosines=5e-5), "dead in layer 0 of the predictor since step 200"),
        (
            named(layer_0__attention_entropy=0.99),
            "Attention in layer 0 of the predictor reads all words alike since step 200",
        ),
        (named(rank__rankme=9.0), "Features use few directions since step 200: rank/rankme is 9, and was 20"),
        (named(rank__feature_std=0.01), "Features hardly differ between images since step 200"),
        ({"context_dropped": 30.0}, "keeps 12 patches of an image and drops 18"),
    ],
)
def test_each_warning_comes_alone_and_says_since_when(changed, said):
    (warning,) = verdict.judge(healthy(**changed), None, **SETTINGS).warnings
    assert said in warning


def test_what_has_mended_is_no_warning():
    rows = [look(100, **named(text_worth__shuffled=0.0)), look(200)]
    assert verdict.judge(rows, None, **SETTINGS).warnings == []
    assert (
        verdict.since([*rows, look(300, **named(text_worth__shuffled=0.0))], verdict.SHUFFLED, lambda x: x < 0.01)
        == 300
    )


def test_a_run_without_words_or_without_their_regulariser_is_not_blamed_for_it():
    bare = [
        {k: v for k, v in row.items() if not k.startswith("layer")}
        for row in healthy(**named(text_worth__shuffled=0.0))
    ]
    found = verdict.judge(bare, None, reads_captions=False, rectified=True)
    assert found.warnings == [] and "reads none" in found.words
    rows = healthy(**named(layer_0__positive_cosines=0.0))
    assert verdict.judge(rows, None, reads_captions=True, rectified=False).warnings == []
    mute = verdict.judge([look(100, captions=0.0)], None, **SETTINGS).warnings
    assert mute == ["No image of any logged step had a caption."]


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        ({"linear_fast/a": (0.05, 0.02, 0.08), "knn/a": (0.01, -0.02, 0.03)}, "Yes: 1 of 2 scores"),
        ({"linear_fast/a": (0.01, -0.01, 0.02)}, "No: 0 of 1 scores"),
        ({"linear_fast/a": (0.1, 0.05, 0.2), "knn/a": (-0.1, -0.2, -0.05)}, "In part: 1 of 2 scores"),
        ({}, "Unknown: no score"),
    ],
)
def test_learning_is_judged_by_scores_over_initialisation(gains, answer):
    scores = {"rank/rankme": 3.0}
    for name, values in gains.items():
        scores |= dict(zip((f"gain_over_init/{name}{end}" for end in ("", "_low", "_high")), values))
    assert verdict.judge(healthy(), scores, **SETTINGS).learned.startswith(answer)


@pytest.mark.parametrize(
    "key", ["text_worth/shuffled", "rank/rankme", "rank/feature_std", "layer_0/positive_cosines", "captions"]
)
def test_a_number_that_is_none_is_not_taken_for_a_good_one(key):
    found = verdict.judge(healthy(**{key: float("nan")}), None, **SETTINGS)
    assert f"{key} has not been finite since step 200." in found.warnings
    assert found.words.startswith("Unknown" if key == "text_worth/shuffled" else "They are read")


def test_a_run_that_never_looked_is_not_called_fine():
    rows = [look(0), {"step": 50, "captions": 4.0}]
    (warning,) = verdict.judge(rows, None, **SETTINGS).warnings
    assert "not looked at held-out images" in warning


@pytest.mark.parametrize(("step", "stale"), [(300, True), (400, False), (None, False)])
def test_scores_of_an_earlier_step_are_told(step, stale):
    found = verdict.judge(healthy(), {}, **SETTINGS, scores_step=step)
    assert found.warnings == ["The scores are of step 300, and the run is at step 400: evaluate it again."] * stale


# Reading a workdir


def test_a_killed_run_is_read_to_its_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [row["step"] for row in reporting.read_run(tmp_path).rows] == [1, 2]
    path.write_text('{"st')
    with pytest.raises(UserError, match="has logged nothing yet"):
        reporting.read_run(tmp_path)


def test_the_last_evaluated_step_is_read_and_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1000}\n')
    assert reporting.read_run(tmp_path).scores_step is None
    for step in (900, 1000):  # 900 is the greater text
        folder = tmp_path / "eval" / str(step)
        folder.mkdir(parents=True)
        scores = {"knn/a": step, "knn/a_low": 0.0, "knn/a_high": 1.0}
        (folder / "results.json").write_text(json.dumps({"about": {"data": "scenes"}, "scores": scores}))
    found = reporting.read_run(tmp_path)
    assert found.scores["knn/a"] == 1000 and found.scores_step == 1000
    answers = verdict.judge(healthy(), found.scores, **SETTINGS)
    text = page.render(found, [], answers, None, about="", settings={}, commands=[])
    assert "Step 1000, on scenes. Frozen features" in text


# Pictures


@pytest.mark.parametrize("shuffled", [False, True])
def test_inputs_are_rows_of_the_first_batch_even_where_captions_are_shuffled(shuffled):
    config = quickstart.get_config()
    config.captions.shuffled = shuffled
    experiment = build_experiment(config)
    whole = experiment.batches(16)[0]
    for row, shown in enumerate(looks.inputs(experiment), start=1):
        expected = [experiment.reader.decode(ids) for ids in whole.caption_words[row][whole.caption_valid[row]]]
        assert shown.captions == expected


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
    number, word, where = looks._liveliest(tokenizer, texts, ids, cosines)
    assert (number, word, tokenizer.decode(ids[1][where])) == (1, "ring", "ring")


def test_a_word_of_several_pieces_has_the_mean_of_their_maps():
    tokenizer = CaptionTokenizer(scenes_vocabulary_path(), 12)
    caption, word = "a zebra near a star", "zebra"
    ids, _ = tokenizer.encode([caption])
    where = looks.word_pieces(tokenizer, ids[0], word)
    assert where.sum() > 1
    cosines = np.random.default_rng(0).normal(size=(1, 16, 1, 12))
    reader = SimpleNamespace(cosines=lambda *_: cosines)
    found = looks.word_map(reader, tokenizer, np.zeros((8, 8, 3), np.uint8), caption, word)
    np.testing.assert_allclose(found, cosines[0, :, 0, where].mean(axis=0))
    with pytest.raises(UserError, match="'dog' is not a word of the caption"):
        looks.word_map(reader, tokenizer, np.zeros((8, 8, 3), np.uint8), caption, "dog")


def test_the_error_without_words_is_measured_without_words(monkeypatch):
    config = quickstart.get_config()
    patches = int(np.prod(models.grid(config)))

    class Reader:
        def cosines(self, images, ids, valid):
            return np.zeros((len(images), patches, *ids.shape[1:]), np.float32)

        def errors(self, images, ids, valid, masks, draws):
            return np.full((len(images), patches), 2.0 if valid.any() else 3.0)

    experiment = build_experiment(config)
    monkeypatch.setattr(looks, "word_reader", lambda run: Reader())
    seen = looks.word_looks(SimpleNamespace(config=config, experiment=experiment), experiment.held_out)
    assert [look.note for look in seen] == ["error 2.00 with words, 3.00 without"] * looks.READ
    assert all((look.with_words != look.without_words).any() for look in seen)


def test_spectra_fall_from_one(monkeypatch):
    features = np.diag([1.0, 8.0, 2.0])
    monkeypatch.setattr(
        looks.FeatureStore, "read", lambda self, found, *rest: {name: {"pooled": features} for name in found}
    )
    found = looks.spectra({"trained": SimpleNamespace(width=3)}, range(100))
    np.testing.assert_allclose(found["trained"], [1.0, 0.25, 0.125])


# The page


def rendered(pics=None, scores=None, name="runs/a<b>") -> str:
    run = page.Run(name, healthy(), scores)
    found = verdict.judge(run.rows, scores, **SETTINGS)
    other = page.Run("other", healthy(**named(rank__rankme=11.0)), None)
    return page.render(run, [other], found, pics, about="about", settings={"a.b": "<i>"}, commands=["x < y"])


def test_scores_on_the_way_have_their_charts():
    assert "Scores on the way" not in rendered()
    rows = [row | {"eval/knn/a": 0.1 * row["step"], "eval/chance/a": 0.5, "eval/rank/lidar": 3.0} for row in healthy()]
    run = page.Run("run", rows, None)
    found = verdict.judge(rows, None, **SETTINGS)
    text = page.render(run, [], found, None, about="about", settings={}, commands=[])
    section = text[text.index("Scores on the way") :]
    assert "Scores, as fractions" in section and "LiDAR" in section and "chance/a" not in section


def test_texts_are_escaped_and_nothing_is_loaded():
    bad = "<script>alert(1)</script>"
    dot = np.zeros((4, 4, 3), np.uint8)
    words = looks.WordLook(dot, bad, bad, dot, dot, dot, bad)
    inputs = [looks.Input(dot, [bad, "a star"], bad), looks.Input(dot, [], "none"), looks.Input(dot, None, "stored")]
    text = rendered(page.Pictures(7, inputs, {"trained": np.ones(3)}, [[dot, dot]], [words], ""))
    assert "<script" not in text and "<i>" not in text and "a<b>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "no caption" in text and "stored word vectors" in text and "a star" in text
    assert (
        not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text) and "@import" not in text and "url(http" not in text
    )


def test_the_page_shows_scores_gains_and_what_is_missing():
    assert "Not evaluated yet" in rendered() and "There is no checkpoint yet" in rendered()
    scores = {}
    for key, value in (("knn/a", 0.5), ("init/knn/a", 0.4), ("gain_over_init/knn/a", 0.1), ("grounding/b", 0.2)):
        scores |= {key: value, f"{key}_low": value - 0.01, f"{key}_high": value + 0.01}
    text = rendered(scores=scores)
    row = text[text.index("<td>knn/a</td>") :].partition("</tr>")[0]
    assert re.findall(r"<td>([^<]*)</td>", row) == [
        "knn/a",
        "50.0 [49.0, 51.0]",
        "-",
        "40.0 [39.0, 41.0]",
        "-",
        "+10.0 [9.0, 11.0]",
    ]
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


def test_names_of_compared_runs_are_escaped_in_the_scores():
    scores = {"knn/a": 0.5, "knn/a_low": 0.4, "knn/a_high": 0.6}
    assert "<th>runs/a&lt;b&gt;</th>" in rendered(scores=scores)


def test_the_command_to_reproduce_names_what_is_not_the_default_and_only_that():
    config = base.get_config()
    config.train.steps, config.image.crop_scale = 7, (0.5, 1.0)
    command = reporting.commands(Path("runs/a"), config, [])[0]
    expected = "--config=configs/base.py '--config.image.crop_scale=(0.5, 1.0)' --config.train.steps=7 --workdir=runs/a"
    assert command == f"python -m launch.train {expected}"


# The commands


def launch(command: str, *arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", f"launch.{command}", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_masks_are_previewed_from_a_configuration_alone(tmp_path):
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), np.full((50, 80, 3), 255, np.uint8))
    output = tmp_path / "masks.png"
    where = f"--image={image},{image}", f"--output={output}"
    done = launch("show", "--what=masks", "--config=configs/quickstart.py", *where)
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(output))
    assert picture.shape == (2 * 192 + 6, 5 * 192 + 4 * 6, 3)  # the image and four draws, twice
    assert (picture[:192, :192] == 255).all() and (picture[:192, 198:390] < 70).all(axis=-1).any()


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("report", ["--workdir=nowhere"], "nowhere is no workdir"),
        ("report", [], "give --workdir=DIR"),
        ("show", ["--image=a", "--output=b"], "give --what"),
        ("show", ["--what=words", "--image=a", "--output=b", "--encoder=c", "--caption=d"], "give --word"),
        ("show", ["--what=masks", "--image=a", "--output=b"], "either --config=FILE or --encoder=WORKDIR"),
        (
            "show",
            ["--what=masks", "--image=a", "--output=b", "--config=configs/quickstart.py"],
            "--image=a: there is no such file",
        ),
        ("show", ["--what=errors", "--image=a", "--output=b", "--encoder=c", "--caption=d"], "c is no folder"),
        ("show", ["--what=pca", "--image=a", "--output=no/b", "--encoder=c"], "--output=no/b: give a PNG file"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(command, arguments, said):
    done = launch(command, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


FAILING = """
import launch.reporting
from launch.train import report_on
from tc_jepa.errors import UserError

def fail(workdir):
    raise ERROR

launch.reporting.write_report = fail
report_on("runs/a")
"""


def test_a_report_that_cannot_be_made_is_told_and_loses_no_run():
    def end(error: str) -> subprocess.CompletedProcess:
        code = FAILING.replace("ERROR", error)
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    told = end("UserError('no such thing')")
    assert told.returncode == 0 and "there is no report: no such thing" in told.stderr
    assert end("ZeroDivisionError()").returncode == 1
