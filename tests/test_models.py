"""Encoder and predictor: no leakage of hidden pixels, no influence of padding, every valid word in every layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.methods.method import init_encoder
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners.base import Words
from tc_jepa.models.conditioners.word_cross_attention import CrossAttentionLayer
from tc_jepa.models.positions import sincos_positions
from tests import tiny


@pytest.fixture(scope="module")
def method():
    return tiny.jepa()


@pytest.fixture(scope="module")
def params(method):
    return tiny.lively(tiny.state(method).params)


@functools.partial(jax.jit, static_argnums=0)
def predict(method, params, batch, vectors=None):
    """Predicted features and readings; `vectors` replaces the text encoder's."""
    images = layers.normalise_images(batch.images)
    context = method.encoder.apply({"params": params["encoder"]}, images, batch.context_indices, batch.context_valid)
    if vectors is None:
        vectors = method.text.apply({"params": params["text"]}, batch.caption_words, batch.word_valid)
    return method.predictor.apply(
        {"params": params["predictor"]},
        context,
        batch.context_indices,
        batch.context_valid,
        batch.target_indices,
        batch.target_valid,
        Words(vectors, batch.word_valid, batch.caption_valid),
    )


def test_context_features_do_not_depend_on_any_hidden_pixel(method, params):
    batch = tiny.batch(2)
    images = jnp.asarray(batch.images, jnp.float32) / 255

    def features(images):
        x = method.encoder.apply({"params": params["encoder"]}, images, batch.context_indices, batch.context_valid)
        return jnp.where(batch.context_valid[..., None], x, 0.0).std(axis=-1).sum()

    moved = layers.patchify(jnp.abs(jax.grad(lambda x: features(x) * 1e3)(images)), tiny.PATCH).sum(axis=-1)
    for image in range(2):
        visible = set(batch.context_indices[image][batch.context_valid[image]])
        for patch in range(16):
            assert (moved[image, patch] > 0) == (patch in visible)


def test_encoder_with_all_indices_equals_encoder_without(method, params):
    images = layers.normalise_images(tiny.batch(2).images)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(16), (2, 1)), axis=1)
    whole = method.encoder.apply({"params": params["encoder"]}, images)
    shuffled = method.encoder.apply({"params": params["encoder"]}, images, order)
    np.testing.assert_allclose(shuffled, layers.gather_tokens(whole, order), atol=2e-5)


def test_padded_tokens_change_no_prediction(method, params):
    batch = tiny.batch(3)
    assert not batch.context_valid.all() and not batch.target_valid.all()
    before, _ = predict(method, params, batch)
    other = batch._replace(
        context_indices=np.where(batch.context_valid, batch.context_indices, 7),
        target_indices=np.where(batch.target_valid, batch.target_indices, 9),
    )
    after, _ = predict(method, params, other)
    valid = batch.target_valid
    np.testing.assert_allclose(before[valid], after[valid], atol=1e-5)


def test_target_blocks_do_not_see_each_other(method, params):
    batch = tiny.batch(2)
    before, _ = predict(method, params, batch)
    moved = batch.target_indices.copy()
    moved[:, 1] = (moved[:, 1] + 1) % 16
    after, _ = predict(method, params, batch._replace(target_indices=moved))
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert np.abs(before[:, 1] - after[:, 1]).max() > 1e-3


def test_padded_words_and_missing_captions_influence_nothing(method, params):
    batch = tiny.batch(4)
    real = batch.word_valid & batch.caption_valid[..., None]
    assert not batch.word_valid.all() and not batch.caption_valid.all()
    vectors = np.random.default_rng(0).normal(size=(*batch.caption_words.shape, 12)).astype(np.float32)
    before, readings = predict(method, params, batch, vectors)
    after, _ = predict(method, params, batch, np.where(real[..., None], vectors, 50.0))
    np.testing.assert_allclose(before, after, atol=1e-5)
    for reading in readings:
        attention = np.asarray(reading.attention_BxMxLxCxS).sum(axis=(1, 2))
        assert not attention[~real].any() and attention[real].all()


def test_every_valid_word_influences_every_layer(method, params):
    batch = tiny.batch(3)
    real = batch.word_valid & batch.caption_valid[..., None]
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(*batch.caption_words.shape, 12)), jnp.float32)
    for layer in range(tiny.DEPTH):

        def attended(vectors, layer=layer):
            _, readings = predict(method, params, batch, vectors)
            return jnp.square(readings[layer].attention_BxMxLxCxS).sum()

        moved = jnp.abs(jax.grad(attended)(vectors)).sum(axis=-1)
        assert (np.asarray(moved)[real] > 0).all()
    words = jnp.abs(jax.grad(lambda v: jnp.square(predict(method, params, batch, v)[0]).std())(vectors)).sum(axis=-1)
    assert (np.asarray(words)[~real] == 0).all() and (np.asarray(words)[real] > 0).mean() > 0.9


def test_null_caption_adds_nothing_but_passes_mlp_and_norm(method, params):
    batch = tiny.batch(2)
    assert not batch.caption_valid[1].any()
    words = Words(jnp.ones((2, 3, 5, 12)), batch.word_valid, batch.caption_valid)
    np.testing.assert_array_equal(words.fused_BxC[1], [True, False, False])
    layer = CrossAttentionLayer(layers.Linear())
    x = jax.random.normal(jax.random.key(0), (2, 1, 3, 16))
    weights = params["predictor"]["conditioner"]["layers_0"]
    fused, _ = layer.apply({"params": weights}, x, words)

    def by_hand(bound, x):
        mlp, norm = layers.Mlp(16, 16, layers.Linear(), layers.Linear()), layers.layer_norm("norm_output")
        return norm.apply({"params": weights["norm_output"]}, x + mlp.apply({"params": weights["mlp"]}, x))

    np.testing.assert_allclose(fused[1], by_hand(layer, x)[1], atol=1e-5)


def test_cosines_are_cosines_of_query_and_key(method, params):
    batch = tiny.batch(2)
    weights = params["predictor"]["conditioner"]["layers_1"]
    x = jax.random.normal(jax.random.key(0), (2, 2, 6, 16))
    vectors = jax.random.normal(jax.random.key(1), (2, 3, 5, 12))
    words = Words(vectors, batch.word_valid, batch.caption_valid)
    _, reading = CrossAttentionLayer(layers.Linear()).apply({"params": weights}, x, words)
    normed = layers.layer_norm("n").apply({"params": weights["norm_query"]}, x)
    query, key = np.asarray(normed @ weights["query"]["kernel"]), np.asarray(vectors @ weights["key"]["kernel"])
    for b, m, i, c, s in [(0, 0, 0, 0, 0), (1, 1, 5, 2, 4), (0, 1, 3, 1, 2)]:
        q, k = query[b, m, i], key[b, c, s]
        expected = q @ k / np.linalg.norm(q) / np.linalg.norm(k)
        assert float(reading.cosine_BxMxLxCxS[b, m, i, c, s]) == pytest.approx(expected, abs=1e-4)


def test_positions_are_the_official_ones():
    # First half the column, second the row; sines then cosines; frequencies 10000 ** (-i / (width / 4)).
    table = sincos_positions((3, 5), 16).reshape(3, 5, 16)
    np.testing.assert_allclose(table[2, 4, :4], np.sin(4 / 10000 ** (np.arange(4) / 4)), rtol=1e-6)
    np.testing.assert_allclose(table[2, 4, 12:], np.cos(2 / 10000 ** (np.arange(4) / 4)), rtol=1e-6)


def test_initial_kernels_are_normal_with_the_official_deviation():
    encoder = vit.VisionTransformer(vit.SIZES["tiny"], 16)
    params = jax.jit(lambda: init_encoder(encoder, (32, 32, 3), jax.random.key(0)))()
    kernel = np.asarray(params["blocks_3"]["mlp"]["fc2"]["kernel"])
    assert kernel.std() == pytest.approx(0.02, rel=0.02) and np.abs(kernel).max() > 0.06
    assert not np.asarray(params["blocks_3"]["attn"]["qkv"]["bias"]).any()


def test_bfloat16_products_stay_close_to_float32():
    exact, rough = tiny.jepa(), tiny.jepa(dtype=jnp.bfloat16)
    state, batch = tiny.state(exact), tiny.batch(4)

    def loss(method):
        def total(params):
            terms, _ = method.forward(params, state.extra, batch)
            return tiny.OBJECTIVE.total(terms, jnp.array(0))

        return jax.jit(jax.value_and_grad(total))(tiny.lively(state.params))

    (exact_loss, exact_gradient), (rough_loss, rough_gradient) = loss(exact), loss(rough)
    assert float(rough_loss) == pytest.approx(float(exact_loss), rel=0.02)
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (exact_gradient, rough_gradient))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough_gradient))


def test_predictions_are_not_rounded_to_bfloat16():
    method, batch = tiny.jepa(dtype=jnp.bfloat16), tiny.batch(2)
    state = tiny.state(method)
    predicted = jax.jit(method.predict)(tiny.lively(state.params), state.extra, batch).predicted
    assert predicted.dtype == jnp.float32
    assert (predicted != predicted.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9
