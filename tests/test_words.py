"""Word vectors that were stored before training: the same run as with the text encoder in it, or a clear refusal."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import threading

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from PIL import Image
import pytest
import safetensors

from tc_jepa import write_word_vectors
from tc_jepa.batch import JepaBatch
from tc_jepa.config import data as config_data
from tc_jepa.config import jepa
from tc_jepa.config.validate import validate
from tc_jepa.convert import t5
from tc_jepa.data import pipeline
from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.data.word_vectors.folder import digest, DTYPES, pack, unpack, WordVectorFolder, WordVectorInfo
from tc_jepa.errors import UserError
from tc_jepa.models.text.embedding import StoredWords
from tc_jepa.models.text.t5 import T5Encoder
from tc_jepa.pretrained.text import T5Captions
from tc_jepa.state import initial_state
from tc_jepa.storage.partial import partial_path, Processes
from tc_jepa.storage.run_data import check_data, DATA_FILE, recorded, VECTORS, WORDS_FILE
from tests import tiny
from tests.test_train import mite, tiny_config  # noqa: F401 - mite is a fixture

ROOT = Path(__file__).parent.parent
WORDS = 10  # tiny_config's captions.words
CAPTIONS = [
    ["a red star", "two rings", "a blue ring is left of the green cross, and near the top", "a star"],
    [],
    ["two shapes", "a star", "a red star near the top left"],
    [],
    ["a green cross"],
    ["a blue ring", "three shapes", "a ring"],
]
HASHED = WordVectorInfo("hashed words", None, None, WORDS, 6, "float16")


def prepare_images(folder: Path, captions=CAPTIONS, train=9, val=3) -> str:
    """Small noise images with the captions in turn, as a prepared folder."""
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir(parents=True)
    lines = []
    for number in range(train + val):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(images / f"{number}.png")
        split = "train" if number < train else "val"
        lines.append({"file": f"{number}.png", "captions": captions[number % len(captions)], "split": split})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = str(folder / "data")
    prepare_folder(str(images), str(folder / "captions.jsonl"), output, scenes_vocabulary_path())
    return output


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return prepare_images(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return str(tiny.t5_folder(tmp_path_factory.mktemp("text") / "t5"))


@pytest.fixture(scope="module")
def stored(data, text, tmp_path_factory):
    """The T5's vectors of the data, by dtype."""
    encoder, folder = T5Captions(text, WORDS, batch_size=8), tmp_path_factory.mktemp("stored")
    for dtype in DTYPES:
        write_word_vectors(data, str(folder / dtype), encoder, encoder.info("t5", dtype))
    return folder


def random_projection(captions: list[str]) -> list[np.ndarray]:
    """A user's own encoder: each word's hash seeds its vector."""

    def vector(word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(size=HASHED.width)

    return [np.stack([vector(word) for word in caption.split()[:WORDS]]) for caption in captions]


def config_of(data: str, vectors, **changes):
    settings = {"data.path": data, "model.text": "stored", "captions.vectors": str(vectors), "captions.per_image": 3}
    return tiny_config(**settings | changes)


def rows(config, count: int = 3, workers: int = 0) -> list[JepaBatch]:
    words = config_data.word_folders(config)
    inputs = jepa.inputs(config, jepa.caption_reader(config, words))
    dataset = pipeline.batches(config_data.training_source(config, words), inputs, batch_size=8, seed=0)
    with contextlib.closing(pipeline.iterate(dataset, start=0, workers=workers)) as iterator:
        return [JepaBatch(*(np.array(x) for x in batch)) for batch in itertools.islice(iterator, count)]


# The same run


def along(data, text, **changes):
    """The configuration with the T5 in the run."""
    settings = {"data.path": data, "model.text": "t5", "model.text_weights": text, "captions.per_image": 3}
    return tiny_config(**settings | changes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("candidates", [0, 2])
def test_stored_batches_are_those_of_the_text_encoder(data, text, stored, dtype, candidates):
    few = {"captions.candidates": candidates}
    online, cached = rows(along(data, text, **few))[1], rows(config_of(data, stored / dtype, **few))[1]
    for name in set(JepaBatch._fields) - {"caption_words"}:
        np.testing.assert_array_equal(getattr(online, name), getattr(cached, name), err_msg=name)
    assert cached.caption_words.dtype == DTYPES[dtype] and cached.caption_words.shape == (8, 3, WORDS, 8)
    assert cached.caption_valid.sum(axis=1).max() == (candidates or 3)
    assert cached.caption_valid.sum() == cached.word_valid.any(axis=2).sum() > 5
    vectors, given = (
        t5_vectors(text, online),
        np.asarray(StoredWords().apply({}, cached.caption_words, cached.word_valid)),
    )
    assert given.dtype == np.float32 and vectors[cached.caption_valid].any(axis=(1, 2)).all()
    # Half a unit in the last place (8 binary ones, 11), and what another order of summation tips over.
    half = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(given, vectors, rtol=2 * half, atol=5e-6)
    assert np.isclose(given, vectors, rtol=half, atol=5e-6).mean() > 0.99


def t5_vectors(text: str, batch: JepaBatch) -> np.ndarray:
    size, params = t5.load(text)
    return np.asarray(jax.jit(T5Encoder(size).apply)({"params": params}, batch.caption_words, batch.word_valid))


@pytest.mark.slow  # half a minute to compile
def test_stored_words_give_the_loss_and_gradients_of_the_text_encoder(data, text, stored):
    results = {}
    for name, config in (("online", along(data, text)), ("cached", config_of(data, stored / "float32"))):
        batch, words = rows(config, count=1)[0], config_data.word_folders(config)
        method, _, _, _, frozen = jepa.build(config, words)
        if not results:
            example = jax.tree.map(lambda x: x[0], batch)
            state = jax.jit(lambda frozen: initial_state(method, example, tiny.OPTIMIZER, 0, frozen))(frozen)
            assert state.params.keys() == {"encoder", "predictor"}

        @jax.jit
        def compute(trained, target, frozen, batch):
            def loss(trained):
                terms, _ = method.forward({**frozen, **trained}, target, batch)
                return method.objective.total(terms, 0), terms

            return jax.value_and_grad(loss, has_aux=True)(trained)

        results[name] = compute(tiny.lively(state.params), state.extra, frozen, batch)
    (one, one_gradients), (other, other_gradients) = results["online"], results["cached"]
    assert one[1]["sparsity"] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)
    for a, b in zip(jax.tree.leaves(one_gradients), jax.tree.leaves(other_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(0.1, float(jnp.abs(a).max())))


def test_workers_carry_bfloat16_to_the_last_bit(data, stored):
    config = config_of(data, stored / "bfloat16")
    for one, other in zip(rows(config), rows(config, workers=2), strict=True):
        assert other.caption_words.dtype == ml_dtypes.bfloat16
        for name, a, b in zip(JepaBatch._fields, one, other, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), err_msg=name)


def test_a_texts_vectors_do_not_depend_on_the_others(text):
    captions = [caption for line in CAPTIONS for caption in line]
    together = T5Captions(text, WORDS, batch_size=8)(captions)
    encoder = T5Captions(text, WORDS, batch_size=16)
    for caption, vectors in zip(captions, together, strict=True):
        (alone,) = encoder([caption])
        assert len(alone) == encoder.tokenizer.encode([caption])[1].sum()
        np.testing.assert_allclose(alone, vectors, atol=1e-5)


@pytest.mark.slow  # half a minute to compile
def test_an_encoder_of_ones_own_trains(data, tmp_path):
    vectors, workdir = tmp_path / "hashed", tmp_path / "run"
    write_word_vectors(data, str(vectors), random_projection, HASHED)
    config = config_of(data, vectors, **{"train.steps": 1})
    tiny.train(config, workdir)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["captions"] > 0 and last["heldout/prediction"] != last["heldout/prediction_shuffled"]
    tiny.train(config, workdir)  # the same vectors are no reason to refuse
    assert json.loads((workdir / DATA_FILE).read_text())[VECTORS] == [WordVectorFolder(str(vectors)).identity]


def test_vectors_of_ones_own_encoder_are_read_and_told_from_others(data, tmp_path):
    vectors, workdir = tmp_path / "hashed", tmp_path / "run"
    assert write_word_vectors(data, str(vectors), random_projection, HASHED) == {"train": 9, "val": 3}
    config = config_of(data, vectors, **{"train.steps": 1})
    words = config_data.word_folders(config)
    source, texts = config_data.training_source(config, words), PreparedSource(data, "train")
    for index in range(9):
        captions = texts.captions(index)
        assert [len(found) for found in source[index].captions] == [len(text.split()[:WORDS]) for text in captions]
        for found, text in zip(source[index].captions, captions):
            if text.strip():
                np.testing.assert_array_equal(found, random_projection([text])[0].astype(np.float16))

    (workdir / "checkpoints" / "1").mkdir(parents=True)
    (workdir / WORDS_FILE).write_text(json.dumps([folder.identity for folder in words]))  # as older versions wrote it
    check_data(workdir, config_data.run_data(config, words))
    assert recorded(workdir).keys() == {VECTORS}
    shutil.rmtree(vectors)
    write_word_vectors(data, str(vectors), lambda texts: [-x for x in random_projection(texts)], HASHED)
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"captions\.vectors=.*hashed"):
        tiny.train(config, workdir)
    assert sorted(workdir.rglob("*")) == before


def test_the_folder_is_what_its_documentation_says(data, stored):
    """Read with nothing of this project: a user's own program may."""
    folder = stored / "bfloat16"
    stamp = json.loads((folder / "words.json").read_text())
    assert (stamp["format"], stamp["version"]) == ("tc_jepa word vectors", 1)
    assert (stamp["encoder"], stamp["words"], stamp["width"], stamp["dtype"]) == ("t5", WORDS, 8, "bfloat16")
    vocabulary = Path(scenes_vocabulary_path()).read_bytes()
    assert stamp["vocabulary"] == hashlib.sha256(vocabulary).hexdigest() and len(stamp["weights"]) == 64
    (shard,) = stamp["splits"]["train"]
    content = (folder / shard["file"]).read_bytes()
    assert (shard["images"], shard["bytes"], shard["sha256"]) == (9, len(content), hashlib.sha256(content).hexdigest())
    source = PreparedSource(data, "train")
    for index, record in enumerate(ArrayRecordReader(str(folder / shard["file"])).read_all()):
        tensors = dict(safetensors.deserialize(record))
        captions = CAPTIONS[index % len(CAPTIONS)]
        assert list(source.captions(index)) == captions
        lengths = np.frombuffer(tensors["lengths"]["data"], np.int32)
        assert len(lengths) == len(captions) and (lengths > 0).all()
        assert tensors["vectors"]["dtype"] == "BF16" and tensors["vectors"]["shape"] == [lengths.sum(), 8]
        assert bytes(tensors["captions"]["data"]) == hashlib.sha256(json.dumps(captions).encode()).digest()


# Writing


def test_a_killed_encoding_goes_on_where_it_stopped_and_ends_alike(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_word_vectors(data, str(whole), random_projection, HASHED, images_per_shard=2)
    calls = []

    def dying(captions):
        calls.append(captions)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return random_projection(captions)

    with pytest.raises(KeyboardInterrupt):
        write_word_vectors(data, str(killed), dying, HASHED, images_per_shard=2)
    work = partial_path(killed)
    assert not killed.exists() and sorted(path.name for path in (work / "data").iterdir()) == [
        "train-00000-of-00005.array_record",
        "train-00001-of-00005.array_record",
    ]
    (work / "data" / "train-00002-of-00005.array_record.tmp").write_bytes(b"half")  # what a power cut leaves
    with pytest.raises(UserError, match=r"killed.partial .*dtype \(there float16, here bfloat16\)"):
        write_word_vectors(data, str(killed), dying, dataclasses.replace(HASHED, dtype="bfloat16"), images_per_shard=2)
    assert len(calls) == 3
    train = work / "data" / "train-00001-of-00005.array_record"
    content = train.read_bytes()
    train.write_bytes(content[:-1])
    with pytest.raises(UserError, match="train-00001-of-00005.array_record"):
        write_word_vectors(data, str(killed), dying, HASHED, images_per_shard=2)
    train.write_bytes(content)
    changed = prepare_images(tmp_path / "changed", [["another"], *CAPTIONS[1:]])
    with pytest.raises(UserError, match="train-00000-of-00005.array_record .*other captions"):
        write_word_vectors(changed, str(killed), dying, HASHED, images_per_shard=2)
    write_word_vectors(data, str(killed), dying, HASHED, images_per_shard=2)
    # Shards of train: 2 + 2 + 2 + 2 + 1 images, of val: 2 + 1; where no image has captions nothing is asked. The two
    # finished ones are not asked for again, the one that failed is.
    assert len(calls) == 3 + 5 and calls[3] == calls[2] and not work.exists()
    assert sorted(path.suffix for path in killed.iterdir()) == [".array_record"] * 7 + [".json"]
    assert (killed / "words.json").exists()
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    write_word_vectors(data, str(killed), lambda captions: 1 / 0, HASHED)  # is whole: nothing to do
    with pytest.raises(UserError, match=r"killed .*width \(there 6, here 7\)"):
        write_word_vectors(data, str(killed), random_projection, dataclasses.replace(HASHED, width=7))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine exists already"):
        write_word_vectors(data, str(tmp_path / "mine"), random_projection, HASHED)


def test_processes_share_the_shards_of_one_folder(data, tmp_path):
    alone, shared, asked = tmp_path / "alone", tmp_path / "shared", []
    write_word_vectors(data, str(alone), random_projection, HASHED, images_per_shard=2)
    together = threading.Barrier(2, timeout=60)

    def process(index: int) -> None:
        def encode(captions):
            asked.append(index)
            return random_projection(captions)

        both = Processes(index, 2, lambda name: together.wait())
        write_word_vectors(data, str(shared), encode, HASHED, images_per_shard=2, processes=both)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, (0, 1)))
    assert set(asked) == {0, 1}
    ours, theirs = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (alone, shared))
    assert ours == theirs and not partial_path(shared).exists()


def test_two_encoders_do_not_write_one_folder(data, tmp_path):
    def nested(captions):
        with pytest.raises(UserError, match="words.partial is in use"):
            write_word_vectors(data, str(tmp_path / "words"), random_projection, HASHED)
        return random_projection(captions)

    write_word_vectors(data, str(tmp_path / "words"), nested, HASHED)


BAD_ANSWERS = {
    "too few": (lambda texts: random_projection(texts)[1:], "returned 17 arrays for 18 captions"),
    "a wide one": (lambda texts: [np.zeros((2, 7))] * len(texts), r"image 0, 'a red star': .* shape \(2, 7\), not 1"),
    "a long one": (lambda texts: [np.zeros((WORDS + 1, 6))] * len(texts), r"shape \(11, 6\), not 1 to 10 words by 6"),
    "no word": (lambda texts: [np.zeros((0, 6))] * len(texts), r"shape \(0, 6\)"),
    "flat": (lambda texts: [np.zeros(6)] * len(texts), r"shape \(6,\)"),
    "NaN": (lambda texts: [np.full((1, 6), np.nan)] * len(texts), "not finite in float16"),
    "large": (lambda texts: [np.full((1, 6), 1e5)] * len(texts), "not finite in float16"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_what_cannot_be_stored_is_refused_and_nothing_is_left(data, tmp_path, case):
    encode, said = BAD_ANSWERS[case]
    with pytest.raises(UserError, match=said) as refusal:
        write_word_vectors(data, str(tmp_path / "words"), encode, HASHED)
    assert "\n" not in str(refusal.value) and list(tmp_path.iterdir()) == []


# Reading what does not fit


def change_stamp(folder: Path, **changes):
    path = folder / "words.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_record(folder: Path, change):
    """Rewrites the first record of train."""
    (shard,) = json.loads((folder / "words.json").read_text())["splits"]["train"]
    path = folder / shard["file"]
    records = ArrayRecordReader(str(path)).read_all()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index, record in enumerate(records):
        writer.write(change(record) if index == 0 else record)
    writer.close()
    splits = json.loads((folder / "words.json").read_text())["splits"]
    splits["train"][0]["bytes"] = path.stat().st_size
    change_stamp(folder, splits=splits)


def spoil(**changes):
    """A change of the first record's tensors."""

    def change(record: bytes) -> bytes:
        tensors = {
            name: np.frombuffer(tensor["data"], {"F16": np.float16, "I32": np.int32, "U8": np.uint8}[tensor["dtype"]])
            for name, tensor in safetensors.deserialize(record)
        }
        tensors["vectors"] = tensors["vectors"].reshape(-1, 8)
        return safetensors.numpy.save(tensors | {name: edit(tensors[name].copy()) for name, edit in changes.items()})

    return lambda folder: change_record(folder, change)


def flip(folder: Path):
    path = next(folder.glob("train*"))
    content = bytearray(path.read_bytes())
    content[200] ^= 0x55
    path.write_bytes(content)


def nan(vectors):
    vectors[-1, -1] = np.nan
    return vectors


SPOILT = {
    "no folder": (shutil.rmtree, "words.json"),
    "unfinished": (
        lambda folder: (folder / "words.json").rename(folder / "command.json"),
        "words.json",
    ),
    "cut short": (lambda folder: (folder / "words.json").write_text("{"), "words.json"),
    "a list": (lambda folder: (folder / "words.json").write_text("[]"), "words.json"),
    "no width": (lambda folder: change_stamp(folder, width=None), "width is None"),
    "later version": (lambda folder: change_stamp(folder, version=2), "version 2, in float16"),
    "float64": (lambda folder: change_stamp(folder, dtype="float64"), "in float64"),
    "other dtype": (lambda folder: change_stamp(folder, dtype="bfloat16"), "image 0: the record holds .*F16"),
    "other width": (lambda folder: change_stamp(folder, width=9), "image 0: vectors .* do not fit words.json"),
    "no train": (lambda folder: change_stamp(folder, splits={}), "no vectors of split 'train'"),
    "missing shard": (lambda folder: next(folder.glob("train*")).unlink(), "train-00000.* is missing"),
    "half a shard": (lambda folder: next(folder.glob("train*")).write_bytes(b"x"), "train-00000.* 131072 bytes"),
    "outside": (
        lambda folder: change_stamp(
            folder, splits={"train": [{"file": "../x", "images": 9, "bytes": 1, "sha256": ""}]}
        ),
        r"\.\./x",
    ),
    "a flipped bit": (flip, "image 0: "),
    "NaN": (spoil(vectors=nan), "image 0: its vectors are not all finite"),
    "one word less": (spoil(vectors=lambda x: x[1:]), "do not fit words.json"),
    "one length less": (spoil(lengths=lambda x: x[1:]), "4 captions have vectors of lengths"),
    "a caption without words": (spoil(lengths=lambda x: x * 0), "4 captions have vectors of lengths"),
    "longer captions": (spoil(lengths=lambda x: x + 1), "do not fit words.json"),
    "other captions": (spoil(captions=lambda x: x[::-1]), "image 0: .*other captions"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_an_unusable_folder_is_refused_in_one_line(data, stored, tmp_path, case):
    folder = Path(shutil.copytree(stored / "float16", tmp_path / "words"))
    edit, said = SPOILT[case]
    edit(folder)
    with pytest.raises(UserError, match=said) as refusal:
        config = config_of(data, folder)
        config_data.training_source(config, config_data.word_folders(config))
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)


def test_a_record_in_the_middle_is_refused_when_it_is_read(data, tmp_path):
    source = PreparedSource(data, "train")
    write_word_vectors(data, str(tmp_path / "words"), random_projection, HASHED)
    changed = prepare_images(tmp_path / "changed", [*CAPTIONS[:5], ["another"]])
    words = WordVectorFolder(str(tmp_path / "words"))
    assert len(words.attach(source, "train")[5].captions) == 3
    other = words.attach(PreparedSource(changed, "train"), "train")  # first and last are as they were
    assert len(other[0].captions) == 4
    with pytest.raises(UserError, match="split train: image 5: .*other captions"):
        other[5]
    with pytest.raises(UserError, match="has vectors of 9 images, the data 3"):
        words.attach(PreparedSource(data, "val"), "train")


def test_what_the_run_asks_for_is_compared_with_the_stamp(data, text, stored, tmp_path):
    other = str(tiny.t5_folder(tmp_path / "other", seed=1))
    vocabulary = tmp_path / "other.model"
    vocabulary.write_bytes(b"pieces")
    write_word_vectors(data, str(tmp_path / "hashed"), random_projection, HASHED)
    good = {"model.text_weights": text, "captions.vocabulary": scenes_vocabulary_path()}
    assert len(config_data.word_folders(config_of(data, stored / "float16", **good))) == 1
    cases = {
        "words 10, captions.words has 12": {"captions.words": 12},
        "weights [0-9a-f]{12}, model.text_weights has [0-9a-f]{12}; encode": {"model.text_weights": other},
        "vocabulary [0-9a-f]{12}, captions.vocabulary has": {"captions.vocabulary": str(vocabulary)},
        "hashed was encoded with weights None": {"captions.vectors": str(tmp_path / "hashed"), **good},
    }
    for said, changes in cases.items():
        with pytest.raises(UserError, match=said):
            config_data.word_folders(config_of(data, stored / "float16", **changes))
    mixed = config_of(f"{data},{data}", f"{stored}/float16,{stored}/bfloat16")
    with pytest.raises(UserError, match="bfloat16 was encoded with dtype bfloat16, .*float16 has float16"):
        config_data.word_folders(mixed)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.text": "stored"},
        {"model.text": "stored", "captions.vectors": "x"},
        {"model.text": "stored", "captions.vectors": "x", "data.path": "a,b"},
    ],
)
def test_stored_words_need_a_folder_for_each_dataset(changes):
    config = tiny_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as refused:
        validate(config)
    assert refused.value.about == "captions.vectors"


def test_records_of_every_dtype_come_back_to_the_bit():
    rng, captions = np.random.default_rng(0), ["a b", "d e f", "c"]
    for dtype, form in DTYPES.items():
        stamp = dataclasses.replace(HASHED, dtype=dtype)
        vectors = [rng.normal(size=(length, 6)).astype(form) for length in (2, 3, 1)]
        found = unpack(pack(vectors, captions, stamp), captions, stamp)
        for a, b in zip(vectors, found, strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)
    assert digest(["a", "b"]) != digest(["a\nb"])
    assert unpack(pack([], [], HASHED), [], HASHED) == ()


# The command


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.encode_captions", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_says_how_large_and_writes_what_the_library_does(data, text, stored, tmp_path):
    own = shutil.copytree(data, tmp_path / "data")
    done = launch(f"--data={own}", f"--text={text}", f"--words={WORDS}", "--dtype=float16", "--batch_size=8")
    assert done.returncode == 0, done.stderr
    pieces = sum(len(vectors) for vectors in T5Captions(text, WORDS, 8)([c for x in CAPTIONS for c in x]))
    assert f"12 images, 1.83 captions of {pieces / 11:.1f} words" in done.stdout  # 11 of each 6 images
    assert f"{pieces * 2 * 8 * 2 / 12 / 1e3:.1f} kB per image" in done.stdout
    assert done.stdout.endswith("data/words/t5 has the word vectors of all captions: 9 train, 3 val\n")
    written = Path(own) / "words" / "t5"
    assert {path.name: path.read_bytes() for path in written.iterdir()} == {
        path.name: path.read_bytes() for path in (stored / "float16").iterdir()
    }
    assert len(PreparedSource(str(own), "train")) == 9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data=scenes", "--text=t5"], "--data=scenes"),
        (["--data=x"], "--data=FOLDER.*--text=T5"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(arguments, said):
    done = launch(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(said, done.stderr)
