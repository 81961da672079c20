"""load_encoder and load_text_encoder give the same features for every kind of path, and refuse bad input."""

import json
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
import tc_jepa
from tc_jepa.config import data as config_data
from tc_jepa.config import models
from tc_jepa.convert import folder, hf_ijepa
from tc_jepa.convert.weights import abstract_params, EncoderWeights
from tc_jepa.errors import UserError
from tc_jepa.models import layers, vit
from tc_jepa.models.positions import resized_positions, sincos_positions
from tc_jepa.models.text.embedding import EmbeddingText
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.state import TrainState
from tc_jepa.storage.checkpoint import Checkpoints, CONFIG_FILE, restore_trained
from tests import tiny

FIXTURES = Path(__file__).parent / "fixtures"
HF = FIXTURES / "hf_ijepa_tiny"
SIZE = vit.Size(width=16, depth=1, heads=2, hidden=32)
WORDS, TEXT_WIDTH = 6, 12


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "nano", SIZE)
        yield


def settings(**changes):
    config = base.get_config()
    small = {
        "image.size": 16,
        "model.encoder": "nano",
        "model.patch_size": 4,
        "captions.words": WORDS,
        "model.text_width": TEXT_WIDTH,
    }
    config.update_from_flattened_dict(small | changes)
    return config


def save_run(path, config, steps=(2, 5), networks=("encoder", "predictor", "text")):
    """A workdir whose steps hold random parameters of these networks and of the target; returns them by step."""
    path.mkdir(exist_ok=True)
    (path / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
    vocabulary = config_data.tokenizer(config).vocabulary_size
    rng = np.random.default_rng(0)

    def draw(shapes):
        return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)

    encoder = abstract_params(models.encoder(config), 16)
    norm = {name: np.zeros(TEXT_WIDTH) for name in ("scale", "bias")}
    text = {"words": np.zeros((vocabulary, TEXT_WIDTH)), "positions": np.zeros((WORDS, TEXT_WIDTH)), "norm": norm}
    predictor = {"proj": {"kernel": np.zeros((2, 3))}}
    checkpoints, states = Checkpoints(path, keep=9), {}
    for step in steps:
        shapes = {"encoder": encoder, "predictor": predictor, "text": text}
        params = draw({name: shapes[name] for name in networks})
        averaged = config.target_encoder.kind == "ema" and config.method.name == "jepa"
        target = draw(encoder) if averaged else {}
        states[step] = TrainState(jnp.array(step), *jax.tree.map(jnp.asarray, (params, target)), ())
        checkpoints.save(states[step], config.to_dict())
    checkpoints.close()
    return states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "ema"
    return path, save_run(path, settings())


@pytest.fixture(scope="module")
def encoder(run):
    return tc_jepa.load_encoder(run[0])


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def direct(params, batch):
    """Features of a run's encoder on its own grid."""
    module = vit.VisionTransformer(SIZE, 4)
    return np.asarray(jax.jit(module.apply)({"params": params}, layers.normalise_images(batch)))


def close(one, other, atol=1e-5):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=atol)


def refused(named: str, function, *arguments, **keywords) -> str:
    """The message of the UserError that a call ends in: one line that contains `named`."""
    with pytest.raises(UserError) as error:
        function(*arguments, **keywords)
    message = str(error.value)
    assert named in message and "\n" not in message
    return message


# load_encoder


def test_a_run_gives_its_target_encoder_at_the_newest_step_or_another(run, encoder):
    path, states = run
    batch = images(2, 16, 16)
    assert (encoder.image_size, encoder.patch_size, encoder.width) == (16, 4, 16)
    features = encoder(batch)
    assert features.shape == (2, 16, 16) and features.dtype == np.float32
    close(features, direct(states[5].extra, batch))  # in float32, though the run's products are bfloat16
    close(tc_jepa.load_encoder(path, step=2)(batch), direct(states[2].extra, batch))
    assert np.abs(features - direct(states[5].params["encoder"], batch)).max() > 0.1
    assert np.abs(features - direct(states[2].extra, batch)).max() > 1e-3


def test_a_run_without_an_average_gives_its_encoder(tmp_path):
    pixels = {"target_encoder.kind": "pixels", "objective.prediction": "mse"}
    states = save_run(tmp_path / "run", settings(**pixels), steps=(1,))
    batch = images(2, 16, 16)
    close(tc_jepa.load_encoder(tmp_path / "run")(batch), direct(states[1].params["encoder"], batch))


def test_run_folder_and_hugging_face_give_the_same_features(run, encoder, tmp_path):
    weights = pretrained.open_encoder(run[0], predictor=True)
    close(weights.predictor["proj"]["kernel"], run[1][5].params["predictor"]["proj"]["kernel"])
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    folder.save(weights, tmp_path / "ours", "here")
    hf_ijepa.save(weights, tmp_path / "theirs")
    for size in ((16, 16), (24, 8)):
        batch = images(2, *size)
        expected = encoder(batch)
        for name in ("ours", "theirs"):
            close(tc_jepa.load_encoder(tmp_path / name)(batch), expected)
    again = pretrained.open_encoder(tmp_path / "ours", predictor=True)
    jax.tree.map(np.testing.assert_array_equal, again.predictor, weights.predictor)
    assert pretrained.open_encoder(tmp_path / "theirs", predictor=True).predictor is None


def test_a_published_folder_gives_the_published_features():
    encoder = tc_jepa.load_encoder(HF)
    with np.load(HF / "expected.npz") as expected:
        close(encoder(expected["images"], normalise=False), expected["last_hidden_state"])
        close(
            encoder.pooled(expected["images"], normalise=False), expected["last_hidden_state"].mean(axis=1), atol=1e-5
        )
    assert (encoder.image_size, encoder.patch_size, encoder.width) == (56, 14, 48)


def test_integers_fractions_and_normalised_images_give_the_same_features(encoder):
    batch = images(2, 16, 16)
    expected = encoder(batch)
    for fractions in (batch / 255, (batch / 255).astype(np.float32), jnp.asarray(batch / 255)):
        close(encoder(fractions), expected)
    close(encoder((batch / 255).astype(np.float16)), expected, atol=0.02)
    normalised = (batch / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    close(encoder(normalised, normalise=False), expected)
    assert np.abs(encoder(batch / 255, normalise=False) - expected).max() > 0.1


def test_one_image_gives_the_features_of_a_batch_of_one(encoder):
    batch = images(3, 16, 16)
    assert encoder(batch[1]).shape == (16, 16) and encoder.pooled(batch[1]).shape == (16,)
    close(encoder(batch[1]), encoder(batch)[1])
    close(encoder.pooled(batch), encoder(batch).mean(axis=1))
    close(encoder.pooled(batch[1]), encoder.pooled(batch)[1])


@pytest.mark.parametrize("size", ((32, 32), (8, 20)))
def test_positions_are_interpolated_for_images_of_another_size(run, encoder, size):
    rows, columns = size[0] // 4, size[1] // 4
    batch = images(1, *size)
    features = encoder(batch)
    assert features.shape == (1, rows * columns, 16)
    positions = resized_positions(sincos_positions((4, 4), 16), (4, 4), (rows, columns))
    given = vit.VisionTransformer(SIZE, 4, trained_grid=(rows, columns), stored_positions=True)
    params = run[1][5].extra | {"positions": positions}
    close(features, jax.jit(given.apply)({"params": params}, layers.normalise_images(batch)), atol=1e-4)


def test_it_can_be_called_inside_a_jitted_function(encoder):
    batch = images(2, 16, 16)
    close(jax.jit(lambda x: encoder(x / 255.0))(batch.astype(np.float32)), encoder(batch))


def precisions(function, *arguments) -> list[str]:
    """The precision of every matrix product of a function, "" for a default one, which GPU and TPU round."""
    program = jax.jit(function).lower(*arguments).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    return [(re.findall(r"precision = \[(.*?)\]", line) or [""])[0] for line in products]


def test_every_matrix_product_is_of_the_highest_precision(encoder):
    assert set(precisions(lambda x: encoder(x), images(2, 16, 16))) == {"HIGHEST, HIGHEST"}
    text = tc_jepa.load_text_encoder(FIXTURES / "t5_v1_1")
    ids = np.ones((2, 1, 5), np.int32)
    assert set(precisions(text._encode, text._params, ids, ids > 0)) == {"HIGHEST, HIGHEST"}


@pytest.mark.parametrize(
    ("batch", "arguments", "named"),
    [
        (np.zeros((2, 16, 16, 3), int), {}, "int64"),
        (np.zeros((2, 16, 16, 3), bool), {}, "bool"),
        (np.zeros((2, 16, 16, 3), np.uint8), {"normalise": False}, "normalise=False"),
        (np.zeros((2, 3, 16, 16), np.uint8), {}, "(2, 3, 16, 16)"),
        (np.zeros((16, 16), np.uint8), {}, "(16, 16)"),
        (np.zeros((0, 16, 16, 3), np.uint8), {}, "(0, 16, 16, 3)"),
        (np.zeros((2, 16, 18, 3), np.uint8), {}, "16 x 18 px"),
        (np.full((16, 16, 3), 200.0), {}, "200 to 200"),
        (np.full((16, 16, 3), -0.5), {}, "-0.5"),
        (np.full((16, 16, 3), np.nan), {}, "nan"),
    ],
)
def test_images_that_cannot_be_read_are_refused(encoder, batch, arguments, named):
    for call in (encoder, encoder.pooled):
        refused(named, call, batch, **arguments)


def write_config(path, values):
    path.mkdir(exist_ok=True)
    (path / CONFIG_FILE).write_text(json.dumps(values))
    return path


def test_paths_that_hold_no_encoder_are_refused(run, tmp_path):
    file = tmp_path / "x.pth.tar"
    file.write_text("x")
    other = {"train": {}, "model": {"encoder": "nano"}, "target_encoder": {}}
    cases = [
        (tmp_path / "nowhere", {}, "nowhere"),
        (file, {}, "launch.convert"),
        (tmp_path, {}, CONFIG_FILE),
        (write_config(tmp_path / "a", {"a": 1}), {}, CONFIG_FILE),
        (write_config(tmp_path / "b", {"model_type": "vit"}), {}, "model_type"),
        (write_config(tmp_path / "c", {"format": "zip"}), {}, "format"),
        (write_config(tmp_path / "d", other), {}, "another version"),
        (write_config(tmp_path / "e", settings().to_dict()), {}, "no checkpoint"),
        (run[0], {"step": 3}, "step 3"),
        (HF, {"step": 3}, "step 3"),
    ]
    for path, arguments, named in cases:
        message = refused(named, tc_jepa.load_encoder, path, **arguments)
        assert str(path) in message


def test_a_run_without_a_predictor_has_an_encoder_alone(tmp_path):
    save_run(tmp_path / "run", settings(**{"method.name": "lejepa"}), steps=(1,), networks=("encoder",))
    assert pretrained.open_encoder(tmp_path / "run", predictor=True).predictor is None
    refused("lejepa", tc_jepa.load_text_encoder, tmp_path / "run")


def test_a_converted_encoder_can_teach(tmp_path):
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), abstract_params(vit.VisionTransformer(SIZE, 4), 16))
    (tmp_path / "ours").mkdir()
    teacher = vit.VisionTransformer(SIZE, 4, trained_grid=(4, 4))
    folder.save(EncoderWeights(teacher, params, 16), tmp_path / "ours", "here")
    path = str(tmp_path / "ours")
    module, found = pretrained.teacher(settings(**{"image.size": 32}), path)
    assert module.trained_grid == (4, 4) and module.linear.dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, found, params)
    with pytest.raises(UserError) as refused:
        pretrained.teacher(settings(**{"model.patch_size": 8}), path)
    assert refused.value.about == "target_encoder.teacher"


def test_the_readme_s_example_runs(run, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    names = {}
    monkeypatch.chdir(run[0].parent)
    exec(code.replace("runs/photos", run[0].name), names)
    assert names["encoder"](names["images"]).shape == (2, 6, 16)
    np.testing.assert_array_equal(
        names["text"](names["ids"], names["mask"]), names["text"](["a dog runs", "two boats"])
    )


# load_text_encoder


def test_a_run_reads_words_as_it_learned_them(run):
    path, states = run
    text = tc_jepa.load_text_encoder(path)
    assert (text.words, text.width) == (WORDS, TEXT_WIDTH)
    captions = ["a red circle", "two squares above a blue triangle, one larger", ""]
    vectors = text(captions)
    assert vectors.shape == (3, WORDS, TEXT_WIDTH) and vectors.dtype == np.float32
    ids, valid = text.tokens(captions)
    assert valid.sum(axis=1).tolist()[1:] == [WORDS, 0] and not vectors[2].any()
    module = EmbeddingText(config_data.tokenizer(settings()).vocabulary_size, TEXT_WIDTH, WORDS)
    close(vectors, jax.jit(module.apply)({"params": states[5].params["text"]}, ids[:, None], valid[:, None])[:, 0])
    close(text(ids, valid), vectors)
    close(text(captions[1]), vectors[1])
    close(text(ids.reshape(3, 1, 1, WORDS), valid.reshape(3, 1, 1, WORDS).astype(int))[:, 0, 0], vectors)
    assert np.abs(tc_jepa.load_text_encoder(path, step=2)(captions) - vectors).max() > 1e-3
    np.testing.assert_array_equal(text(np.where(valid, ids, -5), valid), vectors)  # ids under padding do not matter


def test_a_t5_gives_the_published_vectors():
    text = tc_jepa.load_text_encoder(FIXTURES / "t5_v1_1")
    with np.load(FIXTURES / "t5_v1_1" / "expected.npz") as expected:
        ids, mask = expected["ids"], expected["mask"]
        close(np.asarray(text(ids, mask))[mask.astype(bool)], expected["vectors"])
        assert text(ids, mask).dtype == np.float32
        rounded = tc_jepa.load_text_encoder(FIXTURES / "t5_v1_1", dtype=jnp.bfloat16)(ids, mask)
        assert rounded.dtype == jnp.bfloat16 and not np.array_equal(rounded, text(ids, mask))
    refused("spiece.model", text, "a dog")


def test_a_t5_and_a_run_with_it_read_strings(tmp_path):
    folder = tiny.t5_folder(tmp_path / "t5")
    text = tc_jepa.load_text_encoder(folder)
    assert text("a red circle").shape == (32, 8)
    run = {"model.text": "t5", "model.text_weights": str(folder)}
    of_run = tc_jepa.load_text_encoder(write_config(tmp_path / "run", settings(**run).to_dict()))
    close(of_run("a red circle"), text("a red circle")[:WORDS], atol=1e-4)


def test_text_that_cannot_be_read_is_refused(run):
    text = tc_jepa.load_text_encoder(run[0])
    ids, valid = text.tokens("a red circle")
    for arguments, named in [
        (([],), "text"),
        ((ids,), "text"),
        ((ids.astype(float), valid), "float64"),
        ((ids, valid[:-1]), "(5,)"),
        ((ids[:4], valid[:4]), "4 ids"),
        ((np.where(valid, 10**6, 0), valid), "1000000"),
        ((np.where(valid, -1, 0), valid), "-1"),
    ]:
        refused(named, text, *arguments)


def test_ids_need_no_vocabulary(run, tmp_path):
    ids, valid = tc_jepa.load_text_encoder(run[0]).tokens("a red circle")
    save_run(tmp_path, settings(), steps=(1,))
    write_config(tmp_path, settings(**{"captions.vocabulary": str(tmp_path / "small.model")}).to_dict())
    text = tc_jepa.load_text_encoder(tmp_path)
    assert text(ids, valid).shape == (WORDS, TEXT_WIDTH)
    refused("small.model", text, "a red circle")


def test_paths_that_hold_no_text_encoder_are_refused(run, tmp_path):
    t5_run = {"model.text": "t5", "model.text_weights": str(FIXTURES / "t5_v1_1")}
    for path, arguments, named in [
        (tmp_path, {}, CONFIG_FILE),
        (run[0], {"dtype": jnp.float16}, "float16"),
        (run[0], {"step": 4}, "step 4"),
        (FIXTURES / "t5_v1_1", {"step": 4}, "step 4"),
        (write_config(tmp_path / "t5", settings(**t5_run).to_dict()), {"step": 4}, "no checkpoint"),
        (write_config(tmp_path / "a", {"a": 1}), {}, CONFIG_FILE),
        (write_config(tmp_path / "none", settings(**{"model.conditioner": "none"}).to_dict()), {}, "model.conditioner"),
        (write_config(tmp_path / "stored", settings(**{"model.text": "stored"}).to_dict()), {}, "model.text"),
        (HF, {}, "model_type"),
    ]:
        refused(named, tc_jepa.load_text_encoder, path, **arguments)


def test_a_network_that_a_checkpoint_lacks_is_named(run):
    refused("conditioner", restore_trained, run[0], None, "conditioner")
