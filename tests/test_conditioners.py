"""Every conditioner, fusion and option: what it may read, what it must not, and what it is when switched off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.models import layers
from tc_jepa.models.conditioners import fusion
from tc_jepa.models.conditioners.base import Conditioner, Words
from tc_jepa.models.conditioners.compared import AdaptiveNorm, InputFeature, WordSequence
from tc_jepa.models.conditioners.cross_attention import (
    CaptionCrossAttention,
    CrossAttentionForm,
    CrossAttentionLayer,
    WordCrossAttention,
)
from tests import tiny

LINEAR = layers.Linear()
EVERY = range(tiny.DEPTH)
FORMS = {
    "heads": CrossAttentionForm(heads=4),
    "unscaled": CrossAttentionForm(scaled=False),
    "raw_query": CrossAttentionForm(pre_norm=False),
    "no_post_norm": CrossAttentionForm(post_norm=False),
    "wide": CrossAttentionForm(mlp_ratio=2.0),
    "fuse_first": CrossAttentionForm(fuse_first=True),
    "mean": CrossAttentionForm(fusion=fusion.MeanPool),
    "attention": CrossAttentionForm(fusion=fusion.AttentionPool),
}
READERS = {
    "word": WordCrossAttention(EVERY, LINEAR),
    "one_layer": WordCrossAttention((1,), LINEAR),
    "caption": CaptionCrossAttention(EVERY, LINEAR),
    "adaln": AdaptiveNorm(LINEAR),
    "feature": InputFeature(LINEAR),
    "sequence": WordSequence(LINEAR),
} | {name: WordCrossAttention(EVERY, LINEAR, form) for name, form in FORMS.items()}


BATCH = tiny.batch(4)  # the last image has no caption
CONTEXT = np.random.default_rng(0).normal(size=(*BATCH.context_indices.shape, 32)).astype(np.float32)
VECTORS = np.random.default_rng(1).normal(size=(*BATCH.caption_words.shape, 12)).astype(np.float32)


@functools.cache
def prepared(name: str):
    """A predictor with a reader as a compiled function of (params, words), and parameters of ordinary size."""
    predictor = tiny.jepa(Conditioner() if name == "none" else READERS[name]).predictor
    masks = BATCH.context_indices, BATCH.context_valid, BATCH.target_indices, BATCH.target_valid
    params = jax.jit(lambda words: predictor.init(jax.random.key(0), CONTEXT, *masks, words))(words())["params"]
    return jax.jit(lambda params, words: predictor.apply({"params": params}, CONTEXT, *masks, words)), tiny.lively(
        params
    )


def words(vectors=VECTORS, word_valid=BATCH.word_valid, caption_valid=BATCH.caption_valid) -> Words:
    return Words(vectors, word_valid, caption_valid)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_valid_words_of_valid_captions_in_any_order_and_nothing_else(name):
    predict, params = prepared(name)
    real = words().valid_BxCxS[..., None]
    before, _ = predict(params, words())
    padded, _ = predict(params, words(np.where(real, VECTORS, 50.0)))
    np.testing.assert_allclose(before, padded, atol=2e-5)
    turned, _ = predict(params, words(VECTORS[:, ::-1], BATCH.word_valid[:, ::-1], BATCH.caption_valid[:, ::-1]))
    np.testing.assert_allclose(before, turned, atol=2e-5)
    other, _ = predict(params, words(np.where(real, VECTORS[::-1], VECTORS)))
    moved = np.abs(np.asarray(before - other)).max(axis=(1, 2, 3))
    assert (moved[:3] > 1e-3).all() and moved[3] == 0.0
    assert np.isfinite(before).all()


def test_only_chosen_layers_read():
    predict, params = prepared("one_layer")
    assert set(params["conditioner"]) == {"layers_1"}
    assert len(predict(params, words())[1]) == 1
    predict, params = prepared("caption")
    assert predict(params, words())[1] == []


@pytest.mark.parametrize(
    ("name", "silenced"),
    [
        ("adaln", ("modulation_0", "modulation_1")),
        ("feature", ("mlp",)),
        ("sequence", ()),
        ("no_post_norm", ("layers_0", "layers_1")),
    ],
)
def test_a_silenced_conditioner_is_no_conditioner(name, silenced):
    predict, params = prepared(name)
    read = words(caption_valid=np.zeros_like(BATCH.caption_valid)) if name == "sequence" else words()
    reader = dict(params["conditioner"])
    for module in silenced:
        reader[module] = jax.tree.map(jnp.zeros_like, reader[module])
    found, _ = predict(params | {"conditioner": reader}, read)
    bare = {key: value for key, value in params.items() if key != "conditioner"}
    expected, _ = prepared("none")[0](bare, read)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def layer_on_one_image(form: CrossAttentionForm, captions: int, params=None):
    words = Words(
        jax.random.normal(jax.random.key(1), (1, captions, 5, 12)),
        np.arange(5) < np.array([[[5], [3], [4]]])[:, :captions],
        np.ones((1, captions), bool),
    )
    x = jax.random.normal(jax.random.key(0), (1, 2, 6, 16))
    layer = CrossAttentionLayer(LINEAR, form)
    params = tiny.lively(layer.init(jax.random.key(2), x, words)["params"]) if params is None else params
    return *layer.apply({"params": params}, x, words), params, x, words


def test_fusing_one_caption_first_or_last_is_the_same_and_of_several_is_not():
    for captions in (1, 3):
        last, _, params, *_ = layer_on_one_image(CrossAttentionForm(), captions)
        first, *_ = layer_on_one_image(CrossAttentionForm(fuse_first=True), captions, params)
        assert np.allclose(first, last, atol=1e-5) == (captions == 1)


def test_heads_and_scaling_change_the_attention_but_not_the_cosines():
    _, usual, params, x, words = layer_on_one_image(CrossAttentionForm(), 3)
    query = np.asarray(layers.layer_norm("n").apply({"params": params["norm_query"]}, x) @ params["query"]["kernel"])
    key = np.asarray(words.vectors_BxCxSxE @ params["key"]["kernel"])
    for form, heads, scale in ((CrossAttentionForm(heads=4), 4, 2.0), (CrossAttentionForm(scaled=False), 1, 1.0)):
        _, reading, *_ = layer_on_one_image(form, 3, params)
        np.testing.assert_allclose(reading.cosine_BxMxLxCxS, usual.cosine_BxMxLxCxS, atol=1e-5)
        q, k = query[0, 1, 2].reshape(heads, -1), key[0, 0].reshape(5, heads, -1)
        logits = np.einsum("hp,shp->hs", q, k) / scale
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(reading.attention_BxMxLxCxS[0, 1, 2, 0], weights.mean(axis=0), atol=1e-5)


def test_caption_attention_gives_every_token_the_mean_words_value():
    words = layer_on_one_image(CrossAttentionForm(), 3)[-1]
    mean = words.averaged()
    for caption, length in enumerate((5, 3, 4)):
        expected = np.asarray(words.vectors_BxCxSxE)[0, caption, :length].mean(axis=0)
        np.testing.assert_allclose(mean.vectors_BxCxSxE[0, caption, 0], expected, atol=1e-6)
    assert mean.word_valid_BxCxS.shape == (1, 3, 1)


def test_pools_leave_missing_captions_out():
    h = jax.random.normal(jax.random.key(0), (2, 1, 4, 3, 8))
    fused = np.array([[True, False, True], [True, False, False]])
    mean = fusion.MeanPool(LINEAR).apply({}, h, fused)
    np.testing.assert_allclose(mean[0], h[0][..., [0, 2], :].mean(axis=-2), atol=1e-6)
    np.testing.assert_allclose(mean[1], h[1][..., 0, :], atol=1e-6)
    pool = fusion.AttentionPool(LINEAR)
    params = tiny.lively(pool.init(jax.random.key(1), h, fused)["params"])
    pooled = pool.apply({"params": params}, h, fused)
    np.testing.assert_allclose(pooled[1], h[1][..., 0, :], atol=1e-6)
    scores = np.asarray(h)[0, 0, 1, [0, 2]] @ np.asarray(params["key"]["kernel"] @ params["query"]) / 8**0.5
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(pooled[0, 0, 1], weights @ np.asarray(h[0, 0, 1])[[0, 2]], atol=1e-5)
