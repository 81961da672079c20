"""The objective, compared with the paper's formulas written as loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.methods import losses as objective
from tc_jepa.models.conditioners.base import Reading, Words
from tests import tiny


def test_prediction_forms():
    predicted, target = jnp.array([[3.0, 0.0, 0.0, 4.0]]), jnp.array([[0.0, 0.0, 0.5, 0.0]])
    error = {form: float(objective.prediction_error(predicted, target, form)[0]) for form in objective.PREDICTION_FORMS}
    assert error["l2_norm"] == pytest.approx((9 + 0.25 + 16) ** 0.5)
    assert error["mse"] == pytest.approx((9 + 0.25 + 16) / 4)
    assert error["smooth_l1"] == pytest.approx((2.5 + 0.125 + 3.5) / 4)


def test_l2_norm_has_a_gradient_where_the_prediction_is_perfect():
    gradient = jax.grad(lambda x: objective.prediction_error(x, x * 0 + 1.0, "l2_norm").sum())(jnp.ones((1, 4)))
    assert np.isfinite(gradient).all()


def test_regularisers_equal_the_papers_sums():
    rng = np.random.default_rng(0)
    Y, B, M, L, C, S = 3, 2, 2, 4, 2, 5
    cosine = rng.uniform(-1, 1, (Y, B, M, L, C, S)).astype(np.float32)
    words, tokens = rng.random((B, C, S)) < 0.7, rng.random((B, M, L)) < 0.7
    sparsity, consistency = objective.regularisers(cosine, words, tokens, tiny.OBJECTIVE)
    for b in range(B):
        for c in range(C):
            sparse, consistent = [], []
            for m, i in zip(*np.nonzero(tokens[b]), strict=True):
                O = np.maximum(cosine[:, b, m, i, c][:, words[b, c]], 0)
                sparse.append(np.mean([np.abs(O[y]).sum() for y in range(Y)]))
                consistent.append(np.mean([np.abs(O[y] - O.mean(axis=0)).sum() for y in range(Y)]))
            assert float(sparsity[b, c]) == pytest.approx(np.mean(sparse), rel=1e-5)
            assert float(consistency[b, c]) == pytest.approx(np.mean(consistent), rel=1e-5)


def test_terms_leave_out_padded_tokens_and_missing_captions():
    B, M, T, L, C, S, D = 2, 1, 3, 4, 2, 3, 4
    rng = np.random.default_rng(1)
    predicted, targets = rng.normal(size=(2, B, M, T, D)).astype(np.float32)
    target_valid, token_valid = np.ones((B, M, T), bool), np.ones((B, M, L), bool)
    target_valid[0, 0, 2] = token_valid[0, 0, 3] = False
    caption_valid = np.array([[True, False], [False, False]])
    words = Words(None, np.ones((B, C, S), bool), caption_valid)
    cosine = rng.uniform(0.1, 1, (B, M, L, C, S)).astype(np.float32)

    def terms(predicted, cosine):
        readings = [Reading(jnp.asarray(cosine), None), Reading(jnp.asarray(cosine) * 0.5, None)]
        return objective.loss_terms(predicted, targets, target_valid, token_valid, readings, words, tiny.OBJECTIVE)

    before = terms(predicted, cosine)
    # The mean is over the whole batch, and the second image has no caption.
    assert float(before["sparsity"]) == pytest.approx(cosine[0, 0, :3, 0].sum(-1).mean() * 0.75 / 2, rel=1e-5)
    noisy, loud = predicted.copy(), cosine.copy()
    noisy[0, 0, 2] += 100.0
    loud[0, 0, 3] = loud[:, :, :, 1] = loud[1] = 1.0
    after = terms(noisy, loud)
    for name in before:
        assert float(before[name]) == pytest.approx(float(after[name]), rel=1e-6)


def test_warmup_reaches_the_weights_linearly():
    terms = {"prediction": jnp.array(1.0), "sparsity": jnp.array(10.0), "consistency": jnp.array(100.0)}
    weights = dataclasses.replace(tiny.OBJECTIVE, warmup_steps=4)
    totals = [float(weights.total(terms, jnp.array(step))) for step in (0, 1, 4, 9)]
    assert totals == pytest.approx([1.0, 1.0 + 51.0 / 4, 52.0, 52.0])
    assert float(tiny.OBJECTIVE.total(terms, jnp.array(0))) == pytest.approx(52.0)


def test_the_terms_of_a_batch_are_the_means_of_those_of_its_parts():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(6)
    params = tiny.lively(state.params)
    loss = jax.jit(lambda b: method.forward(params, state.extra, b)[0])
    whole = loss(batch)
    parts = [loss(jax.tree.map(lambda x: x[i : i + 2], batch)) for i in (0, 2, 4)]
    for name, value in whole.items():
        assert float(value) == pytest.approx(np.mean([float(part[name]) for part in parts]), rel=1e-5)
        assert float(value) > 0


def test_entropy_form_is_the_entropy_of_the_valid_words_softmax():
    rng = np.random.default_rng(0)
    Y, B, M, L, C, S = 2, 1, 1, 3, 2, 5
    cosine = rng.uniform(-1, -0.1, (Y, B, M, L, C, S)).astype(np.float32)  # the paper's form is 0 here
    words = np.array([[[True, True, True, False, False], [True, False, False, False, False]]])
    tokens = np.ones((B, M, L), bool)
    form = dataclasses.replace(tiny.OBJECTIVE, regulariser="entropy", temperature=0.2)
    sparsity, consistency = objective.regularisers(cosine, words, tokens, form)
    p = np.exp(cosine[:, 0, 0, :, 0, :3] / 0.2)
    p /= p.sum(axis=-1, keepdims=True)
    assert float(sparsity[0, 0]) == pytest.approx(-(p * np.log(p)).sum(-1).mean() / np.log(3), rel=1e-5)
    assert float(consistency[0, 0]) == pytest.approx(np.abs(p - p.mean(0)).sum(-1).mean(), rel=1e-5)
    assert float(sparsity[0, 1]) == 0.0  # one word: nothing to spread over
    alive = jax.grad(lambda x: objective.regularisers(x, words, tokens, form)[0].sum())(cosine)
    assert np.isfinite(alive).all() and np.abs(alive[..., 0, :3]).min() > 0 and not np.any(alive[..., 0, 3:])
