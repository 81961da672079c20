"""The banks of heads on frozen features: what they score, and that no head of a bank knows of another."""

import jax
import numpy as np
import pytest

from tc_jepa.errors import UserError
from tc_jepa.evaluation.heads import Fitted
from tc_jepa.evaluation.scores import Truth, value_of
from tc_jepa.evaluation.tasks import attentive, linear, linear_fast
from tc_jepa.evaluation.tasks.linear import HEADS, HeadSetting, INPUTS

WIDTHS = dict(zip(INPUTS, (6, 10)))
CLASSES = 3
KINDS = ("single", "multi")
TRAIN, TEST = 320, 64  # attentive's batches of four fifths and of the whole then have one size, compiled once


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(linear, "FEWEST_STEPS", 100)
    monkeypatch.setattr(attentive, "FEWEST_STEPS", 1)
    monkeypatch.setattr(attentive, "SETTINGS", attentive.SETTINGS[-2:])


def truth_of(rng, kind: str, count: int) -> Truth:
    if kind == "single":
        return Truth(kind, np.eye(CLASSES, dtype=bool)[rng.integers(CLASSES, size=count)])
    return Truth(kind, rng.random((count, CLASSES)) < 0.4)


def pooled(rng, truth: Truth, signal: float) -> dict[str, np.ndarray]:
    """Of each of INPUTS, [N, D]: noise, and the classes written into the first channels."""
    features = {name: rng.normal(size=(len(truth.classes), D)).astype(np.float32) for name, D in WIDTHS.items()}
    for x in features.values():
        x[:, :CLASSES] += 6 * signal * truth.classes
    return features


def one_view(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x[None] for name, x in features.items()}


def linear_scores(train, truth: Truth, test) -> Fitted:
    return linear.class_scores(one_view(train), train, {"task": truth}, test)["task"]


# linear


@pytest.mark.parametrize("kind", KINDS)
def test_the_bank_finds_a_written_label_and_scores_chance_on_a_random_one(kind, rng, short):
    train, test = truth_of(rng, kind, TRAIN), truth_of(rng, kind, TEST)
    fitted = linear_scores(pooled(rng, train, 1.0), train, pooled(rng, test, 1.0))
    assert fitted.scores.shape == (TEST, CLASSES) and fitted.scores.dtype == np.float32
    assert value_of(test, fitted.scores) > 0.99
    assert tuple(fitted.sweep) == HEADS and fitted.sweep[fitted.chosen] == max(fitted.sweep.values())
    hidden = linear_scores(pooled(rng, train, 0.0), train, pooled(rng, test, 0.0))
    assert value_of(test, hidden.scores) == pytest.approx({"single": 1 / 3, "multi": 0.4}[kind], abs=0.15)


def lars(head: HeadSetting, features: np.ndarray, truth: Truth) -> linear_fast.LinearClassifier:
    """One head, trained as vissl/optimizers/lars.py does, in float64, with the recipe's rates written out."""
    D, C = features.shape[1], truth.classes.shape[1]
    weights = np.random.default_rng(0).uniform(-(D**-0.5), D**-0.5, (D, C))
    bias, momentum, mean, variance = np.zeros(C), [np.zeros((D, C)), np.zeros(C)], np.zeros(D), np.ones(D)
    size, epochs = linear.batch_and_epochs(len(features))
    for epoch, rows in linear.batches(len(features), size, epochs):
        x, scale = features[rows].astype(np.float64), 1.0
        if head.batch_norm:
            mean, variance = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * variance + 0.1 * x.var(axis=0)
            x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
            scale = 1 / np.sqrt(variance + 1e-5)
        logits = x @ weights + bias
        answers = np.exp(logits - logits.max(axis=1, keepdims=True))
        answers = answers / answers.sum(axis=1, keepdims=True) if truth.kind == "single" else 1 / (1 + np.exp(-logits))
        error = (answers - truth.classes[rows]) / len(rows)
        gradient = x.T @ error + head.weight_decay * weights
        gradient *= 0.001 * np.linalg.norm(weights) / np.linalg.norm(gradient)
        rate = head.rate * 0.1 ** (epoch * 50 // epochs // 15)
        momentum = [0.9 * old + rate * new for old, new in zip(momentum, (gradient, error.sum(axis=0)))]
        weights, bias = weights - momentum[0], bias - momentum[1]
    return linear_fast.LinearClassifier(
        mean if head.batch_norm else 0.0, np.atleast_1d(scale)[..., None] * weights, bias
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_of_the_bank_is_trained_by_lars_alone(kind, rng, monkeypatch):
    monkeypatch.setattr(linear, "FEWEST_STEPS", 1)
    monkeypatch.setattr(linear, "SMALLEST_BATCH", 16)
    truth = truth_of(rng, kind, 50)
    features = pooled(rng, truth, 0.3)
    for x in features.values():
        x *= np.linspace(0.5, 4.0, x.shape[1], dtype=np.float32)
    probes = linear.fit(HEADS, one_view(features), truth)
    assert len(probes) == 24
    begun = lars(HEADS[4]._replace(rate=0.0), features["last"], truth)
    for head, probe in probes.items():
        x = features[head.features]
        expected = lars(head, x, truth)
        np.testing.assert_allclose(probe.logits(x), expected.logits(x), rtol=1e-3, atol=2e-3, err_msg=str(head))
    assert np.linalg.norm(probes[HEADS[2]].weights - begun.weights) > 0.3 * np.linalg.norm(begun.weights)
    for head in HEADS[::5]:  # and a bank of one is the same as its place in the bank of all
        alone = linear.fit([head], one_view(features), truth)[head]
        np.testing.assert_allclose(alone.logits(x := features[head.features]), probes[head].logits(x), atol=1e-4)


def test_batch_norm_heads_do_not_see_scale_and_shift(rng, monkeypatch):
    monkeypatch.setattr(linear, "FEWEST_STEPS", 20)
    truth = truth_of(rng, "single", TRAIN)
    features = pooled(rng, truth, 0.3)
    changed = {name: 7 * x + np.arange(x.shape[1], dtype=np.float32) for name, x in features.items()}
    probes, others = (linear.fit(HEADS, one_view(x), truth) for x in (features, changed))
    for head in HEADS:
        x, y = features[head.features], changed[head.features]
        gap = np.abs(probes[head].logits(x) - others[head].logits(y)).max()
        assert gap < 0.02 if head.batch_norm else gap > 0.5, head


def test_epochs_take_turns_with_the_views_and_validation_sees_plain_features(rng, short, monkeypatch):
    truth = truth_of(rng, "single", TRAIN)
    first, second = pooled(rng, truth, 1.0), pooled(rng, truth, 0.0)
    views = {name: np.stack([first[name], second[name]]) for name in INPUTS}
    fitted = linear.class_scores(one_view(first), second, {"task": truth}, second)["task"]
    assert max(fitted.sweep.values()) < 0.6  # 24 guesses at 64 examples; what is trained on tells all
    monkeypatch.setattr(linear, "FEWEST_STEPS", 1)
    seen = []
    for epochs in (1, 2):
        monkeypatch.setattr(linear, "EPOCHS", epochs)
        both, one = (linear.fit(HEADS[:1], x, truth)[HEADS[0]] for x in (views, one_view(first)))
        seen.append(np.abs(both.weights - one.weights).max())
    assert seen[0] == 0 and seen[1] > 1e-4


def test_the_head_is_chosen_on_every_fifth_train_example_and_trained_anew_on_all(rng, short, monkeypatch):
    truth = truth_of(rng, "single", TRAIN)
    features = pooled(rng, truth, 1.0)
    truth.classes[::5] = np.roll(truth.classes[::5], 1, axis=1)
    counts, fit = [], linear.fit

    def watched(heads, views, part):
        counts.append((len(heads), views["last"].shape, len(part.classes)))
        return fit(heads, views, part)

    monkeypatch.setattr(linear, "fit", watched)
    sweep = linear_scores(features, truth, features).sweep
    assert max(sweep[head] for head in HEADS if head.rate == max(linear.RATES)) < 0.1
    assert counts == [(24, (1, 256, 6), 256), (1, (1, 320, 6), 320)]


def test_batches_and_epochs_are_imagenets_where_there_is_enough():
    assert linear.batch_and_epochs(1_281_167) == (16384, 50)
    for count in (6, 300, 2000, 4000, 50_000):
        size, epochs = linear.batch_and_epochs(count)
        assert epochs >= 50 and epochs * (count // size) >= linear.FEWEST_STEPS
    drawn = list(linear.batches(70, 16, 3))
    assert [(epoch, len(rows)) for epoch, rows in drawn] == [(epoch, 17) for epoch in range(3) for _ in range(4)]
    first, second = (np.concatenate([rows for epoch, rows in drawn if epoch == e]) for e in (0, 1))
    assert len(set(first)) == len(set(second)) == 68 and (first != second).any()


# attentive


def marked(rng, count: int) -> tuple[np.ndarray, Truth]:
    """6 patches of one content each, [count, 6, 16], one of which carries a marker: its content is the class."""
    content, place = rng.integers(CLASSES, size=(count, 6)), rng.integers(6, size=count)
    features = 0.1 * rng.normal(size=(count, 6, 16))
    features[..., :CLASSES] += np.eye(CLASSES)[content]
    features[np.arange(count), place, 8] += 1
    return features.astype(np.float32), Truth("single", np.eye(CLASSES, dtype=bool)[content[np.arange(count), place]])


def attended(train: np.ndarray, truth: Truth, test: np.ndarray) -> Fitted:
    return attentive.class_scores(train, {"task": truth}, test)["task"]


def test_attention_finds_the_marked_patch_which_a_mean_does_not(rng, short):
    (train, truth), (test, test_truth) = marked(rng, TRAIN), marked(rng, TEST)
    assert value_of(test_truth, attended(train, truth, test).scores) > 0.95
    crossed = Truth("single", truth.classes.copy())
    crossed.classes[::5] = np.roll(truth.classes[::5], 1, axis=1)  # whoever learns from the others is wrong about these
    assert max(attended(train, crossed, test).sweep.values()) < 0.2
    means = linear_fast.class_scores(train.mean(axis=1), {"task": truth}, test.mean(axis=1))["task"]
    assert value_of(test_truth, means) < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_finds_a_written_label_and_scores_chance_on_a_random_one(kind, rng, short):
    train, test = truth_of(rng, kind, TRAIN), truth_of(rng, kind, TEST)
    noise = [rng.normal(size=(count, 6, 16)).astype(np.float32) for count in (TRAIN, TEST)]
    hidden = attended(noise[0], train, noise[1])
    assert value_of(test, hidden.scores) == pytest.approx({"single": 1 / 3, "multi": 0.4}[kind], abs=0.15)
    for x, truth in zip(noise, (train, test)):
        x[:, 2, :CLASSES] += 8 * truth.classes
    written = attended(noise[0], train, noise[1])
    assert value_of(test, written.scores) > 0.9
    assert tuple(written.sweep) == attentive.SETTINGS and written.scores.dtype == np.float32


def test_keys_and_values_need_not_be_computed_for_every_patch(rng):
    """The probe is the cross-attention block of the official code, with one query, written out."""
    x = rng.normal(loc=1.0, size=(5, 7, 12)).astype(np.float32)
    probe = attentive.AttentiveProbe(classes=4, heads=3)
    params = jax.eval_shape(probe.init, jax.random.key(0), x)["params"]
    leaves, tree = jax.tree.flatten(params)
    params = tree.unflatten([rng.normal(scale=0.5, size=leaf.shape).astype(np.float32) for leaf in leaves])

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def norm(x):
        return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)

    query = dense(params["query_token"], "query").reshape(3, 4)
    key = np.einsum("bpd,dhi->bphi", norm(x), params["key"])
    value = np.einsum("bpd,dhi->bphi", norm(x), params["value"]) + params["value_bias"].reshape(3, 4)
    attention = np.exp(np.einsum("hi,bphi->bph", query, key) / 2)
    attention /= attention.sum(axis=1, keepdims=True)
    read = np.einsum("bph,bphi->bhi", attention, value).reshape(5, 12)
    pooled = params["query_token"] + dense(read, "proj")
    hidden = norm(pooled) * params["norm2"]["scale"] + params["norm2"]["bias"]
    fc1, fc2 = params["mlp"]["fc1"], params["mlp"]["fc2"]
    hidden = jax.nn.gelu(hidden @ fc1["kernel"] + fc1["bias"], approximate=False)
    expected = dense(pooled + hidden @ fc2["kernel"] + fc2["bias"], "classifier")
    np.testing.assert_allclose(jax.jit(probe.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_a_bank_of_probes_is_its_probes_trained_one_at_a_time(rng, short, monkeypatch):
    monkeypatch.setattr(attentive, "EPOCHS", 3)
    x, truth = marked(rng, TRAIN)
    settings = [attentive.Setting(1e-3, 0.001), attentive.Setting(3e-3, 1.0)]
    together = attentive.fit(settings, x, truth)(x[:TEST])
    for setting, scores in zip(settings, together, strict=True):
        (alone,) = attentive.fit([setting], x, truth)(x[:TEST])
        np.testing.assert_allclose(alone, scores, rtol=1e-3, atol=1e-3, err_msg=str(setting))
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_heads_divide_the_width():
    assert [attentive.probe_of(width, 2).heads for width in (8, 64, 128, 192, 768, 1280, 1408)] == [
        1,
        1,
        2,
        3,
        12,
        20,
        22,
    ]
    assert attentive.probe_of(200, 2).heads == 2


# both


def bank_scores(train: np.ndarray, truth: Truth, test: np.ndarray) -> np.ndarray:
    means = [{name: x.mean(axis=1)[:, :D] for name, D in WIDTHS.items()} for x in (train, test)]
    return linear_scores(means[0], truth, means[1]).scores


def attentive_scores(train: np.ndarray, truth: Truth, test: np.ndarray) -> np.ndarray:
    return attended(train, truth, test).scores


@pytest.mark.parametrize("scores", (bank_scores, attentive_scores))
def test_what_holds_for_both(scores, rng, short):
    (train, truth), (test, _) = marked(rng, TRAIN), marked(rng, TEST)
    unseen = Truth("single", truth.classes & [True, True, False])
    unseen.classes[:, 1] |= truth.classes[:, 2]
    first = scores(train, unseen, test)
    assert np.isfinite(first).all() and (first.argmax(axis=1) < 2).all()  # a class that train never shows
    order = rng.permutation(TEST)
    np.testing.assert_allclose(scores(train, unseen, test[order]), first[order], rtol=1e-4, atol=1e-4)
    few = Truth("single", truth.classes[:5])
    with pytest.raises(UserError, match="(linear|attentive) has only 5"):
        scores(train[:5], few, test)
