"""The monitor says what is there: dead cosines, uniform attention, captions that do or do not matter."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tc_jepa.methods.attention_metrics import reading_metrics
from tc_jepa.models.conditioners.base import Reading
from tc_jepa.monitoring import held_out as monitor
from tc_jepa.storage.metrics_file import cut_back
from tests import tiny


def test_reading_metrics_count_valid_tokens_and_words_only():
    batch = tiny.batch(3)
    tokens = np.concatenate([np.repeat(batch.context_valid[:, None], 2, axis=1), batch.target_valid], axis=2)
    words = batch.word_valid & batch.caption_valid[..., None]
    words[0, 0, 1:] = False  # one word, whose entropy is 0 and not counted
    pairs = tokens[..., None, None] & words[:, None, None]
    rng = np.random.default_rng(0)
    cosine = np.where(pairs, rng.uniform(-1, 1, pairs.shape), 1.0).astype(np.float32)
    uniform = np.where(pairs, 1 / np.maximum(words.sum(-1), 1)[:, None, None, :, None], 0.0).astype(np.float32)
    peaked = np.where(np.arange(pairs.shape[-1]) == 0, 1.0, 0.0) * pairs
    metrics = reading_metrics([Reading(cosine, uniform), Reading(-cosine, peaked)], tokens, words)
    share = (cosine[pairs] > 0).mean()
    assert float(metrics["layer_0/positive_cosines"]) == pytest.approx(share, rel=1e-4)
    assert float(metrics["layer_1/positive_cosines"]) == pytest.approx(1 - share, rel=1e-4)
    assert float(metrics["layer_0/rectified_cosine"]) == pytest.approx(np.maximum(cosine[pairs], 0).mean(), rel=1e-4)
    assert float(metrics["layer_0/attention_entropy"]) == pytest.approx(1.0, abs=1e-5)
    assert float(metrics["layer_1/attention_entropy"]) == pytest.approx(0.0, abs=1e-5)


def test_look_tells_true_from_shuffled_and_absent_captions():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(4)
    params = tiny.lively(state.params)
    heldout = jax.jit(method.heldout)
    found = {name: heldout(params, state.extra, batch, i) for i, name in enumerate(method.heldout_variants)}
    metrics = method.heldout_summary(found)

    loss = jax.jit(lambda b: method.forward(params, state.extra, b)[0]["prediction"])
    turned = {
        name: np.roll(getattr(batch, name), 1, axis=0) for name in ("caption_words", "word_valid", "caption_valid")
    }
    true, shuffled = float(loss(batch)), float(loss(batch._replace(**turned)))
    absent = float(loss(batch._replace(caption_valid=np.zeros_like(batch.caption_valid))))
    assert metrics["heldout/prediction"] == pytest.approx(true, rel=1e-5)
    assert metrics["text_worth/shuffled"] == pytest.approx(shuffled / true - 1, abs=1e-5)
    assert metrics["text_worth/absent"] == pytest.approx(absent / true - 1, abs=1e-5)
    assert len({round(true, 4), round(shuffled, 4), round(absent, 4)}) == 3


def test_ranks_see_the_constant_vector_apart_from_what_differs():
    rng = np.random.default_rng(0)
    scales = np.repeat([1.0, 2.0, 0.0], [4, 2, 6])
    patches_BxNxD = rng.normal(size=(400, 3, 12)) * scales + 10.0
    encoder = SimpleNamespace(apply=lambda variables, images: jax.numpy.asarray(variables["params"]))
    seen = monitor.pooled_and_energy(encoder, patches_BxNxD.astype(np.float32), np.zeros(3, np.uint8))
    found = monitor.ranks(*jax.device_get(seen))
    varied = 4 + 2 * 2**2
    assert found["rank/constant_share"] == pytest.approx(1200 / (1200 + varied), rel=1e-3)
    assert found["rank/participation"] == pytest.approx(varied**2 / (4 + 2 * 2**4), rel=0.05)
    assert found["rank/rankme_centred"] == pytest.approx(2 * 4**0.5 * 2**0.5, rel=0.05)  # p: 2 of 1/4, 4 of 1/8
    assert found["rank/rankme"] < 3
    assert monitor.ranks(np.ones((1, 4)), 4.0)["rank/participation"] == 1.0  # a single held-out image
    deviations = [found[f"direction_{n}/deviation"] for n in (1, 4, 8)]
    np.testing.assert_allclose(deviations, np.array([2, 1, 0]) / 3**0.5, rtol=0.1, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "batch_size", "available", "devices", "expected"),
    [
        (128, 32, 10_000, 1, (32, 8)),  # 2 x width images
        (128, 100, 10_000, 8, (96, 3)),  # a multiple of the devices, rounded up to enough batches
        (128, 32, 70, 1, (32, 2)),  # what there is, without repeating an image
        (128, 64, 20, 8, (16, 1)),
        (128, 64, 3, 8, (8, 1)),  # fewer images than devices: repeated
    ],
)
def test_held_out_size(width, batch_size, available, devices, expected):
    assert monitor.held_out_size(width, batch_size, available, devices) == expected


def test_cutting_back_keeps_whole_lines_up_to_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "a": 1}\n{"step": 2, "a": 2}\n{"step": 4, "a": 3}\n{"step": 6, "lo')
    cut_back(path, 3)
    assert path.read_text() == '{"step": 0, "a": 1}\n{"step": 2, "a": 2}\n'
