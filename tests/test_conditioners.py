"""Every conditioner and fusion: which words influence it, what it declares, and that zero weights disable it."""

import dataclasses
import functools

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from configs.keys import flatten
from tc_jepa.config import jepa, models
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners import CONDITIONERS, fusion
from tc_jepa.models.conditioners.adaln import AdaptiveNorm
from tc_jepa.models.conditioners.base import Conditioner, Tokens, Words
from tc_jepa.models.conditioners.caption_cross_attention import CaptionCrossAttention
from tc_jepa.models.conditioners.feature import InputFeature
from tc_jepa.models.conditioners.sequence import WordSequence
from tc_jepa.models.conditioners.word_cross_attention import CrossAttentionForm, CrossAttentionLayer, WordCrossAttention
from tc_jepa.models.kernels.backend import PLAIN, tpu_backend
from tc_jepa.optimizer import match_rules, weight_decay_rules
from tests import tiny

LINEAR = layers.Linear()
FORMS = {
    "heads": CrossAttentionForm(heads=4),
    "unscaled": CrossAttentionForm(scaled=False),
    "raw_query": CrossAttentionForm(pre_norm=False),
    "no_post_norm": CrossAttentionForm(post_norm=False),
    "wide": CrossAttentionForm(mlp_ratio=2.0),
    "fuse_first": CrossAttentionForm(fuse_first=True),
    "mean": CrossAttentionForm(fusion="mean"),
    "attention": CrossAttentionForm(fusion="attention"),
}
CHOSEN = {
    "none": Conditioner(),
    "word": WordCrossAttention(LINEAR),
    "one_layer": WordCrossAttention(LINEAR, layers=(1,)),
    "caption": CaptionCrossAttention(LINEAR),
    "adaln": AdaptiveNorm(LINEAR),
    "feature": InputFeature(LINEAR),
    "sequence": WordSequence(LINEAR),
} | {name: WordCrossAttention(LINEAR, form=form) for name, form in FORMS.items()}


BATCH = tiny.batch(4)  # the last image has no caption
CONTEXT = np.random.default_rng(0).normal(size=(*BATCH.context_indices.shape, 32)).astype(np.float32)
VECTORS = np.random.default_rng(1).normal(size=(*BATCH.caption_words.shape, 12)).astype(np.float32)


@functools.cache
def prepared(name: str):
    """A predictor as a compiled function of (params, words), and parameters of ordinary size."""
    predictor = tiny.jepa(CHOSEN[name]).predictor
    masks = BATCH.context_indices, BATCH.context_valid, BATCH.target_indices, BATCH.target_valid
    params = jax.jit(lambda words: predictor.init(jax.random.key(0), CONTEXT, *masks, words))(words())["params"]
    return jax.jit(lambda params, words: predictor.apply({"params": params}, CONTEXT, *masks, words)), tiny.lively(
        params
    )


def words(vectors=VECTORS, word_valid=BATCH.word_valid, caption_valid=BATCH.caption_valid) -> Words:
    return Words(vectors, word_valid, caption_valid)


@pytest.mark.parametrize("name", [name for name in CHOSEN if name != "none"])
def test_only_valid_words_of_valid_captions_have_an_influence_in_any_order(name):
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


@pytest.mark.parametrize(
    ("name", "zeroed"),
    [
        ("adaln", ("modulation_0", "modulation_1")),
        ("feature", ("mlp",)),
        ("sequence", ()),
        ("no_post_norm", ("layers_0", "layers_1")),
    ],
)
def test_with_zero_weights_a_conditioner_equals_none(name, zeroed):
    predict, params = prepared(name)
    read = words(caption_valid=np.zeros_like(BATCH.caption_valid)) if name == "sequence" else words()
    weights = dict(params["conditioner"])
    for module in zeroed:
        weights[module] = jax.tree.map(jnp.zeros_like, weights[module])
    found, _ = predict(params | {"conditioner": weights}, read)
    bare = {key: value for key, value in params.items() if key != "conditioner"}
    expected, _ = prepared("none")[0](bare, read)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_none_reads_no_words():
    predict, params = prepared("none")
    with_words, readings = predict(params, words())
    np.testing.assert_array_equal(predict(params, None)[0], with_words)
    assert readings == [] and "conditioner" not in params


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


def test_an_averaged_caption_is_the_mean_of_its_valid_words():
    words = layer_on_one_image(CrossAttentionForm(), 3)[-1]
    mean = words.averaged()
    for caption, length in enumerate((5, 3, 4)):
        expected = np.asarray(words.vectors_BxCxSxE)[0, caption, :length].mean(axis=0)
        np.testing.assert_allclose(mean.vectors_BxCxSxE[0, caption, 0], expected, atol=1e-6)
    assert mean.word_valid_BxCxS.shape == (1, 3, 1)


def bend(params, h):
    return jnp.sin(h @ params["kernel"] + params["bias"])


def all_at_once(function, params, x, attention, values, fused_BxC):
    """The maximum over captions by gathering the first largest value, whose gradient is that of a gather."""
    B, C, S, P = values.shape
    read = jnp.einsum("bhmlcs,bcshp->bmlchp", attention, values.reshape(B, C, S, attention.shape[1], -1))
    h = function(params, x[..., None, :] + read.reshape(*x.shape[:-1], C, P))
    h = jnp.where(fused_BxC[:, None, None, :, None], h, -jnp.inf)
    return jnp.take_along_axis(h, h.argmax(axis=-2, keepdims=True), axis=-2)[..., 0, :]


@pytest.mark.parametrize("backend", [PLAIN, tpu_backend(interpret=True)], ids=["plain", "tpu"])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_maximum_over_captions_gives_the_gradient_to_its_first_winner(backend, heads):
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 5, 8), "attention": (2, heads, 3, 5, 4, 6), "values": (2, 4, 6, 8)}
    x, attention, values = (rng.normal(size=shape).astype(np.float32) for shape in shapes.values())
    params = {"kernel": rng.normal(size=(8, 8)).astype(np.float32), "bias": rng.normal(size=8).astype(np.float32)}
    attention[..., 2, :], values[:, 2] = attention[..., 0, :], values[:, 0]  # equal wherever both count
    fused, weights = np.array([[1, 0, 1, 1], [0, 1, 1, 0]], bool), rng.normal(size=(2, 3, 5, 8))

    def gradients(maximum):
        def total(*arguments):
            return (maximum(bend, *arguments, fused) * weights).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(params, x, attention, values)

    found, expected = gradients(backend.maximum_over_captions), gradients(all_at_once)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), found, expected)
    of_values = found[1][3]
    assert np.abs(of_values[0, 2]).max() == 0 < np.abs(of_values[1, 2]).max()


def arrays(jaxpr):
    """The shapes of all arrays that a computation makes, at any depth."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


@pytest.mark.parametrize("form", [CrossAttentionForm(), CrossAttentionForm(fuse_first=True)])
def test_no_array_holds_the_channels_of_all_captions(form):
    B, M, L, C, S, P = 2, 2, 64, 5, 3, 16
    words = Words(jnp.ones((B, C, S, 12)), jnp.ones((B, C, S), bool), jnp.ones((B, C), bool))
    layer = CrossAttentionLayer(LINEAR, form)
    params = layer.init(jax.random.key(0), jnp.ones((B, M, L, P)), words)["params"]

    def total(params, x):
        fused, reading = layer.apply({"params": params}, x, words)
        return fused.sum() + reading.cosine_BxMxLxCxS.sum()

    made = jax.make_jaxpr(jax.grad(total, (0, 1)))(params, jnp.ones((B, M, L, P)))
    assert max(np.prod(shape, dtype=int) for shape in arrays(made.jaxpr)) < B * M * L * C * P


def test_fusions_leave_missing_captions_out():
    h = jax.random.normal(jax.random.key(0), (2, 1, 4, 3, 8)).at[..., 1, :].add(9.0)
    fused = np.array([[True, False, True], [True, False, False]])
    largest = fusion.MaxPool(LINEAR).apply({}, h, fused)
    np.testing.assert_array_equal(largest[0], np.maximum(h[0][..., 0, :], h[0][..., 2, :]))
    np.testing.assert_array_equal(largest[1], h[1][..., 0, :])
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


# What a conditioner declares


def configured(name: str, **settings):
    config = base.get_config()
    config.model.encoder, config.model.predictor.width, config.image.size = "nano", 16, 64
    config.model.predictor.depth, config.model.conditioner = tiny.DEPTH, name
    config.update_from_flattened_dict({f"conditioner.{key}": value for key, value in settings.items()})
    return config


def shapes(name: str, **settings):
    """Shapes of a predictor's readings, and of its parameters in the tree that the optimizer sees."""
    predictor = models.predictor(configured(name, **settings), 32)
    masks = BATCH.context_indices, BATCH.context_valid, BATCH.target_indices, BATCH.target_valid
    context = np.zeros((*BATCH.context_indices.shape, vit.SIZES["nano"].width))
    initial = functools.partial(predictor.init_with_output, jax.random.key(0), context, *masks)
    (_, readings), variables = jax.eval_shape(initial, words())
    return readings, {"predictor": variables["params"]}


@pytest.mark.parametrize(("chosen", "found"), [((), {0, 1}), ((0,), {0}), ((1,), {1})])
@pytest.mark.parametrize("name", ["word_cross_attention", "caption_cross_attention"])
def test_only_the_chosen_layers_have_cross_attention(name, chosen, found):
    readings, params = shapes(name, layers=chosen)
    assert set(params["predictor"]["conditioner"]) == {f"layers_{i}" for i in found}
    assert len(readings) == (len(found) if CONDITIONERS[name].attends_to_words else 0)


@pytest.mark.parametrize("name", CONDITIONERS)
def test_the_keys_that_have_an_effect_are_those_that_a_conditioner_declares(name):
    values, declared = flatten(configured(name)), CONDITIONERS[name]
    group = [key.name for key in base.KEYS if key.name.startswith("conditioner.")]
    used = {key for key in group if base.KEYS.is_used(key, values)}
    assert used == {f"conditioner.{key}" for key in declared.keys}
    assert base.KEYS.is_used("captions.per_image", values) == declared.reads_words
    assert base.KEYS.is_used("objective.sparsity", values) == declared.attends_to_words
    assert jepa.reads_captions(configured(name)) == declared.reads_words
    assert declared.reads_words or not declared.attends_to_words


@pytest.mark.parametrize("name", CONDITIONERS)
def test_the_values_of_declared_keys_reach_the_conditioner(name):
    others = {"layers": [1], "heads": 4, "scaled": False, "pre_norm": False, "mlp_ratio": 2.0, "post_norm": False}
    others |= {"fuse_first": True, "fusion": "attention"}
    declared = CONDITIONERS[name].keys
    built = models.conditioner(configured(name, **{key: others[key] for key in declared}))
    assert type(built) is CONDITIONERS[name]
    found = dataclasses.asdict(built.form) if hasattr(built, "form") else {}
    for key in declared:
        assert (found[key] if key in found else getattr(built, key)) == ((1,) if key == "layers" else others[key])


@pytest.mark.parametrize("name", CONDITIONERS)
def test_the_rules_of_a_conditioner_cover_its_parameters_and_no_other_conditioners(name, monkeypatch):
    _, params = shapes(name, **{"fusion": "attention"} if "fusion" in CONDITIONERS[name].keys else {})
    decays = match_rules(weight_decay_rules(), params)
    for other in CONDITIONERS.keys() - {name}:
        monkeypatch.delitem(CONDITIONERS, other)
    assert match_rules(weight_decay_rules(), params) == decays
    flat = traverse_util.flatten_dict(decays, sep="/")
    queries = [path for path in flat if path.endswith("/query")]
    assert bool(queries) == ("fusion" in CONDITIONERS[name].keys) and all(flat[path] for path in queries)


class GatedMean(Conditioner):
    """Adds the mean word vector of each caption, projected and gated by channel, to the predictor's input."""

    keys = ("fusion",)
    weight_decay_rules = (*fusion.FUSION_RULES, ("gate", False))
    reads_words = True

    fusion: str = "max"

    @nn.compact
    def condition_input(self, tokens: Tokens, words: Words) -> Tokens:
        P = tokens.values_BxMxLxP.shape[-1]
        gate = self.param("gate", nn.initializers.zeros, (P,))
        captions_BxCxP = self.linear(P, "value")(words.averaged().vectors_BxCxSxE[:, :, 0])
        h_BxMxLxCxP = tokens.values_BxMxLxP[..., None, :] + gate * captions_BxCxP[:, None, None]
        fuse = fusion.FUSIONS[self.fusion](self.linear, name="fusion")
        return tokens.replace(values_BxMxLxP=fuse(h_BxMxLxCxP, words.fused_BxC))


def test_a_new_conditioner_is_one_class_and_one_line_of_the_table(monkeypatch):
    with pytest.raises(ValueError, match="conditioner/gate"):
        match_rules(weight_decay_rules(), {"predictor": {"conditioner": {"gate": np.zeros(1)}}})
    monkeypatch.setitem(CONDITIONERS, "gated_mean", GatedMean)
    config = configured("gated_mean", fusion="mean")
    assert models.conditioner(config).fusion == "mean" and jepa.reads_captions(config)
    _, params = shapes("gated_mean", fusion="attention")
    decays = match_rules(weight_decay_rules(), params)["predictor"]["conditioner"]
    assert decays["gate"] is False and decays["value"]["kernel"] is True and decays["fusion"]["query"] is True
