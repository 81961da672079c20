"""What is given in the place of a file: pipes, links to devices, Git LFS pointers, JSON and sizes without a bottom."""

import json
import os
from pathlib import Path
import shutil
import socket
import struct

from PIL import Image
import pytest

from tc_jepa.convert import folder as converted
from tc_jepa.convert import hf_ijepa, t5, tensors, torch_files
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.feature_classes import check_feature_classes
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.pictures import read_mask_values
from tc_jepa.data.prepare.tars import prepare_tars
from tc_jepa.data.prepare.trees import prepare_imagefolder, prepare_segmentation
from tc_jepa.data.prepare.word_labels import read_listing
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.errors import UserError
from tc_jepa.report.looks import read_images
from tc_jepa.storage.checkpoint import read_config, restore_trained
from tc_jepa.storage.run_data import recorded

FIXTURES = Path(__file__).parent / "fixtures"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def refused(function, *arguments) -> str:
    with pytest.raises(UserError) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def bind(path: Path) -> None:
    """A socket; its path may have only about 100 bytes, so it is made where it is."""
    before = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


ODD = {
    "pipe": os.mkfifo,
    "socket": bind,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with an image and a mask in each of two forms of layout."""
    for name in ("a.png", "train/dog/a.png", "masks/train/dog/a.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / name)
    (tmp_path / "classes.txt").write_text("wall\n")
    (tmp_path / "tree").mkdir()
    return tmp_path / "images"


def prepare_listed(images: Path, **names: str) -> None:
    listing = images.parent / "captions.jsonl"
    listing.write_text(json.dumps({"file": "a.png", "captions": []} | names) + "\n")
    prepare_folder(str(images), str(listing), str(images.parent / "out"))


def prepare_tree(images: Path) -> None:
    shutil.move(images / "train", images.parent / "tree" / "train")
    prepare_imagefolder(str(images.parent / "tree"), str(images.parent / "out"))


def prepare_masked(images: Path) -> None:
    root = images.parent
    shutil.move(images / "train", root / "tree" / "train")
    prepare_segmentation(str(root / "tree"), str(images / "masks"), str(root / "classes.txt"), str(root / "out"))


DOORS = {  # what to replace, and what reads it
    "image": ("a.png", prepare_listed),
    "mask": ("m.png", lambda images: prepare_listed(images, mask="m.png")),
    "image in a tree": ("train/cat/b.png", prepare_tree),
    "mask in a tree": ("masks/train/dog/a.png", prepare_masked),
    "listing": ("l.jsonl", lambda images: prepare_folder(str(images), str(images / "l.jsonl"), str(images / "out"))),
    "listing for words": ("l.jsonl", lambda images: read_listing(images / "l.jsonl")),
    "classes": ("classes.txt", lambda images: read_mask_values(str(images / "classes.txt"), 0, None)),
    "tar": ("a.tar", lambda images: prepare_tars([str(images / "a.tar")], str(images / "out"))),
    "image of a report": ("r.png", lambda images: read_images([str(images / "r.png")], 4)),
    "vocabulary": ("v.model", lambda images: CaptionTokenizer(str(images / "v.model"), 4)),
    "config.json": ("config.json", lambda images: tensors.read_json(images / "config.json")),
    "safetensors": ("a.safetensors", lambda images: tensors.tensors_in(images / "a.safetensors")),
    ".pth.tar": ("a.pth.tar", lambda images: torch_files.load(images / "a.pth.tar")),
    "run's config.json": ("config.json", lambda images: read_config(images)),
    "word vectors": ("words.json", lambda images: WordVectorFolder(str(images))),
    "features.json": ("features.json", lambda images: PreparedSource(str(images), "train")),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("door", DOORS)
def test_only_regular_files_are_opened(images, door, kind):
    name, read = DOORS[door]
    path = images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    ODD[kind](path)
    if (door, kind) in {("image in a tree", "folder"), ("mask in a tree", "folder")}:
        return  # folders are searched there
    if door == ".pth.tar":
        pytest.importorskip("torch")
    assert path.name in refused(read, images) or door == "features.json"
    assert not (images.parent / "out").exists()


DEEP = {"lists": "[" * 100_000 + "]" * 100_000, "objects": '{"a":' * 100_000 + "1" + "}" * 100_000}
SHALLOWER = '{"a":' * 600 + "1" + "}" * 600  # which json reads, but not what converts it


@pytest.mark.parametrize("deep", [*DEEP.values(), SHALLOWER], ids=[*DEEP, "600 objects"])
def test_json_without_a_bottom_is_refused_at_once(tmp_path, deep):
    text = '{"a": ' + deep + "}"
    for name in ("config.json", "data.json", "features.json", "dataset_info.json", "words.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "captions.jsonl").write_text(text + "\n")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode())
    refused(tensors.tensors_in, tmp_path / "a.safetensors")
    refused(PreparedSource, str(tmp_path), "train")
    refused(WordVectorFolder, str(tmp_path))
    assert "captions.jsonl:1" in refused(read_listing, tmp_path / "captions.jsonl")
    if deep is not SHALLOWER:
        assert "nested" in refused(tensors.read_json, tmp_path / "config.json")
        assert "data.json" in refused(recorded, tmp_path)
        assert "config.json" in refused(read_config, tmp_path)
        with pytest.raises(ValueError, match="nested"):
            check_feature_classes(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"depth": 10**9}, "depth of 1000000000"), ({"image_size": 8 << 30}, "more than can be built")],
)
def test_a_config_that_asks_for_petabytes_is_refused_before_anything_is_built(tmp_path, monkeypatch, changes, message):
    sizes = {"width": 192, "depth": 1, "heads": 3, "hidden": 768, "patch_size": 8, "image_size": 32}
    described = sizes | {"stored_positions": False} | changes
    config = {"format": converted.FORMAT, "version": converted.VERSION, "encoder": described}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(converted, "abstract_params", None)
    assert message in refused(converted.load, tmp_path)
    theirs = dict(zip(hf_ijepa.INTEGERS, (described[key] for key in converted.SIZES), strict=True))
    (tmp_path / "config.json").write_text(json.dumps(theirs | {"model_type": "ijepa"}))
    assert message in refused(hf_ijepa.load, tmp_path)


def test_a_t5_of_many_layers_is_refused(tmp_path):
    shutil.copytree(FIXTURES / "t5_v1_1", tmp_path / "t5")
    config = json.loads((tmp_path / "t5/config.json").read_text())
    (tmp_path / "t5/config.json").write_text(json.dumps(config | {"num_layers": 10**9}))
    assert "num_layers is 1000000000" in refused(t5.load, tmp_path / "t5")


LFS_DOORS = {
    name: DOORS[name]
    for name in ("image", "image of a report", "tar", "vocabulary", "config.json", "safetensors", ".pth.tar")
}


@pytest.mark.parametrize(("name", "read"), LFS_DOORS.values(), ids=LFS_DOORS)
def test_a_git_lfs_pointer_is_called_one(images, name, read):
    if name == "a.pth.tar":
        pytest.importorskip("torch")
    (images / name).write_bytes(POINTER)
    message = refused(read, images)
    assert name in message and "Git LFS pointer" in message and "git lfs pull" in message


def test_shards_and_checkpoints_of_git_lfs_are_called_so(images):
    prepare_listed(images)
    (shard,) = (images.parent / "out").glob("*array_record*")
    shard.write_bytes(POINTER)
    assert "Git LFS pointer" in refused(PreparedSource, str(images.parent / "out"), "train")
    state = images / "checkpoints" / "3" / "state"
    state.mkdir(parents=True)
    (state.parent / "_CHECKPOINT_METADATA").write_text("{}")
    (state / "_METADATA").write_bytes(POINTER)
    assert "_METADATA: it is a Git LFS pointer" in refused(restore_trained, images, None, "encoder")


def test_the_vocabulary_is_read_through_a_link(tmp_path):
    (tmp_path / "v.model").symlink_to(scenes_vocabulary_path())
    assert CaptionTokenizer(tmp_path / "v.model", 4).vocabulary_size
