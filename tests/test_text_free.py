"""A run without a conditioner (I-JEPA): no vocabulary, no text encoder, and the training that it always was."""

import shutil

import numpy as np
from PIL import Image
import pytest

import tc_jepa
from tc_jepa.config import jepa, methods, models
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.prepare.trees import prepare_imagefolder
from tc_jepa.errors import UserError
from tc_jepa.experiment.run import open_run
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.report import looks_jepa
from tc_jepa.storage.checkpoint import saved_steps
from tests import tiny
from tests.test_train import final_state, lines, mite, tiny_config  # noqa: F401 - mite is a fixture


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A prepared folder of images without captions or a vocabulary."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(20):
        path = folder / "tree" / ("val" if number % 5 == 0 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    prepare_imagefolder(str(folder / "tree"), str(folder / "data"))
    return str(folder / "data")


def config_of(images, **changes):
    return tiny_config(**{"model.conditioner": "none", "data.path": images} | changes)


@pytest.fixture(scope="module")
def run(mite, images, tmp_path_factory):  # noqa: F811
    workdir = tmp_path_factory.mktemp("run")
    tiny.train(config_of(images), workdir)
    return workdir


@pytest.fixture(scope="module")
def old_run(mite, images, tmp_path_factory):  # noqa: F811
    """The same run by a version in which every run had a vocabulary and a text encoder."""
    workdir = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jepa, "caption_reader", lambda *_: CaptionTokenizer(scenes_vocabulary_path(), 10))
        tiny.train(config_of(images), workdir)
    return workdir


def test_it_trains_on_images_alone_without_text_in_its_state(run):
    assert saved_steps(run) == [3, 6]
    assert not any("text" in name for name in final_state(run))
    last = lines(run)[-1]
    assert last["captions"] == last["loss/sparsity"] == last["loss/consistency"] == 0.0
    assert "text_worth/shuffled" not in last


def test_the_text_encoder_that_was_idle_changed_nothing(run, old_run):
    found, expected = final_state(run), final_state(old_run)
    assert any("text" in name for name in expected)
    for name, value in found.items():  # the biases of keys have no gradient but rounding, and stay near 1e-7
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=5e-7, err_msg=name)
    for line, old in zip(lines(run), lines(old_run), strict=True):
        assert line == pytest.approx({name: old[name] for name in line}, rel=1e-5, abs=1e-7)


def test_what_looks_at_a_run_finds_no_text(run, images):
    config = config_of(images)
    opened = open_run(run, config)
    assert opened.experiment.reader is None and opened.params.keys() == {"encoder", "predictor"}
    assert opened.at_initialisation().params.keys() == {"encoder", "predictor"}
    assert not any(row.notes for row in looks_jepa.inputs(opened.experiment).figures)
    with pytest.raises(UserError, match="model.conditioner=none"):
        tc_jepa.load_text_encoder(run)


def test_an_old_run_is_evaluated_and_its_resume_refused(old_run, images, tmp_path):
    config = config_of(images)
    assert open_run(old_run, config).params.keys() == {"encoder", "predictor"}
    assert pretrained.open_encoder(old_run).params
    shutil.copytree(old_run, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    with pytest.raises(UserError, match="text.* --workdir") as refused:
        tiny.train(config, tmp_path)
    assert "\n" not in str(refused.value) and saved_steps(tmp_path) == [3]


@pytest.mark.parametrize("text", ["t5", "stored"])
def test_no_text_encoder_is_loaded(images, text):
    given = {"t5": {"model.text_weights": "nowhere"}, "stored": {"captions.vectors": "nowhere"}}[text]
    config = config_of(images, **{"model.text": text}, **given)
    assert methods.word_folders(config) == []
    assert models.text_encoder(config, jepa.caption_reader(config)) == (None, {})


def test_a_run_with_words_begins_from_one_without(run, images, tmp_path):
    warm = tiny_config(**{"train.init_from": str(run), "train.steps": 1, "train.eval_every": 10})
    tiny.train(warm, tmp_path / "words")
    tiny.train(config_of(images, **{"train.init_from": str(tmp_path / "words"), "train.steps": 1}), tmp_path / "none")
    assert saved_steps(tmp_path / "none") == [1]
