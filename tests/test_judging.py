"""What an evaluation adds to its probes: features that survive a kill, ranks, few labels, another encoder beside it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.data.sources import LabelSet
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation import features, results
from tc_jepa.evaluation.encoder import EncoderOutput, FrozenEncoder
from tc_jepa.evaluation.examples import choose, Views
from tc_jepa.evaluation.features import FeatureStore
from tc_jepa.evaluation.labels import confusion
from tc_jepa.evaluation.runner import evaluate
from tc_jepa.evaluation.scores import Truth
from tc_jepa.evaluation.task import Confusion, Findings, LabelMaps
from tc_jepa.evaluation.tasks import attentive, knn, linear, lowshot, rank
from tc_jepa.models import layers
from tc_jepa.report import evaluated
from tests.test_evaluation import pixels, Written

SIZES = {"train_examples": 60, "test_examples": 40, "dense_examples": 1}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class Counting(Written):
    """Counts how often an image is read; breaks at the read that `patience` counts down to."""

    reads, patience = 0, 10**9

    def __getitem__(self, index):
        if Counting.reads == Counting.patience:
            raise KeyboardInterrupt
        Counting.reads += 1
        return super().__getitem__(index)


def test_a_killed_evaluation_goes_on_from_its_features_and_scores_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_SHARD", {"pooled": 16, "patches": 16})
    monkeypatch.setattr("tc_jepa.evaluation.encoder.READ_THREADS", 0)
    monkeypatch.setattr(Counting, "reads", 0)
    train, test = Counting(60, 0), Counting(40, 1)

    def judge(folder):
        store = FeatureStore(folder, {"data": "here"})
        return evaluate(pixels(), {"again": pixels()}, train, test, ["knn", "rank"], **SIZES, store=store).scores

    whole = judge(None)
    monkeypatch.setattr(Counting, "reads", 0)
    monkeypatch.setattr(Counting, "patience", 50)
    with pytest.raises(KeyboardInterrupt):
        judge(tmp_path / "features")
    kept = len(list((tmp_path / "features").rglob("*.npz")))
    assert kept == 6  # three shards of 16 images, of two encoders that share what is read
    monkeypatch.setattr(Counting, "reads", 0)
    monkeypatch.setattr(Counting, "patience", 10**9)
    assert judge(tmp_path / "features") == whole
    first = Counting.reads
    monkeypatch.setattr(Counting, "reads", 0)
    assert judge(tmp_path / "features") == whole
    assert Counting.reads == 0 < first
    with pytest.raises(UserError, match="features .* data "):
        FeatureStore(tmp_path / "features", {"data": "there"})
    FeatureStore(tmp_path / "features", {"data": "here"}).close()
    assert not (tmp_path / "features").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.npz").touch()
    with pytest.raises(UserError, match="mine"):
        FeatureStore(tmp_path / "mine", {"data": "here"})


def test_classes_that_differ_between_splits_are_refused():
    others = Written(
        40, 1, tasks={"row": LabelSet("single", ("a", "b", "c", "x")), "cells": LabelSet("multi", tuple("efg"))}
    )
    with pytest.raises(UserError, match="classes"):
        evaluate(pixels(), {}, Written(60, 0), others, ["knn"], **SIZES)


def test_lidar_counts_what_tells_images_apart_against_their_views(rng):
    """3 of 6 directions differ between images, the others only between views of one."""
    images, noise = rng.normal(size=(200, 1, 6)), rng.normal(size=(200, 10, 6))
    mask = np.array([1, 1, 1, 0, 0, 0])
    assert rank.lidar(100 * mask * images + noise) == pytest.approx(3, abs=0.1)
    scales = np.array([1, 1, 1, 100, 100, 100])  # a rank of variance would see the views alone
    assert rank.lidar(100 * mask * images + scales * noise) == pytest.approx(3, abs=0.1)
    assert rank.rankme((100 * mask * images + scales * noise).reshape(-1, 6)) > 4
    assert rank.lidar(7 * (100 * mask * images + noise)) == pytest.approx(
        rank.lidar(100 * mask * images + noise), rel=1e-6
    )


def test_features_that_are_all_the_same_have_rank_one():
    same = np.ones((20, 4, 6), np.float32)
    assert rank.lidar(same) == rank.participation_ratio(same[:, 0]) == rank.rankme(0 * same[:, 0]) == 1.0


def test_participation_is_the_number_of_equal_variances(rng):
    features = rng.normal(size=(20_000, 5)) * np.array([1, 1, 1, 1, 0]) + 10
    assert rank.participation_ratio(features) == pytest.approx(4, rel=0.01)


def test_a_shift_of_all_features_moves_no_deviation_but_the_share_of_the_constant_vector(rng):
    features = rng.normal(size=(300, 4)) * [3, 2, 1, 0]
    spectrum = rank.deviations(features + 50)
    np.testing.assert_allclose(spectrum, np.linalg.svd(features - features.mean(0))[1] / 300**0.5, atol=1e-4)
    energy = np.square(features + 50).sum(axis=1).mean()
    share = rank.constant_share((features + 50).mean(axis=0), energy)
    assert share == pytest.approx(1 - np.square(spectrum).sum() / energy)
    assert rank.constant_share(np.zeros(4), 0.0) == 1.0


def test_positions_alone_are_no_rank(rng):
    positions = rng.normal(size=(1, 16, 8))
    contents = rng.normal(size=(300, 16, 1)) * np.eye(8)[0]
    centred = rank.position_centred(10 * positions + contents)
    assert centred.shape == (300 * 16, 8)
    assert rank.participation_ratio(centred) == pytest.approx(1, abs=0.01)


def test_views_are_the_same_whatever_else_is_read():
    views = Views(Written(20, 0), [3, 5], 4)
    assert len(views) == 8
    later = views[6].image
    np.testing.assert_array_equal(Views(Written(20, 0), [3, 5], 4)[6].image, later)
    assert later.shape == (16, 16, 3)
    assert len({views[i].image.tobytes() for i in range(8)}) == 8


def test_few_labels_are_drawn_from_every_class():
    classes = np.eye(10, dtype=bool)[np.repeat(np.arange(10), [200, 91, *[10] * 8])]
    rows = lowshot.draw(Truth("single", classes), 0.1, np.random.default_rng(0))
    assert classes[rows].sum(axis=0).tolist() == [20, 9, *[1] * 8]
    assert len(set(rows)) == len(rows)
    few = lowshot.draw(Truth("single", classes), 0.02, np.random.default_rng(0))
    assert classes[few].sum(axis=0).tolist() == [4, 2, *[1] * 8]  # never none
    other = lowshot.draw(Truth("single", classes), 0.1, np.random.default_rng(1))
    assert set(other) != set(rows)
    assert len(lowshot.draw(Truth("multi", classes), 0.1, np.random.default_rng(0))) == 37
    assert len(lowshot.draw(Truth("single", classes[:8]), 0.01, np.random.default_rng(0))) == lowshot.FEWEST


def test_few_labels_have_a_spread_and_written_ones_are_found(monkeypatch):
    monkeypatch.setattr(lowshot, "DRAWS", 2)
    sizes = SIZES | {"train_examples": 800, "test_examples": 200}
    found = evaluate(pixels(), {"again": pixels()}, Written(800, 0), Written(200, 1), ["lowshot"], **sizes).scores
    assert found["lowshot_10/row"] > 0.95
    assert found["lowshot_1/row"] < found["lowshot_10/row"]
    assert found["again/lowshot_1/cells"] == found["lowshot_1/cells"]
    assert found["spread/lowshot_1/cells"] > 0


def coarse(blocks: bool) -> FrozenEncoder:
    """Pixels of patches of 4 px and where they are, pooled to the patches' means; `blocks`: four layers of that."""

    def forward(params, images):
        patches_BxNxD = layers.patchify(layers.normalise_images(images), 4)
        means = patches_BxNxD.reshape(len(images), 16, 16, 3).mean(axis=2).reshape(len(images), -1)
        places = jnp.broadcast_to(4 * jnp.eye(16), (len(images), 16, 16))
        patches_BxNxD = jnp.concatenate([patches_BxNxD, places], axis=-1)
        return EncoderOutput(patches_BxNxD, means, jnp.tile(means, 4) if blocks else None)

    mesh = sharding.make_mesh(data=-1, fsdp=1)
    return FrozenEncoder(forward, {}, width=48, image_size=16, patch_size=4, batch_size=16, mesh=mesh)


def test_trained_heads_tell_what_they_chose_among(monkeypatch):
    monkeypatch.setattr(linear, "FEWEST_STEPS", 100)
    monkeypatch.setattr(attentive, "FEWEST_STEPS", 100)
    sizes = {"train_examples": 200, "test_examples": 100, "dense_examples": 200}
    train, test = Written(200, 0), Written(100, 1)
    found = evaluate(coarse(True), {"flat": coarse(False)}, train, test, ["linear", "attentive"], **sizes)
    for name, count in (("linear", 24), ("attentive", 6)):
        assert min(found.scores[f"{prefix}{name}/row"] for prefix in ("", "flat/")) > 0.95
        assert len(found.sweeps[f"{name}/cells"]) == count
        assert found.chosen[f"{name}/cells"].count("rate") == 1
    assert found.confusions["row"].probe == "linear"
    views = evaluate(coarse(False), {}, train, test, ["linear"], **sizes, views=2)
    assert len(views.sweeps["linear/row"]) == 12  # without blocks, half of the heads
    assert views.scores["linear/row"] != found.scores["flat/linear/row"]  # crops are no whole images
    assert views.scores["linear/row"] > 0.4 > found.scores["chance/row"]


def test_views_reach_the_bank_by_view_and_image(monkeypatch):
    seen = {}

    def watched(views, plain, truths, tested):
        seen.update(views)
        return {}

    monkeypatch.setattr(linear, "class_scores", watched)
    train = Written(200, 0)
    evaluate(coarse(False), {}, train, Written(100, 1), ["linear"], **SIZES, views=2)
    crops = Views(train, choose(200, 60), 2)
    expected = coarse(False)(crops[2 * 5 + 1].image[None]).pooled[0]  # the second view of the sixth image
    np.testing.assert_allclose(seen["last"][1, 5], expected, atol=1e-6)
    assert seen["last"].shape == (2, 60, 48)


def test_too_few_labels_are_no_score():
    """1 % of 800 labels is one of each of eight classes: nothing is left to choose the strength by."""
    classes = np.eye(8, dtype=bool)[np.arange(800) % 8]
    features = np.random.default_rng(0).normal(size=(800, 4)).astype(np.float32)
    assert lowshot.class_scores(features, Truth("single", classes), features[:5], 0.01) == []
    assert len(lowshot.class_scores(features, Truth("single", classes), features[:5], 0.1)) == lowshot.DRAWS
    rare = np.zeros((800, 2), bool)
    rare[:3] = True
    assert lowshot.class_scores(features, Truth("multi", rare), features[:5], 0.01) == []


def test_a_confusion_has_the_true_class_in_its_rows():
    truth = Truth("single", np.eye(3, dtype=bool)[[0, 0, 1, 2]])
    counts = confusion(truth, np.eye(3)[[0, 1, 1, 0]])
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.fixture(scope="module")
def findings():
    return evaluate(
        pixels(), {"compared": pixels(patch_size=8)}, Written(60, 0), Written(40, 1), ["knn", "rank"], **SIZES
    )


def test_the_report_shows_the_compared_encoder_and_what_is_gained_over_it(findings):
    text = results.render(findings, Written(1, 0).tasks, {"data": "here"})
    assert "| compared" in text and "over compared" in text
    assert "+0.0 [0.0, 0.0]" in text  # pooled pixels are the same for any patch
    assert "init" not in text and "context" not in text
    assert "## knn_10" in text and "LiDAR, pooled" in text and "Wall time in seconds: features " in text


def test_pictures_are_written_of_what_was_found(findings, tmp_path):
    paths = evaluated.draw(findings, Written(60, 0), Written(40, 1), tmp_path)
    assert [path.name for path in paths] == ["neighbours.png", "confusion_row.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert findings.confusions["row"].probe == "knn" and findings.confusions["row"].counts.sum() == 40
    results.write_results(tmp_path, findings, {}, "report")
    assert (tmp_path / "confusion_row.csv").read_text().startswith("true class (knn),a,b,c,d\na,")


def test_the_neighbours_that_are_shown_are_those_that_voted(monkeypatch):
    searched = []
    monkeypatch.setattr(
        knn, "neighbours", lambda *x, search=knn.neighbours: searched.append(search(*x)) or searched[-1]
    )
    train, test, sizes = Written(70, 0), Written(50, 1), SIZES | {"train_examples": 60}
    found = evaluate(pixels(), {"compared": pixels(size=8)}, train, test, ["knn"], **sizes)
    shown, nearest = found.neighbours
    assert len(searched) == 2  # one search for each encoder
    np.testing.assert_array_equal(shown, choose(50, 40)[:8])
    images = [np.stack([part[int(i)].image for i in rows]) for part, rows in ((train, range(70)), (test, shown))]
    pooled = [np.asarray(pixels()(x).pooled) for x in images]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in pooled]
    held = choose(70, 60)
    expected = held[np.argsort(-(unit[1] @ unit[0][held].T), axis=1)[:, :5]]
    np.testing.assert_array_equal(nearest, expected)


def test_a_sweep_is_a_curve_and_a_list(tmp_path):
    sweep = {("decay 0", 0.1): 0.5, ("decay 0", 0.01): 0.4, ("decay 1", 0.1): 0.3}
    found = Findings(sweeps={"linear/row": sweep}, chosen={"linear/row": "rate 0.1"})
    (path,) = evaluated.draw(found, Written(1, 0), Written(1, 0), tmp_path)
    assert path.name == "sweep_linear_row.svg" and "decay 1" in path.read_text()
    results.write_results(tmp_path, found, {}, "report")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["sweeps"]["linear/row"][1] == {"setting": "decay 0", "rate": 0.01, "score": 0.4}


def test_names_may_hold_slashes_and_ends_of_keys(tmp_path):
    scores = {"segmentation/mask": 0.5, "segmentation/mask_low": 0.4, "segmentation/mask_high": 0.6}
    scores |= {f"compared/{key}": value for key, value in scores.items()}
    scores |= {f"gain_over_{key}": value for key, value in scores.items() if key.startswith("compared/")}
    scores |= {"chance/segmentation/mask": 0.1, "segmentation/mask/tree_low": 0.3}
    found = Findings(scores=scores | {"compared/segmentation/mask/tree_low": 0.1})
    text = results.render(found, {}, {})
    assert "| tree_low | 30.0      | 10.0       |" in text
    found.confusions["a/b"] = Confusion("knn", ("x", "y"), np.eye(2, dtype=int))
    results.write_results(tmp_path, found, {}, text)
    assert (tmp_path / "confusion_a_b.csv").exists()
    assert [path.name for path in evaluated.draw(found, Written(1, 0), Written(1, 0), tmp_path)] == [
        "confusion_a_b.png"
    ]


ALWAYS = {"results.json", "results.md"}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_all(findings, folder) -> set[str]:
    """As launch.evaluate does: pictures between two writings of the results. The names of what there is then."""
    results.write_results(folder, findings, {}, "report")
    evaluated.draw(findings, Written(60, 0), Written(40, 1), folder)
    results.write_results(folder, findings, {}, "report with pictures")
    return names(folder)


def test_results_name_what_lies_beside_them_and_the_next_ones_take_its_place(findings, tmp_path):
    assert write_all(findings, tmp_path) == {"confusion_row.csv", "confusion_row.png", "neighbours.png"} | ALWAYS
    assert set(results.read_results(tmp_path / "results.json")["files"]) | ALWAYS == names(tmp_path)
    for name in ("confusion_mine.csv", "thesis.txt"):
        (tmp_path / name).write_text("mine")
    blank = np.zeros((1, 16, 16), np.uint8)
    other = Findings(sweeps={"linear/row": {("decay 0", 0.1): 0.5}})
    other.label_maps["mask"] = LabelMaps(np.array([0]), blank, blank, ("x",))
    own = {"segmentation_mask.png", "sweep_linear_row.svg"}
    assert write_all(other, tmp_path) == own | {"confusion_mine.csv", "thesis.txt"} | ALWAYS
    assert set(results.read_results(tmp_path / "results.json")["files"]) == own


def test_a_kill_leaves_no_files_of_two_evaluations(findings, tmp_path, monkeypatch):
    write_all(findings, tmp_path)
    other = Findings(scores={"knn/row": 0.5}, confusions=findings.confusions, neighbours=findings.neighbours)
    results.write_results(tmp_path, other, {}, "killed before its pictures")
    assert names(tmp_path) == {"confusion_row.csv"} | ALWAYS

    def killed(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "replace_text", killed)
    with pytest.raises(KeyboardInterrupt):
        results.write_results(tmp_path, findings, {}, "report")
    assert not names(tmp_path)


@pytest.mark.parametrize("files", [["../outside.txt", "{root}/outside.txt", "deep/file.txt", "deep", 3, []], "deep", 3])
def test_results_that_name_what_is_not_theirs_remove_nothing_elsewhere(tmp_path, files):
    output = tmp_path / "output"
    (output / "deep").mkdir(parents=True)
    for path in (tmp_path / "outside.txt", output / "deep" / "file.txt"):
        path.write_text("mine")
    text = json.dumps({"about": {}, "scores": {}, "files": files}).replace("{root}", str(tmp_path))
    (output / "results.json").write_text(text)
    results.write_results(output, Findings(), {}, "report")
    assert (tmp_path / "outside.txt").read_text() == (output / "deep" / "file.txt").read_text() == "mine"
    assert results.read_results(output / "results.json")["files"] == []


@pytest.mark.parametrize(
    "text",
    ['{"knn/shape": 0.5}', "[]", "knn: 0.5"],
)
def test_results_of_before_are_told_apart_and_replaced(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json"):
        results.read_results(tmp_path / "results.json")
    results.write_results(tmp_path, Findings(scores={"a": 1.0}), {}, "report")
    assert results.read_results(tmp_path / "results.json")["scores"] == {"a": 1.0}
