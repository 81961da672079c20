"""CLIP, SigLIP and SPARC: losses are those of their formulas, on any number of devices; nothing leaks; runs resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from tc_jepa.batch import PairBatch
from tc_jepa.data import pipeline
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.inputs.pairs import CropAndCaption
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Example
from tc_jepa.data.transforms import Crop
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation.examples import Examples
from tc_jepa.evaluation.task import TaskInputs
from tc_jepa.evaluation.tasks import retrieval, zero_shot
from tc_jepa.evaluation.tower import FrozenTower
from tc_jepa.experiment.run import open_run
from tc_jepa.methods.contrastive import Contrastive, KINDS
from tc_jepa.methods.contrastive_losses import clip_loss, siglip_loss, sparc_loss, unit
from tc_jepa.models import layers
from tc_jepa.models.shared_space import SharedSpace
from tc_jepa.models.text.tower import TextTower
from tc_jepa.optimizer import match_rules, weight_decay_rules
from tests import tiny
from tests.test_train import assert_stopped_and_resumed_equals, mite, tiny_config  # noqa: F401 - mite is a fixture

CONTRASTIVE = {
    "method.name": "contrastive",
    "contrastive.width": 8,
    "contrastive.text_width": 8,
    "contrastive.text_depth": 1,
    "contrastive.text_heads": 2,
}
LINEAR = layers.Linear(std=0.1)
TOWER = TextTower(tiny.VOCABULARY, width=12, depth=2, heads=3, words=tiny.WORDS, linear=LINEAR)


def method(kind: str, **changes) -> Contrastive:
    space = SharedSpace(width=6, scale=5.0, bias=-1.0, linear=LINEAR)
    return Contrastive(tiny.jepa().encoder, TOWER, space, kind, **{"fine_weight": 0.5} | changes)


def pairs(size: int, seed: int = 0) -> PairBatch:
    """Random images and captions of 2 to 5 words; the second has none."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, tiny.IMAGE, tiny.IMAGE, 3), dtype=np.uint8)
    words = rng.integers(3, tiny.VOCABULARY, (size, tiny.WORDS), dtype=np.int32)
    valid = np.arange(tiny.WORDS) < rng.integers(2, tiny.WORDS + 1, (size, 1))
    there = np.arange(size) != 1
    return PairBatch(images, words, valid & there[:, None], there)


@functools.cache
def parameters():
    example = jax.tree.map(lambda x: x[0], pairs(1))
    return tiny.lively(method("clip").init(jax.random.key(0), example, {})[0])


@functools.cache
def loss_of(chosen: Contrastive):
    return jax.jit(lambda params, batch: chosen.loss(params, {}, batch, None, 0)[0])


def embeddings(rows: int, seed: int):
    return np.asarray(unit(np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)))


VALID = np.array([True, True, False, True, True, True])


def test_clip_is_a_cross_entropy_in_both_directions():
    images, texts = embeddings(6, 0), embeddings(6, 1)
    logits = 3.0 * images.astype(np.float64) @ texts.T
    kept = np.flatnonzero(VALID)
    losses = [np.log(np.exp(row[kept]).sum()) - row[i] for i in kept for row in (logits[i], logits[:, i])]
    assert float(clip_loss(images, texts, 3.0, VALID)) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_siglip_asks_of_every_pair_whether_it_belongs_together(parts):
    images, texts = embeddings(6, 0), embeddings(6, 1)
    total = 0.0
    for i in np.flatnonzero(VALID):
        for j in np.flatnonzero(VALID):
            logit = 3.0 * float(images[i].astype(np.float64) @ texts[j]) - 2.0
            total += np.log1p(np.exp(-logit if i == j else logit))
    found = siglip_loss(images, texts, 3.0, -2.0, VALID, parts)
    assert float(found) == pytest.approx(total / VALID.sum(), rel=1e-5)


def test_the_parts_of_siglip_have_the_gradient_of_the_whole():
    arguments = embeddings(6, 0), embeddings(6, 1), jnp.float32(3.0), jnp.float32(-2.0)
    whole, parted = (
        jax.grad(functools.partial(siglip_loss, valid_B=VALID, parts=parts), argnums=(0, 1, 2, 3))(*arguments)
        for parts in (1, 3)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), whole, parted)


def test_captions_of_siglip_travel_round_a_ring_of_devices():
    mesh = sharding.make_mesh(-1, 1)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    images, texts = (jax.device_put(embeddings(64, seed), rows) for seed in (0, 1))
    valid = jax.device_put(np.arange(64) % 7 > 0, rows)

    def compiled(parts: int):
        function = functools.partial(siglip_loss, parts=parts)
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(images, texts, 3.0, -2.0, valid).compile()

    whole, ring = compiled(1), compiled(mesh.size)
    assert "all-gather" in whole.as_text() and "collective-permute" not in whole.as_text()
    assert "collective-permute" in ring.as_text() and "all-gather" not in ring.as_text()
    expected, found = (program(images, texts, 3.0, -2.0, valid) for program in (whole, ring))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def sparc_by_hand(patches, words, valid, scale) -> float:
    losses = []
    for image, caption, there in zip(patches.astype(np.float64), words.astype(np.float64), valid):
        kept = np.flatnonzero(there)
        groups = []
        for word in caption[kept]:
            alike = image @ word
            alike = (alike - alike.min()) / (alike.max() - alike.min())
            alike[alike < 1 / len(image)] = 0.0
            group = (alike[:, None] * image).sum(axis=0) / alike.sum()
            groups.append(group / np.linalg.norm(group))
        named = caption[kept] / np.linalg.norm(caption[kept], axis=1, keepdims=True)
        logits = scale * np.array(groups) @ named.T
        losses += [np.log(np.exp(r).sum()) - r[i] for i in range(len(kept)) for r in (logits[i], logits[:, i])]
    return np.mean(losses)


def test_sparc_contrasts_each_word_with_its_own_patches():
    rng = np.random.default_rng(0)
    patches, words = rng.normal(size=(3, 7, 4)).astype(np.float32), rng.normal(size=(3, 5, 4)).astype(np.float32)
    valid = np.arange(5) < np.array([[5], [2], [3]])
    expected = sparc_by_hand(patches, words, valid, 2.0)
    assert float(sparc_loss(patches, words, valid, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_losses_of_nothing_are_finite():
    nobody, alike = np.zeros(4, bool), np.ones((4, 5, 3), np.float32)
    one = unit(alike[:, 0])
    for loss in (
        lambda x: clip_loss(x, one, 3.0, nobody),
        lambda x: siglip_loss(x, one, 3.0, 0.0, nobody),
        lambda x: sparc_loss(x[:, None] * alike, alike, np.zeros((4, 5), bool), 3.0),
    ):
        value, gradient = jax.value_and_grad(loss)(one)
        assert float(value) == 0.0 and np.isfinite(gradient).all()
    # An image of equal patches has no group for a word.
    gradient = jax.grad(lambda x: sparc_loss(x, alike, np.ones((4, 5), bool), 3.0))(alike)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_losses_are_those_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    everything = np.ones(6, bool)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = small | {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    ids, pixels = torch.randint(3, 20, (6, 5)), torch.randn(6, 3, 8, 8)
    for name in ("CLIP", "Siglip"):
        settings = {"text_config": small | {"vocab_size": 20}, "vision_config": seen}
        width = {"projection_dim": 16} if name == "CLIP" else {}
        config = getattr(transformers, f"{name}Config")(**settings, **width)
        with torch.no_grad():
            model = getattr(transformers, f"{name}Model")(config)
            found = model(input_ids=ids, pixel_values=pixels, return_loss=True)
            images, texts = found.image_embeds.numpy(), found.text_embeds.numpy()
            scale = float(model.logit_scale.exp())
        if name == "CLIP":
            ours = clip_loss(images, texts, scale, everything)
        else:
            ours = siglip_loss(images, texts, scale, float(model.logit_bias.detach()), everything)
        assert float(ours) == pytest.approx(float(found.loss), rel=1e-5)


# The method


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_reaches_every_parameter(kind):
    gradient = jax.jit(jax.grad(loss_of(method(kind))))(parameters(), pairs(5))
    match_rules(weight_decay_rules(), gradient)
    still = {jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(x)}
    assert still == (set() if kind == "siglip" else {"['space']['bias']"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_frozen_tower_has_the_embeddings_of_the_loss(kind):
    """So zero_shot and retrieval compare what was trained."""
    chosen, params, batch = method(kind), parameters(), pairs(5)
    _, metrics = chosen.loss(params, {}, batch, None, 0)

    class Reader:
        def encode(self, captions):
            return batch.words, batch.word_valid

    tower = FrozenTower(chosen, params, Reader())
    images = tower.images(np.asarray(chosen.features(params, batch.images).mean(axis=1)))
    texts, scale = tower.texts(range(5)), metrics["logit_scale"]
    if kind == "siglip":
        expected = siglip_loss(images, texts, scale, metrics["logit_bias"], batch.caption_valid)
        assert float(metrics["loss/pairs"]) == pytest.approx(float(expected), rel=1e-4)
    else:
        expected = clip_loss(images, texts, scale, batch.caption_valid)
        assert float(metrics["loss/contrast"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_weight_of_the_fine_loss():
    loss, metrics = method("sparc", fine_weight=0.25).loss(parameters(), {}, pairs(5), None, 0)
    assert float(loss) == pytest.approx(float(metrics["loss/contrast"] + 0.25 * metrics["loss/fine"]), rel=1e-6)


def test_the_ring_of_a_method_is_that_of_its_loss():
    mesh = sharding.make_mesh(-1, 1)
    batch = jax.device_put(pairs(mesh.size), sharding.batch_sharding(mesh))
    params = sharding.put_parameters(mesh, parameters())
    for ring in (1, mesh.size):
        loss = jax.jit(lambda p, b: method("siglip", ring=ring).loss(p, {}, b, None, 0)[0])
        assert ("collective-permute" in loss.lower(params, batch).compile().as_text()) == (ring > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_words_and_images_without_a_caption_count_nowhere(kind):
    loss, batch = loss_of(method(kind)), pairs(5)
    expected = float(loss(parameters(), batch))
    cut = batch._replace(words=batch.words[:, :4], word_valid=batch.word_valid[:, :4])
    longer = batch._replace(word_valid=batch.word_valid & (np.arange(tiny.WORDS) < 4))
    assert float(loss(parameters(), longer)) == pytest.approx(float(loss(parameters(), cut)), rel=1e-6)
    padded = np.where(batch.word_valid, batch.words, 7)
    assert float(loss(parameters(), batch._replace(words=padded))) == pytest.approx(expected, rel=1e-6)
    images = batch.images.copy()
    images[1] = 0
    assert float(loss(parameters(), batch._replace(images=images))) == pytest.approx(expected, rel=1e-6)
    images[0] = 0
    assert float(loss(parameters(), batch._replace(images=images))) != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_over_devices_has_the_loss_of_one_device(kind):
    batch = pairs(16)
    mesh = sharding.make_mesh(-1, 2)
    laid = jax.device_put(batch, sharding.batch_sharding(mesh))
    params = sharding.put_parameters(mesh, parameters())
    gradient = jax.jit(jax.value_and_grad(lambda p, b: method(kind).loss(p, {}, b, None, 0)[0]))
    expected, found = gradient(parameters(), batch), gradient(params, laid)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), found, expected)


def test_what_stands_for_a_caption():
    words = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    valid = np.array([[True, True, True, False], [True, False, False, False]])
    words[~valid] = 0.0
    np.testing.assert_allclose(method("clip").pooled(words, valid), [words[0, 2], words[1, 0]])
    np.testing.assert_allclose(
        method("sparc").pooled(words, valid), [words[0, :3].mean(axis=0), words[1, 0]], rtol=1e-6
    )


def test_the_scale_is_at_most_100_and_can_fall_again():
    x = jnp.ones((1, 3))
    for most, learned, expected in ((100.0, None, 5.0), (100.0, 9.0, 100.0), (np.inf, 9.0, np.exp(9.0))):
        space = SharedSpace(width=2, scale=5.0, bias=0.0, most_scale=most)
        params = space.init(jax.random.key(0), x, x)["params"]
        params |= {} if learned is None else {"scale": jnp.float32(learned)}
        scale, gradient = jax.value_and_grad(lambda p: space.apply({"params": p}, x, x).scale)(params)
        assert float(scale) == pytest.approx(expected) and float(gradient["scale"]) == pytest.approx(expected)


# The data

READER = CaptionTokenizer(scenes_vocabulary_path(), 12)
INPUTS = CropAndCaption(Crop(16, (0.5, 1.0), (1.0, 1.0), False), READER)


def test_a_row_has_one_of_its_images_captions():
    source = SceneSource(0, "train", 4, 32)
    batch = pipeline.batches(source, INPUTS, batch_size=4, seed=0)[0]
    candidates = [{tuple(row) for row in READER.encode(source[i].captions)[0]} for i in range(4)]
    for words in batch.words:
        assert any(tuple(words) in own for own in candidates)
    assert len({tuple(words) for words in batch.words}) == 4
    seen = {INPUTS.random_map(source[0], np.random.default_rng(seed)).words.tobytes() for seed in range(20)}
    assert len(seen) > 3
    first = dataclasses.replace(INPUTS, candidates=1)
    assert len({first.random_map(source[0], np.random.default_rng(seed)).words.tobytes() for seed in range(9)}) == 1


def test_an_image_without_captions_is_marked():
    row = INPUTS.random_map(Example(np.zeros((20, 20, 3), np.uint8), ()), np.random.default_rng(0))
    assert not row.caption_valid and not row.word_valid.any()
    assert INPUTS.warning(jax.tree.map(lambda x: np.asarray(x)[None], row))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, mite):  # noqa: F811
    config, straight = tiny_config(**CONTRASTIVE), tmp_path / "straight"
    tiny.train(config, straight)
    assert_stopped_and_resumed_equals(straight, config, tmp_path / "stopped")
    run = open_run(straight, config)
    assert run.params.keys() == {"encoder", "text", "space"}
    tower = FrozenTower(run.experiment.method, run.params, run.experiment.reader)
    test = SceneSource(0, "test", 300, 32)
    inputs = TaskInputs(
        {"test": {"pooled": np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)}},
        Examples(SceneSource(0, "train", 40, 32), np.arange(40)),
        Examples(test, np.arange(300)),
        32,
        tower,
    )
    assert set(zero_shot.TASK.run(inputs).scores) == {f"zero_shot/{name}" for name in test.tasks}
    found = retrieval.TASK.run(inputs)
    for key, score in found.scores.items():  # of random features
        assert abs(score.value - found.constants[f"chance/{key}"]) < 0.03


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.batch_size", 1), ("contrastive.ring", 3), ("contrastive.text_heads", 3)],
)
def test_what_cannot_be_trained_names_its_key(key, value):
    with pytest.raises(UserError) as error:
        tiny_config(**CONTRASTIVE | {"contrastive.loss": "siglip", key: value})
    assert error.value.about == key


# Evaluation


class Planted:
    """A tower in whose space class c, and any sentence with its name, is the unit vector c."""

    def __init__(self, names):
        self._names = names

    def texts(self, captions):
        return np.array([[float(name in text) for name in self._names] for text in captions])

    def images(self, pooled):
        return pooled


def test_zero_shot_finds_planted_classes():
    source = SceneSource(0, "test", 60, 32)
    classes = source.tasks["background"].classes
    truth = np.array([source.labels(i)["background"] for i in range(60)])
    embedded = zero_shot.class_embeddings(Planted(classes), classes)
    np.testing.assert_allclose(embedded, np.eye(len(classes)))
    assert ((np.eye(len(classes))[truth] @ embedded.T).argmax(axis=1) == truth).all()


def test_wrong_ones_of_equal_cosine_come_before_the_first_right_one():
    cosines = np.array([[0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.5, 0.0]])
    right = np.array([[False, False, True, True], [False, True, False, False]])
    assert retrieval.ranks(cosines, right).tolist() == [2, 2]


@pytest.mark.parametrize("k", [1, 3, 9])
def test_chance_is_the_recall_of_random_cosines(k):
    rng = np.random.default_rng(0)
    right = np.zeros((2, 8), bool)
    right[0, :1], right[1, :3] = True, True
    drawn = np.mean([retrieval.ranks(rng.random((2, 8)), right) < k for _ in range(4000)], axis=0)
    np.testing.assert_allclose(retrieval.chance(right, k), drawn, atol=0.03)
