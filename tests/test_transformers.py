"""Files of PyTorch and transformers are read here, and files written here are read there. Slow: .ci/run installs both.

Without them these tests fail and do not skip: a check that is not made must not pass.
"""

import os
from pathlib import Path
import pickle
import shutil
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

import tc_jepa
from tc_jepa.convert import hf_ijepa, ijepa, t5
from tc_jepa.convert.weights import EncoderWeights, square_encoder
from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.transforms import resize_and_centre_crop
from tc_jepa.models import layers, vit
from tc_jepa.pretrained import encoder as pretrained
from tests import tiny
from tests.preparing import PHOTO_LINES, PHOTOS
from tests.test_train import lines, tiny_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
CLOSE = {"rtol": 0, "atol": 1e-4}


def launch(module, *arguments):
    command = [sys.executable, "-m", f"launch.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def transformers_features(path, images):
    """last_hidden_state of a Hugging Face folder, from normalised images [B, H, W, 3] of any size."""
    import torch
    import transformers

    model, problems = transformers.IJepaModel.from_pretrained(path, output_loading_info=True)
    assert not any(problems.values()), problems
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    resized = images.shape[1:3] != (model.config.image_size,) * 2
    with torch.no_grad():
        return model.eval()(pixels, interpolate_pos_encoding=resized).last_hidden_state.numpy()


def normalised(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint():
    """The fixture's official checkpoint as the official code holds it."""
    import torch

    networks = {name: {} for name in (*ijepa.NETWORKS, "predictor")}
    for name, tensor in load_file(FIXTURES / "ijepa_tiny" / "weights.safetensors").items():
        network, _, key = name.partition("/")
        networks[network][key] = torch.from_numpy(tensor)
    return networks | {"opt": {"state": {}}, "scaler": None, "epoch": 3, "loss": 0.1}


@pytest.mark.parametrize("zipped", [True, False])
def test_an_official_file_becomes_a_folder_with_its_features(checkpoint, zipped, tmp_path):
    import torch

    file = tmp_path / "tiny.pth.tar"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    done = launch("convert", "--from=ijepa", f"--input={file}", f"--output={tmp_path}/ours", "--heads=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("patch 8, 64 px, sine-cosine positions, and predictor\n")
    done = launch("convert", "--to=hf_ijepa", f"--input={tmp_path}/ours", f"--output={tmp_path}/theirs")
    assert done.returncode == 0, done.stderr
    with np.load(FIXTURES / "ijepa_tiny" / "expected.npz") as expected:
        images, target = expected["images"], expected["target_normalised"]
    found = np.asarray(tc_jepa.load_encoder(tmp_path / "ours")(images, normalise=False))
    deviation = np.sqrt(found.var(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose((found - found.mean(axis=-1, keepdims=True)) / deviation, target, **CLOSE)
    np.testing.assert_allclose(transformers_features(tmp_path / "theirs", images), found, **CLOSE)


def test_from_an_official_file_through_training_to_hugging_face(checkpoint, tmp_path, monkeypatch):
    """An official I-JEPA is trained further on captioned photographs and exported as a Hugging Face model."""
    import torch

    monkeypatch.setitem(vit.SIZES, "golden", vit.Size(width=48, depth=3, heads=4, hidden=192))
    torch.save(checkpoint, tmp_path / "ijepa.pth.tar")
    done = launch(
        "convert", "--from=ijepa", f"--input={tmp_path}/ijepa.pth.tar", f"--output={tmp_path}/ours", "--heads=4"
    )
    assert done.returncode == 0, done.stderr
    data = str(tmp_path / "photos")
    prepare_folder(str(PHOTOS), str(PHOTOS / "captions.jsonl"), data, scenes_vocabulary_path())

    settings = {"model.encoder": "golden", "model.predictor.width": 24, "model.predictor.depth": 2, "image.size": 64}
    config = tiny_config(**settings, **{"data.path": data, "train.init_from": str(tmp_path / "ours")})
    tiny.train(config, tmp_path / "run")
    metrics = lines(tmp_path / "run")
    assert metrics[-1]["step"] == config.train.steps and np.isfinite(metrics[-1]["loss"])
    assert metrics[-1]["captions"] > 0

    before, after = (pretrained.open_encoder(tmp_path / name) for name in ("ours", "run"))
    assert (
        np.abs(
            before.params["blocks_0"]["attn"]["qkv"]["kernel"] - after.params["blocks_0"]["attn"]["qkv"]["kernel"]
        ).max()
        > 0
    )
    hf = tmp_path / "theirs"
    hf.mkdir()
    hf_ijepa.save(after, hf)
    encoder = tc_jepa.load_encoder(tmp_path / "run")
    photo = cv2.cvtColor(cv2.imread(str(PHOTOS / PHOTO_LINES[0]["file"])), cv2.COLOR_BGR2RGB)
    image = resize_and_centre_crop(photo, 64)
    expected = transformers_features(hf, np.asarray(layers.normalise_images(image[None])))
    np.testing.assert_allclose(encoder(image[None]), expected, **CLOSE)


class Command:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_without_a_checkpoint_are_refused_and_no_code_in_them_runs(checkpoint, tmp_path):
    import torch

    trap = tmp_path / "was_run"
    cases = {  # what the message names beside the file
        "zip": "PyTorch",
        "jpeg": "PyTorch",
        "half": "PyTorch",
        "pickle": "posix.mkdir",
        "torch_pickle": "which could run code",
        "list": "list",
        "integers": "'module.norm.bias'",
        "no_target": "target_encoder",
    }
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a/b.txt", "x")
    shutil.copy(next((FIXTURES / "photos" / "images").iterdir()), tmp_path / "jpeg")
    torch.save(checkpoint, tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:400_000])
    (tmp_path / "pickle").write_bytes(pickle.dumps({"target_encoder": Command(trap)}, protocol=2))
    torch.save({"target_encoder": Command(trap)}, tmp_path / "torch_pickle")
    torch.save([1], tmp_path / "list")
    integers = {"module.norm.bias": torch.zeros(48, dtype=torch.int64)}
    torch.save({"target_encoder": checkpoint["target_encoder"] | integers}, tmp_path / "integers")
    torch.save({"encoder": checkpoint["encoder"]}, tmp_path / "no_target")
    for name, named in cases.items():
        done = launch("convert", "--from=ijepa", f"--input={tmp_path / name}", f"--output={tmp_path}/out", "--heads=4")
        assert done.returncode == 2 and done.stdout == "", name
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert named in done.stderr and str(tmp_path / name) in done.stderr, done.stderr
    assert not trap.exists()
    assert {path.name for path in tmp_path.iterdir()} == cases.keys() | {"whole"}


def test_an_exported_encoder_gives_the_same_features_in_transformers(tmp_path):
    short = ["--config.train.steps=3", "--config.train.batch_size=8", "--config.optimizer.warmup_steps=1"]
    done = launch("train", "--config=configs/scenes_standard.py", f"--workdir={tmp_path}/run", *short)
    assert done.returncode == 0, done.stderr
    done = launch("convert", "--to=hf_ijepa", f"--input={tmp_path}/run", f"--output={tmp_path}/theirs")
    assert done.returncode == 0, done.stderr
    encoder = tc_jepa.load_encoder(tmp_path / "run")
    for size in ((60, 60), (80, 40)):
        images = normalised(2, *size)
        expected = transformers_features(tmp_path / "theirs", images)
        np.testing.assert_allclose(encoder(images, normalise=False), expected, **CLOSE)


@pytest.mark.parametrize("size", [(56, 56), (84, 42)])
def test_stored_positions_are_resized_as_in_transformers(size):
    images = normalised(2, *size)
    expected = transformers_features(FIXTURES / "hf_ijepa_tiny", images)
    found = tc_jepa.load_encoder(FIXTURES / "hf_ijepa_tiny")(images, normalise=False)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_the_exported_preprocessing_is_that_of_this_project(tmp_path):
    import transformers

    rng = np.random.default_rng(0)
    encoder = square_encoder(vit.Size(16, 1, 2, 32), 16, 64, stored_positions=False)
    places = ijepa.encoder_places(encoder.size, 16, 16)
    official = {name: rng.normal(size=place.shape).astype(np.float32) for name, place in places.items()}
    weights = ijepa.from_official(official, encoder.size, 16, 64)
    assert isinstance(weights, EncoderWeights)
    hf_ijepa.save(weights, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)

    def theirs(image):
        return processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)

    whole = rng.integers(0, 256, (64, 90, 3), dtype=np.uint8)  # its shorter side fits: only the centre is cut out
    ours = np.asarray(layers.normalise_images(resize_and_centre_crop(whole, 64)))
    np.testing.assert_allclose(theirs(whole), ours, atol=1e-5)
    smooth = np.add.outer(np.arange(192.0), np.arange(256.0))[..., None] / 448 * np.array([255, 128, 64])
    ours = np.asarray(layers.normalise_images(resize_and_centre_crop(smooth.astype(np.uint8), 64)))
    np.testing.assert_allclose(theirs(smooth.astype(np.uint8)), ours, atol=0.05)


@pytest.mark.parametrize("shards", [False, True])
def test_a_t5_that_is_published_only_as_a_pickle_is_converted(shards, tmp_path):
    import torch
    import transformers

    source = FIXTURES / "t5_v1_1"
    stored = {name: torch.from_numpy(tensor) for name, tensor in load_file(source / "model.safetensors").items()}
    stored["decoder.final_layer_norm.weight"] = torch.zeros(48)
    pickled = tmp_path / "t5"
    pickled.mkdir()
    shutil.copy(source / "config.json", pickled)
    if shards:
        names = sorted(stored)
        for i in range(2):
            torch.save({name: stored[name] for name in names[i::2]}, pickled / f"pytorch_model-{i}.bin")
        places = ", ".join(f'"{name}": "pytorch_model-{i % 2}.bin"' for i, name in enumerate(names))
        (pickled / t5.PICKLE_INDEX).write_text(f'{{"weight_map": {{{places}}}}}')
    else:
        torch.save(stored, pickled / t5.PICKLE)
    done = launch("convert", "--from=t5", f"--input={pickled}", f"--output={tmp_path}/out")
    assert done.returncode == 0 and "spiece.model" in done.stdout, done.stderr
    with np.load(source / "expected.npz") as expected:
        ids, mask, vectors = expected["ids"], expected["mask"].astype(bool), expected["vectors"]
    np.testing.assert_allclose(
        np.asarray(tc_jepa.load_text_encoder(tmp_path / "out")(ids, mask))[mask], vectors, **CLOSE
    )
    model, problems = transformers.T5EncoderModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values()), problems
    with torch.no_grad():
        read = model.eval()(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    np.testing.assert_allclose(read.last_hidden_state.numpy()[mask], vectors, **CLOSE)


def test_a_t5_with_text_in_place_of_weights_is_refused(tmp_path):
    folder = tiny.t5_folder(tmp_path / "t5")
    (folder / "model.safetensors").unlink()
    (folder / t5.PICKLE).write_text("version https://git-lfs.github.com/spec/v1")
    done = launch("convert", "--from=t5", f"--input={folder}", f"--output={tmp_path}/out")
    assert done.returncode == 2 and t5.PICKLE in done.stderr
    assert not (tmp_path / "out").exists()
