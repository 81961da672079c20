"""Conversion of published weights and back, and the flags of launch.convert. Tests with torch: test_transformers.py.

fixtures/ijepa_tiny and hf_ijepa_tiny hold random weights under the official and under Hugging Face's names, and what
the original code computes from them.
"""

import json
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tc_jepa.convert import folder, hf_ijepa, ijepa, t5, tensors, torch_files
from tc_jepa.errors import UserError
from tc_jepa.models import vit
from tc_jepa.models.positions import sincos_positions
from tc_jepa.storage.files import new_folder
from tests import tiny

ROOT = Path(__file__).parent.parent
IJEPA, HF = ROOT / "tests/fixtures/ijepa_tiny", ROOT / "tests/fixtures/hf_ijepa_tiny"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def official():
    """The fixture's checkpoint as torch reads it: by network, tensors by name with the wrapper's prefix."""
    stored = load_file(IJEPA / "weights.safetensors")
    networks = {"encoder": {}, "target_encoder": {}, "predictor": {}}
    for name, tensor in stored.items():
        network, _, key = name.partition("/")
        networks[network][key] = tensor
    return networks


def changed(official, network="target_encoder", **changes):
    """A copy with tensors replaced, or removed where None. Their names have __ for a dot, and no prefix."""
    found = {name: dict(values) for name, values in official.items()}
    for name, value in changes.items():
        key = "module." + name.replace("__", ".")
        found[network].pop(key, None)
        if value is not None:
            found[network][key] = value
    return found


def features(weights, images):
    return np.asarray(jax.jit(weights.encoder.apply)({"params": weights.params}, images))


def saved(weights, path, **arguments):
    path.mkdir()
    (folder.save if "origin" in arguments else hf_ijepa.save)(weights, path, **arguments)
    return path


def refused(named: str, function, *arguments, **keywords) -> str:
    """The message of the UserError that a call ends in: one line that contains `named`."""
    with pytest.raises(UserError) as error:
        function(*arguments, **keywords)
    message = str(error.value)
    assert named in message and "\n" not in message
    return message


# Official files


@pytest.mark.parametrize("network", ijepa.NETWORKS)
def test_an_official_checkpoint_becomes_a_folder_with_its_features(official, network, tmp_path):
    weights = ijepa.from_checkpoint(official, network, 4, "file")
    assert weights.encoder.size == vit.Size(48, 3, 4, 192) and not weights.encoder.stored_positions
    assert (weights.encoder.patch_size, weights.image_size, weights.encoder.trained_grid) == (8, 64, (8, 8))
    path = saved(weights, tmp_path / "out", origin="here")
    again = folder.load(path, predictor=True)
    assert again.encoder == weights.encoder and again.image_size == 64
    jax.tree.map(np.testing.assert_array_equal, again.params, weights.params)
    jax.tree.map(np.testing.assert_array_equal, again.predictor, weights.predictor)
    assert folder.load(path).predictor is None
    with np.load(IJEPA / "expected.npz") as expected:
        found = features(again, expected["images"])
        if network == "target_encoder":
            found = jax.nn.standardize(found, axis=-1, epsilon=1e-5)
            np.testing.assert_allclose(found, expected["target_normalised"], **CLOSE)
        else:
            assert np.abs(jax.nn.standardize(found, axis=-1) - expected["target_normalised"]).max() > 0.1
    back = ijepa.to_official(again)
    for name, tensor in ijepa.without_wrapper(official[network]).items():
        exact = {"atol": 1e-6} if name == "pos_embed" else {"atol": 0, "rtol": 0}
        np.testing.assert_allclose(back.pop(name), tensor, **exact)
    assert not back


# Parameters in millions without positions, and keys, of the released files (ijepa_facts: their own config files).
RELEASES = {
    "IN1K-vit.h.14-300e": (vit.SIZES["huge"], 14, 256, 12, 389, 152, 630.4, 22.3),
    "IN1K-vit.h.16-448px-300e": (vit.SIZES["huge"], 16, 784, 12, 389, 152, 630.7, 22.3),
    "IN22K-vit.h.14-900e": (vit.SIZES["huge"], 14, 256, 12, 389, 152, 630.4, 22.3),
    "IN22K-vit.g.16-600e": (vit.SIZES["giant"], 16, 196, 16, 485, 200, 1011.1, 29.5),
}


@pytest.mark.parametrize("name", RELEASES)
def test_the_released_files_have_a_place_for_every_key(name):
    size, patch, N, depth, keys, predictor_keys, millions, predictor_millions = RELEASES[name]
    shapes = {
        "target_encoder": tensors.shapes(ijepa.encoder_places(size, patch, N)),
        "predictor": tensors.shapes(ijepa.predictor_places(384, depth, size.width, N)),
    }
    for network, count, of in (("target_encoder", keys, millions), ("predictor", predictor_keys, predictor_millions)):
        assert len(shapes[network]) == count
        trained = sum(np.prod(shape) for key, shape in shapes[network].items() if "pos_embed" not in key)
        assert trained / 1e6 == pytest.approx(of, abs=0.1)
    side = int(N**0.5)
    zero = {net: {k: np.broadcast_to(np.float32(0), s) for k, s in shapes[net].items()} for net in shapes}
    zero["target_encoder"]["pos_embed"] = sincos_positions((side, side), size.width)[None]
    zero["predictor"]["predictor_pos_embed"] = sincos_positions((side, side), 384)[None]
    weights = ijepa.from_checkpoint(zero, "target_encoder", None, name)
    assert weights.encoder.size == size and weights.image_size == side * patch
    assert weights.params[f"blocks_{size.depth - 1}"]["mlp"]["fc1"]["kernel"].shape == (size.width, size.hidden)
    assert f"blocks_{depth - 1}" in weights.predictor and f"blocks_{depth}" not in weights.predictor


@pytest.mark.parametrize(
    ("network", "changes", "named"),
    [
        ("target_encoder", {"blocks__1__norm1__bias": None}, "no blocks.1.norm1.bias"),
        ("target_encoder", {"norm__weight": None}, "no norm.weight"),
        ("target_encoder", {"patch_embed__proj__weight": None}, "no patch_embed.proj.weight"),
        ("target_encoder", {"pos_embed": None}, "no pos_embed"),
        ("target_encoder", {"cls_token": np.zeros(3, np.float32)}, "unexpected cls_token"),
        ("target_encoder", {"blocks__3000000000__mlp__fc1__bias": np.zeros(48, np.float32)}, "8 more; unexpected"),
        (
            "target_encoder",
            {"blocks__2__mlp__fc2__weight": np.zeros((48, 191), np.float32)},
            "(48, 191), not (48, 192)",
        ),
        ("target_encoder", {"pos_embed": np.zeros((1, 63, 48), np.float32)}, "63 positions"),
        ("predictor", {"mask_token": None}, "no mask_token"),
        ("predictor", {"predictor_proj__bias": np.zeros(3, np.float32)}, "predictor_proj.bias (3,)"),
        ("predictor", {"predictor_pos_embed": np.zeros((1, 64, 24), np.float32)}, "positions"),
    ],
)
def test_a_tensor_that_is_missing_unexpected_or_misshaped_is_named(official, network, changes, named):
    checkpoint = changed(official, network, **changes)
    message = refused(named, ijepa.from_checkpoint, checkpoint, "target_encoder", 4, "x.pth.tar")
    assert message.startswith(f"x.pth.tar, {network},")


@pytest.mark.parametrize(("heads", "named"), [(None, "--heads=N"), (5, "--heads=5"), (16, "predictor")])
def test_a_number_of_heads_must_be_given_and_fit_both_networks(official, heads, named):
    refused(named, ijepa.from_checkpoint, official, "encoder", heads, "x.pth.tar")


def test_positions_are_kept_unless_they_differ_by_rounding_alone(official):
    positions = official["target_encoder"]["module.pos_embed"]
    rounded = ijepa.from_checkpoint(changed(official, pos_embed=positions + 2e-4), "target_encoder", 4, "x")
    assert not rounded.encoder.stored_positions and "positions" not in rounded.params
    other = ijepa.from_checkpoint(changed(official, pos_embed=positions[:, ::-1]), "target_encoder", 4, "x")
    assert other.encoder.stored_positions
    np.testing.assert_array_equal(other.params["positions"], positions[0, ::-1])
    np.testing.assert_array_equal(ijepa.to_official(other)["pos_embed"], positions[:, ::-1])


@pytest.mark.parametrize("size", ((64, 64), (80, 48)))
def test_stored_positions_are_read_and_resized_as_computed_ones(official, size):
    computed = ijepa.from_checkpoint(official, "encoder", 4, "x")
    positions = sincos_positions((8, 8), 48)
    stored = computed._replace(
        encoder=computed.encoder.clone(stored_positions=True), params=computed.params | {"positions": positions}
    )
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    np.testing.assert_allclose(features(stored, images), features(computed, images), atol=1e-5)
    twice = stored._replace(params=stored.params | {"positions": 2 * positions})
    assert np.abs(features(twice, images) - features(computed, images)).max() > 0.1
    with pytest.raises(ValueError, match="trained_grid"):
        stored.encoder.clone(trained_grid=None).apply({"params": stored.params}, images)


# Hugging Face folders


def test_a_hugging_face_folder_keeps_its_features_and_every_bit_there_and_back(tmp_path):
    weights = hf_ijepa.load(HF)
    assert weights.encoder.stored_positions and weights.image_size == 56 and weights.encoder.size.heads == 4
    ours = folder.load(saved(weights, tmp_path / "ours", origin="here"))
    theirs = saved(ours, tmp_path / "theirs")
    with np.load(HF / "expected.npz") as expected:
        np.testing.assert_allclose(features(ours, expected["images"]), expected["last_hidden_state"], **CLOSE)
    before, after = load_file(HF / tensors.WEIGHTS), load_file(theirs / tensors.WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    written, published = (json.loads((path / tensors.CONFIG).read_text()) for path in (theirs, HF))
    assert {key: written[key] for key in published.keys() & written.keys()} == {
        key: published[key] for key in published.keys() & written.keys()
    }
    assert published.keys() - written.keys() == {"pooler_act", "pooler_output_size", "transformers_version"}
    preprocessing = json.loads((theirs / hf_ijepa.PREPROCESSOR).read_text())
    assert preprocessing["image_mean"] == [0.485, 0.456, 0.406] and preprocessing["image_std"] == [0.229, 0.224, 0.225]
    assert preprocessing["size"] == {"shortest_edge": 56} and preprocessing["crop_size"] == {"height": 56, "width": 56}


def test_shards_and_bfloat16_are_read(tmp_path):
    stored = {name: tensor.astype(jnp.bfloat16) for name, tensor in load_file(HF / tensors.WEIGHTS).items()}
    path = Path(shutil.copytree(HF, tmp_path / "hf"))
    (path / tensors.WEIGHTS).unlink()
    names = sorted(stored)
    save_file({name: stored[name] for name in names[::2]}, path / "a.safetensors")
    save_file({name: stored[name] for name in names[1::2]}, path / "b.safetensors")
    places = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(names)}
    (path / tensors.INDEX).write_text(json.dumps({"weight_map": places}))
    found, exact = hf_ijepa.load(path), hf_ijepa.load(HF)
    assert found.params["norm"]["scale"].dtype == np.float32
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2**-8), found.params, exact.params)
    for outside in ("../hf/a.safetensors", "/a.safetensors", ".."):
        (path / tensors.INDEX).write_text(json.dumps({"weight_map": places | {names[0]: outside}}))
        refused(repr(outside), hf_ijepa.load, path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda path: cut(path / tensors.WEIGHTS), "model.safetensors cannot be read"),
        (lambda path: (path / tensors.WEIGHTS).unlink(), "model.safetensors"),
        (lambda path: cut(path / tensors.CONFIG), "config.json"),
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"hidden_size": 64}, "embeddings.patch_embeddings.projection.bias (48,), not (64,)"),
        ({"num_hidden_layers": 2}, "unexpected encoder.layer.2.attention.attention.key.bias"),
        ({"num_hidden_layers": 4}, "no encoder.layer.3.attention.attention.key.bias"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"image_size": [56, 56]}, "image_size is [56, 56]"),
        ({"image_size": 60}, "60 px"),
    ],
)
def test_an_unusable_hugging_face_folder_is_refused(change, named, tmp_path):
    path = Path(shutil.copytree(HF, tmp_path / "hf"))
    if isinstance(change, dict):
        config = json.loads((path / tensors.CONFIG).read_text())
        (path / tensors.CONFIG).write_text(json.dumps(config | change))
    else:
        change(path)
    assert str(path) in refused(named, hf_ijepa.load, path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.update(version=2), "version 2"),
        (lambda config: config.update(encoder=None), "encoder"),
        (lambda config: config["encoder"].update(depth=2), "unexpected blocks_2/attn/proj/bias"),
        (lambda config: config["encoder"].update(heads=0), "heads is 0"),
        (lambda config: config["encoder"].update(heads=5), "5 heads"),
        (lambda config: config["encoder"].update(image_size=60), "60 px"),
        (lambda config: config["encoder"].update(stored_positions=False), "unexpected positions"),
        (lambda config: config.update(predictor=True), "predictor.safetensors"),
    ],
)
def test_an_unusable_converted_folder_is_refused(change, named, tmp_path):
    path = saved(hf_ijepa.load(HF), tmp_path / "ours", origin="here")
    config = json.loads((path / tensors.CONFIG).read_text())
    change(config)
    (path / tensors.CONFIG).write_text(json.dumps(config))
    assert str(path) in refused(named, folder.load, path, predictor=True)


# T5


def test_a_t5_becomes_a_folder_of_its_encoder_alone(tmp_path):
    source = tiny.t5_folder(tmp_path / "t5")
    stored = load_file(source / tensors.WEIGHTS)
    decoder = {"decoder.block.0.x": np.zeros(2, np.float32), "lm_head.weight": np.zeros(2, np.float32)}
    again = {"encoder.embed_tokens.weight": stored["shared.weight"]}
    save_file(stored | decoder | again, source / tensors.WEIGHTS)
    output = tmp_path / "out"
    output.mkdir()
    t5.convert(source, output)
    written = load_file(output / tensors.WEIGHTS)
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(written[name], tensor)
    assert (output / "spiece.model").read_bytes() == (source / "spiece.model").read_bytes()
    assert t5.load(output)[0] == t5.load(source)[0]
    assert json.loads((output / "config.json").read_text())["architectures"] == ["T5EncoderModel"]


# Files and the command


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b") as unfinished:
        (unfinished / "half").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "a" / "b") as unfinished:
        assert not (tmp_path / "a").exists()
        (unfinished / "whole").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "whole"]
    with pytest.raises(UserError, match=str(tmp_path / "a")), new_folder(tmp_path / "a"):
        pass


def test_weights_have_the_permissions_of_other_files(tmp_path):
    path = saved(hf_ijepa.load(HF), tmp_path / "ours", origin="here")
    assert (path / folder.ENCODER).stat().st_mode == (path / tensors.CONFIG).stat().st_mode


def test_without_torch_its_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused("pip install 'torch>=2.6'", torch_files.load, tmp_path / "x.pth.tar")


def convert(*arguments):
    command = [sys.executable, "-m", "launch.convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_converts_there_and_back(tmp_path):
    done = convert("--from=hf_ijepa", f"--input={HF}", f"--output={tmp_path}/ours")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (
        f"{tmp_path}/ours: encoder of width 48, depth 3, 4 heads, hidden 192, patch 14, 56 px, stored positions, "
        "without predictor\n"
    )
    done = convert("--to=hf_ijepa", f"--input={tmp_path}/ours", f"--output={tmp_path}/theirs")
    assert done.returncode == 0, done.stderr
    before, after = load_file(HF / tensors.WEIGHTS), load_file(tmp_path / "theirs" / tensors.WEIGHTS)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_refused_command_writes_one_line_and_no_folder():
    done = convert("--from=ijepa", "--input=nowhere", "--output=out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --input=nowhere ") and done.stderr.count("\n") == 1
    assert not (ROOT / "out").exists()


WRONG_FLAGS = [
    ([], "from"),
    (["--from=timm"], "from"),
    (["--from=t5", "--to=hf_ijepa"], "to"),
    (["--from=ijepa"], "input"),
    (["--from=ijepa", "--input=README.md"], "output"),
    (["--from=hf_ijepa", "--input=.", "--output=out", "--heads=3"], "heads"),
    (["--from=ijepa", "--input=README.md", "--output=out", "--step=3"], "step"),
    (["--from=ijepa", "--input=README.md", "--output=out", "--network=predictor"], "network"),
    (["--from=ijepa", "--input=tests", "--output=out"], "input"),
    (["--from=t5", "--input=README.md", "--output=out"], "input"),
]
CHECK_FLAGS = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from launch import convert
from tc_jepa.errors import UserError

for arguments in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["convert", *arguments])
        try:
            convert.check_flags()
        except UserError as error:
            assert "\\n" not in str(error)
            print(error.about)
"""


def test_a_wrong_flag_is_named():
    """In a process of its own: two commands whose flags have the same name cannot be imported together."""
    arguments = json.dumps([arguments for arguments, _ in WRONG_FLAGS])
    done = subprocess.run([sys.executable, "-c", CHECK_FLAGS, arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [named for _, named in WRONG_FLAGS], done.stderr


def test_an_output_that_exists_is_refused():
    done = convert("--from=ijepa", "--input=README.md", "--output=tests")
    assert done.returncode == 2 and "--output=tests" in done.stderr and done.stderr.count("\n") == 1
