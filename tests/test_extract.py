"""Features on disk: what a folder holds, that a killed command goes on, and that other work is never mixed in."""

from concurrent.futures import ThreadPoolExecutor
import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from tc_jepa.convert import folder
from tc_jepa.convert.weights import EncoderWeights, square_encoder
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation import encoder, extract
from tc_jepa.methods.method import init_encoder
from tc_jepa.models.vit import Size
from tc_jepa.storage.partial import partial_path, Processes
from tests.test_house import ROOT

SIZE, PATCH = 16, 4
SETTINGS = {"kinds": ("pooled", "patches"), "dtype": "float32", "images_per_shard": 5, "about": {"data": "scenes"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 training scenes, one to validate and one to test on."""
    path = tmp_path_factory.mktemp("data") / "scenes"
    prepare_scenes(12, str(path), seed=0, size=SIZE)
    return str(path)


@pytest.fixture(scope="module")
def pixels():
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    return encoder.frozen_pixels(image_size=SIZE, patch_size=PATCH, batch_size=8, mesh=mesh)


def sources(data):
    return {split: PreparedSource(data, split) for split in ("train", "val")}


def read(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def test_a_folder_holds_features_names_and_labels_in_the_order_of_the_data(data, pixels, tmp_path):
    output = tmp_path / "out" / "features"
    extract.extract(pixels, sources(data), output, **SETTINGS)
    assert sorted(path.name for path in output.iterdir()) == [
        "features.json",
        *(f"train-0000{i}-of-00003.npz" for i in range(3)),
        "val-00000-of-00001.npz",
    ]
    parts = [read(output / f"train-0000{i}-of-00003.npz") for i in range(3)]
    assert [len(part["pooled"]) for part in parts] == [5, 5, 2]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    source = sources(data)["train"]
    expected = pixels(np.stack([source[i].image for i in range(12)]))
    np.testing.assert_array_equal(rows["pooled"], expected.pooled)
    np.testing.assert_array_equal(rows["patches"], expected.patches)
    assert list(rows["name"]) == [source.file(i) for i in range(12)] and len(set(rows["name"])) == 12
    for task in source.tasks:
        np.testing.assert_array_equal(rows[task], [source.labels(i)[task] for i in range(12)])
    about = json.loads((output / "features.json").read_text())
    assert about["splits"] == {"train": 12, "val": 1} and about["data"] == "scenes"
    assert about["classes"] == {name: list(task.classes) for name, task in source.tasks.items()}


def test_a_killed_extraction_goes_on_and_equals_one_that_was_not(data, pixels, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    extract.extract(pixels, sources(data), whole, **SETTINGS)
    write, saved = extract.write_shard, []

    def killed(path, *rest):
        if len(saved) == 2:
            (path.with_name(f"{path.name}.tmp")).write_bytes(b"half of it")
            raise KeyboardInterrupt
        saved.append(path.name)
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            extract.extract(pixels, sources(data), halves, **SETTINGS)
    assert not halves.exists()

    with pytest.raises(UserError, match="halves.partial .*dtype"):
        extract.extract(pixels, sources(data), halves, **SETTINGS | {"dtype": "float16"})
    with monkeypatch.context() as patch:
        patch.setattr(extract, "write_shard", lambda path, *rest: (saved.append(path.name), write(path, *rest)))
        extract.extract(pixels, sources(data), halves, **SETTINGS)
    assert len(saved) == len(set(saved)) == 4  # nothing was computed twice
    assert sorted(path.name for path in halves.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.glob("*.npz"):
        ours, theirs = read(path), read(halves / path.name)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert not halves.with_name("halves.partial").exists()
    with pytest.raises(UserError, match="--output=.*halves"):
        extract.extract(pixels, sources(data), halves, **SETTINGS)


def test_processes_share_the_shards_of_one_folder(data, pixels, tmp_path, monkeypatch):
    alone, shared, saved, write = tmp_path / "alone", tmp_path / "shared", [], extract.write_shard
    extract.extract(pixels, sources(data), alone, **SETTINGS)
    monkeypatch.setattr(extract, "write_shard", lambda *given: (saved.append(threading.get_ident()), write(*given)))
    together = threading.Barrier(2, timeout=60)

    def process(index: int) -> None:
        both = Processes(index, 2, lambda name: together.wait())
        extract.extract(pixels, sources(data), shared, **SETTINGS, processes=both)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, (0, 1)))
    assert sorted(saved.count(one) for one in set(saved)) == [2, 2]
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    for path in alone.glob("*.npz"):
        ours, theirs = read(path), read(shared / path.name)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert not partial_path(shared).exists()


def test_features_that_are_not_finite_are_refused(data, tmp_path):
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    huge = encoder.FrozenEncoder(
        lambda params, images: encoder.EncoderOutput(images.reshape(-1, 1, 768) * 1e4, images[:, 0, 0] * 1e4),
        {},
        width=3,
        image_size=SIZE,
        patch_size=PATCH,
        batch_size=8,
        mesh=mesh,
    )
    settings = SETTINGS | {"kinds": ("pooled",), "dtype": "float16"}
    with pytest.raises(UserError, match="pooled.*float16.*--dtype"):
        extract.extract(huge, sources(data), tmp_path / "features", **settings)


@pytest.mark.parametrize("kinds", [[], ["cls"], ["pooled", "pooled"]])
def test_unknown_kinds_of_features_are_refused(kinds):
    with pytest.raises(UserError, match="--features=.*pooled, patches"):
        extract.check_kinds(kinds)


def test_the_command_reads_a_converted_folder(data, tmp_path):
    vit = square_encoder(Size(width=32, depth=1, heads=4, hidden=64), PATCH, SIZE, stored_positions=False)
    weights = tmp_path / "weights"
    weights.mkdir()
    folder.save(EncoderWeights(vit, init_encoder(vit, (SIZE, SIZE, 3), jax.random.key(0)), SIZE), weights, "a test")

    def launch(*arguments):
        command = [sys.executable, "-m", "launch.extract_features", f"--encoder={weights}", f"--data={data}"]
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)

    output = tmp_path / "features"
    done = launch(f"--output={output}", "--splits=val,test", "--features=patches", "--image_size=24")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: patches features of 1 val, 1 test images\n"
    assert read(output / "test-00000-of-00001.npz")["patches"].shape == (1, 36, 32)
    for arguments, named in (
        (["--output=x", "--splits=train,dev"], "split dev"),
        (["--output=x", "--image_size=30"], "--image_size=30"),
        ([], "--output"),
    ):
        refused = launch(*arguments)
        assert refused.returncode == 2 and named in refused.stderr, refused.stderr
        assert refused.stderr.count("error:") == 1 and not (ROOT / "x").exists()
