"""The T5 encoder compared with that of transformers, and the loading of published folders.

The fixtures are T5EncoderModels of transformers 5.23, T5 1.0 and 1.1, with random weights (also in norms and biases, so
that all of them matter) and a vocabulary of the ids in use. Their expected.npz holds captions of 40, 23, 7 and 1 words
and the last_hidden_state at these words.
"""

import dataclasses
import functools
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tc_jepa.convert import t5 as convert
from tc_jepa.errors import UserError
from tc_jepa.models.text import t5

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("t5_v1_0", "t5_v1_1")
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    """A copy of T5 1.0's folder, to change."""
    return Path(shutil.copytree(FIXTURES / "t5_v1_0", tmp_path / "t5"))


def captions(version):
    """ids int [2, 2, 40], validity bool [2, 2, 40] and what transformers computed, [valid words, E]."""
    expected = np.load(FIXTURES / version / "expected.npz")
    return expected["ids"].reshape(2, 2, 40), expected["mask"].reshape(2, 2, 40), expected["vectors"]


@functools.cache
def encoder(version, dtype):
    config, params = convert.load(FIXTURES / version)
    return jax.jit(t5.T5Encoder(config, dtype).apply), params


def read(version, ids, valid, dtype=jnp.float32, edit=lambda params: params):
    apply, params = encoder(version, dtype)
    return np.asarray(apply({"params": edit(params)}, ids, valid))


def change_config(folder, remove=(), **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}))


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)


def shard(folder, *parts):
    """Splits the weights into one file per dict of tensors, with the index that transformers writes."""
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for number, tensors in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def halves(folder):
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    return [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]


def assert_loads_as_the_fixture(folder):
    config, params = convert.load(folder)
    expected_config, expected = convert.load(FIXTURES / "t5_v1_0")
    assert config == expected_config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


# The encoder


def test_vectors_equal_those_of_transformers(version):
    ids, valid, expected = captions(version)
    vectors = read(version, ids, valid)
    assert vectors.shape == (2, 2, 40, 48) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[valid], expected, atol=1e-5)
    assert not vectors[~valid].any()


def test_the_length_of_the_padding_changes_nothing(version):
    ids, valid, _ = captions(version)
    words = valid[1, 0].sum()
    long = read(version, ids, valid)[1, 0]
    for length in (words, 10):
        short = read(version, ids[..., :length], valid[..., :length])[1, 0]
        # Other shapes are summed in another order: 2e-6 measured. Reading a single padded word moves vectors by 1.
        np.testing.assert_allclose(short[:words], long[:words], atol=5e-6)


def test_ids_below_padding_change_nothing(version):
    ids, valid, _ = captions(version)
    before = read(version, ids, valid)
    for other in (5, -1, 10**6):
        np.testing.assert_array_equal(read(version, np.where(valid, ids, other), valid), before)


def test_a_caption_does_not_depend_on_others(version):
    ids, valid, _ = captions(version)
    before = read(version, ids, valid)
    other, other_valid = ids.copy(), valid.copy()
    other[1], other_valid[0, 1] = 3, False
    after = read(version, other, other_valid)
    np.testing.assert_array_equal(after[0, 0], before[0, 0])
    assert np.abs(after[1] - before[1]).max() > 0.1


def test_a_caption_without_any_word_gives_zeros(version):
    ids, valid, _ = captions(version)
    valid = valid.copy()
    valid[0, 1] = False
    for dtype in (jnp.float32, jnp.bfloat16):
        vectors = read(version, ids, valid, dtype)
        assert np.isfinite(vectors).all() and not vectors[0, 1].any() and vectors[0, 0].any()


def test_buckets_grow_from_8_words_to_128():
    # T5's 32 buckets by hand: edges at 8 * 2 ** (i / 2), i.e. 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5.
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    expected = np.searchsorted(starts, np.arange(200), side="right") - 1
    buckets = t5.relative_buckets(200, 32, 128)
    np.testing.assert_array_equal(buckets[:, 0], expected)  # keys before the query
    np.testing.assert_array_equal(buckets[0, 1:], expected[1:] + 16)
    np.testing.assert_array_equal(np.diagonal(buckets, 5), [21] * 195)


def test_bfloat16_products_stay_close_to_float32(version):
    ids, valid, expected = captions(version)
    vectors = read(version, ids, valid, jnp.bfloat16)
    assert vectors.dtype == np.float32
    # Measured: 0.0057 for T5 1.0, 0.0094 for 1.1. Three layers, each a few roundings of 2 ** -9 = 0.002 of rms 1.
    error = np.sqrt(np.square(vectors[valid] - expected).mean())
    assert 1e-4 < error < 0.015


def test_the_residual_stream_is_float32_even_if_products_are_not(version):
    # With embeddings far larger than what the layers add, rounding the stream would be nearly all of the error.
    ids, valid, _ = captions(version)

    def enlarge(params):
        return params | {"words": params["words"] * 1000}

    exact, rough = (read(version, ids, valid, dtype, enlarge) for dtype in (jnp.float32, jnp.bfloat16))
    np.testing.assert_allclose(rough, exact, atol=2e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float64, jnp.int32])
def test_other_dtypes_are_refused(dtype):
    config, _ = convert.load(FIXTURES / "t5_v1_0")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        t5.T5Encoder(config, dtype)


# The folder


def test_parameters_are_what_the_encoder_declares(version):
    config, params = convert.load(FIXTURES / version)
    ids = jnp.zeros((1, 1, 4), jnp.int32)
    declared = jax.eval_shape(lambda: t5.T5Encoder(config).init(jax.random.key(0), ids, ids == 0))["params"]
    jax.tree.map(lambda array, like: np.testing.assert_equal(array.shape, like.shape), params, dict(declared))
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_shards_load_as_one_file(folder):
    shard(folder, *halves(folder))
    assert_loads_as_the_fixture(folder)


def test_a_decoder_in_the_file_is_not_read(folder):
    tensors = load_file(folder / WEIGHTS)
    decoder = {
        name.replace("encoder.", "decoder."): np.full_like(array, np.nan)
        for name, array in tensors.items()
        if name.startswith("encoder.")
    } | {"decoder.embed_tokens.weight": np.ones(3, np.int8), "lm_head.weight": np.ones(3, np.float64)}
    save_file(tensors | decoder, folder / WEIGHTS)
    assert_loads_as_the_fixture(folder)
    shard(folder, tensors, decoder)
    (folder / "model-00002-of-00002.safetensors").unlink()  # holds nothing but the decoder
    assert_loads_as_the_fixture(folder)


@pytest.mark.parametrize("names", [["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]])
def test_the_word_table_may_have_either_name_or_both(folder, names):
    change_weights(folder, lambda tensors: tensors | dict.fromkeys(names, tensors.pop("shared.weight")))
    assert_loads_as_the_fixture(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_become_float32(folder, dtype):
    change_weights(folder, lambda tensors: {name: array.astype(dtype) for name, array in tensors.items()})
    _, params = convert.load(folder)
    _, whole = convert.load(FIXTURES / "t5_v1_0")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype).astype(np.float32)), params, whole)


def test_configs_of_the_first_published_models_load(folder):
    change_config(folder, remove=["feed_forward_proj", "relative_attention_max_distance"])
    assert_loads_as_the_fixture(folder)


def without(name):
    """A function that removes a tensor."""
    return lambda folder: change_weights(folder, lambda tensors: {k: v for k, v in tensors.items() if k != name})


def having(name, array):
    """A function that adds or replaces a tensor."""
    return lambda folder: change_weights(folder, lambda tensors: tensors | {name: array})


def only_a_pickle(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model-00001-of-00002.bin")


def stale_index(folder):
    first, second = halves(folder)
    shard(folder, first, second)
    save_file({"other": np.zeros(1)}, folder / "model-00002-of-00002.safetensors")


def missing_shard(folder):
    shard(folder, *halves(folder))
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_without_map(folder):
    shard(folder, *halves(folder))
    (folder / INDEX).write_text("{}")


QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
OTHER_TABLE = "encoder.embed_tokens.weight"
REFUSALS = {  # what is wrong -> a function that makes a folder so, and what the message names
    "no folder": (shutil.rmtree, "folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config cut short": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "other model": (lambda folder: change_config(folder, model_type="bert"), "model_type is 'bert'"),
    "no model type": (lambda folder: change_config(folder, remove=["model_type"]), "model_type is None"),
    "other MLP": (lambda folder: change_config(folder, feed_forward_proj="gated-silu"), "feed_forward_proj"),
    "no width": (lambda folder: change_config(folder, remove=["d_model"]), "d_model is None"),
    "width in words": (lambda folder: change_config(folder, d_model="48"), "d_model is '48'"),
    "no epsilon": (lambda folder: change_config(folder, layer_norm_epsilon=0.0), "layer_norm_epsilon is 0.0"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "only a pickle": (only_a_pickle, "launch.convert --from=t5 --input="),
    "no safetensors": (lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs"), WEIGHTS),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors"),
    "stale index": (stale_index, "model-00002-of-00002.safetensors"),
    "index without map": (index_without_map, "weight_map"),
    "missing tensor": (without(QUERY), f"no {QUERY}"),
    "no word table": (without("shared.weight"), "no shared.weight"),
    "missing bias": (without(BIAS), f"no {BIAS}"),
    "unexpected tensor": (having("encoder.block.3.x", np.zeros(1, np.float32)), "unexpected encoder.block.3.x"),
    "own bias in layer 1": (
        having(BIAS.replace("0", "1", 1), np.zeros((32, 5), np.float32)),
        "unexpected encoder.block.1",
    ),
    "gated weights": (lambda folder: change_config(folder, feed_forward_proj="gated-gelu"), "wi_0.weight"),
    "wrong shape": (having(QUERY, np.zeros((48, 60), np.float32)), f"{QUERY} (48, 60), not (60, 48)"),
    "integers": (having(QUERY, np.zeros((60, 48), np.int8)), f"{QUERY} is stored as I8"),
    "two word tables": (having(OTHER_TABLE, np.zeros((69, 48), np.float32)), f"shared.weight and {OTHER_TABLE}"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_unusable_folder_is_refused(folder, case):
    spoil, named = REFUSALS[case]
    spoil(folder)
    with pytest.raises(UserError) as refusal:
        convert.load(folder)
    message = str(refusal.value)
    assert named in message and str(folder) in message and "\n" not in message


def test_the_vocabulary_is_that_of_the_folder(folder):
    with pytest.raises(UserError, match="spiece.model"):
        convert.vocabulary(folder)
    (folder / "spiece.model").write_bytes(b"pieces")
    assert Path(convert.vocabulary(folder)).read_bytes() == b"pieces"
    with pytest.raises(UserError, match="nowhere"):
        convert.vocabulary(folder / "nowhere")


def test_a_vocabulary_larger_than_the_word_table_is_refused():
    config, _ = convert.load(FIXTURES / "t5_v1_0")
    published = dataclasses.replace(config, vocabulary_size=32128)
    convert.check_vocabulary(published, 32000, "spiece.model")
    convert.check_vocabulary(published, 32128, "spiece.model")
    with pytest.raises(UserError, match="other.model"):
        convert.check_vocabulary(published, 32129, "other.model")
