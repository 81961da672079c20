"""Trees of images, by class or beside masks, to a prepared folder and back; and what is refused on the way."""

from pathlib import Path
import shutil
import unicodedata

import numpy as np
from PIL import Image
import pytest

from tc_jepa.data.images import decode_image
from tc_jepa.data.prepare import dataset
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.prepare.trees import prepare_imagefolder, prepare_segmentation
from tc_jepa.data.prepared import PreparedSource, splits
from tc_jepa.errors import UserError
from tests.preparing import contents, PHOTO_LINES, PHOTOS, pickle_writer, write_lines

PHOTO = (PHOTOS / PHOTO_LINES[0]["file"]).read_bytes()


def plant(root: Path, *names: str, data: bytes | None = None) -> Path:
    """Files below `root`, each a picture of its own unless its bytes are given."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            Image.new("RGB", (6, 4), (number, len(name), 0)).save(path, "PNG")
        else:
            path.write_bytes(data)
    return root


@pytest.fixture
def animals(tmp_path) -> Path:
    return plant(
        tmp_path / "animals",
        *("train/dog/b.png", "train/dog/a.png", "train/cat/deep/er/a.png", "train/big bear/a.png"),
        *("val/cat/c.png", "val/dog/a.png", "val/big bear/z.png"),
    )


def prepare_animals(root: Path, **options) -> Summary:
    return prepare_imagefolder(str(root), str(root.parent / "out"), **options)


def test_images_come_back_with_the_class_of_their_folder(animals):
    plant(animals, "README.txt", "train/dog/.DS_Store", data=b"no image")
    prepare_animals(animals)
    found = {}
    for split in ("train", "val"):
        source = PreparedSource(str(animals.parent / "out"), split)
        classes = source.tasks["label"].classes
        assert source.tasks["label"].kind == "single" and classes == ("big bear", "cat", "dog")
        for index in range(len(source)):
            name = source.file(index)
            np.testing.assert_array_equal(source[index].image, decode_image((animals / name).read_bytes()))
            assert source[index].captions == ()
            found[name] = classes[source.labels(index)["label"]]
    assert list(found) == [
        *("train/big bear/a.png", "train/cat/deep/er/a.png", "train/dog/a.png", "train/dog/b.png"),
        *("val/big bear/z.png", "val/cat/c.png", "val/dog/a.png"),
    ]
    assert all(name.split("/")[1] == label for name, label in found.items())


def test_splits_may_have_their_longer_names_and_files_be_links(animals):
    (animals / "val").rename(animals / "validation")
    (animals / "train").rename(animals.parent / "elsewhere")
    (animals / "training").symlink_to(animals.parent / "elsewhere")
    prepare_animals(animals)
    assert splits(str(animals.parent / "out")) == {"train": 4, "val": 3}
    assert PreparedSource(str(animals.parent / "out"), "train").file(0) == "training/big bear/a.png"


def test_a_file_that_is_no_image_is_named_or_skipped(animals, capsys):
    plant(animals, "train/dog/half.jpg", data=PHOTO[:900])
    with pytest.raises(UserError, match=r"train/dog/half.jpg .*--skip_bad"):
        prepare_animals(animals)
    assert not (animals.parent / "out").exists()
    summary = prepare_animals(animals, skip_bad=True)
    assert summary.skipped == 1 and summary.images == {"train": 4, "val": 3}
    assert "half.jpg does not decode" in capsys.readouterr().err


def test_work_is_resumed_and_a_pickled_reader_writes_the_same(animals, monkeypatch, capfd):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 2)
    with monkeypatch.context() as patch:
        pickle_writer(patch)
        prepare_animals(animals)
    (animals.parent / "out").rename(animals.parent / "whole")
    plant(animals, "val/dog/a.png", data=b"no image")  # in the last of four shards
    with pytest.raises(UserError, match=r"val/dog/a.png .*\(3 of 4 shards are finished"):
        prepare_animals(animals)
    (animals / "val/dog/a.png").unlink()
    plant(animals, *["val/dog/a.png"] * 6)  # the sixth picture, as it was
    prepare_animals(animals)
    assert "3 of 4 shards are finished" in capfd.readouterr().err
    assert contents(animals.parent / "out") == contents(animals.parent / "whole")


def test_a_class_that_came_meanwhile_writes_all_labels_anew(animals, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 2)
    plant(animals, "val/dog/z.png", data=b"no image")
    with pytest.raises(UserError, match="3 of 4 shards are finished"):
        prepare_animals(animals)
    (animals / "val/dog/z.png").unlink()
    plant(animals, "train/ant/a.png", "val/ant/a.png")
    prepare_animals(animals)
    source = PreparedSource(str(animals.parent / "out"), "train")
    names = [source.tasks["label"].classes[source.labels(index)["label"]] for index in range(len(source))]
    assert names == ["ant", "big bear", "cat", "dog", "dog"]


def link_in_a_circle(root: Path) -> None:
    (root / "train/dog/up").symlink_to("..")


BAD_TREES = {
    "class in one split": (
        lambda root: plant(root, "train/cow/a.png", "val/ant/a.png"),
        "train has cow; val has ant",
    ),
    "class without images": (lambda root: (root / "val/eel").mkdir(), "val/eel"),
    "file in a split": (lambda root: plant(root, "train/a.png"), "train/a.png"),
    "no classes": (lambda root: (root / "test").mkdir(), "animals/test "),
    "split twice": (lambda root: plant(root, "validation/dog/a.png"), "both val and validation"),
    "unknown split": (lambda root: plant(root, "valid/dog/a.png"), "valid is not a split"),
    "broken link": (lambda root: (root / "train/dog/c.png").symlink_to("gone"), "dog/c.png cannot be read"),
    "circle": (link_in_a_circle, "train/dog/up/dog is a link"),
    "space after a name": (lambda root: plant(root, "train/dog /a.png"), "train: 'dog '"),
    "not UTF-8": (lambda root: plant(root, "train/dog/\udcff.png"), "Unicode"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TREES.values(), ids=BAD_TREES)
def test_a_tree_that_cannot_be_is_named_in_one_line(animals, change, message):
    change(animals)
    with pytest.raises(UserError, match=message) as error:
        prepare_animals(animals, skip_bad=True)
    assert "\n" not in str(error.value)
    assert [path.name for path in animals.parent.iterdir()] == ["animals"]


def test_classes_without_splits_are_told_where_to_go(animals):
    with pytest.raises(UserError, match="--images=.*train/train"):
        prepare_animals(animals / "train")
    with pytest.raises(UserError, match="--images=.*nowhere"):
        prepare_animals(animals / "nowhere")


MASK = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def draw(path: Path, mask: np.ndarray, colours: bool = False) -> None:
    image = Image.fromarray(mask)
    if colours:
        image.putpalette([200 - index % 200 for index in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Images and masks of 3 x 2 pixels, and the names of classes 0 to 3."""
    for name in ("images/train/a.png", "images/train/deep/a.jpg", "images/val/b.c.jpeg"):
        plant(tmp_path, name)
        Image.new("RGB", (3, 2), "red").save(tmp_path / name)
    draw(tmp_path / "masks/train/a.png", MASK)
    draw(tmp_path / "masks/train/deep/a.PNG", MASK[:, ::-1].copy(), colours=True)
    draw(tmp_path / "masks/val/b.c.png", MASK)
    (tmp_path / "classes.txt").write_text("background\npotted plant\nwall, wainscot\nsky\n")
    return tmp_path


def prepare_masks(root: Path, **options) -> Summary:
    names = ("images", "masks", "classes.txt", "out")
    return prepare_segmentation(*(str(root / name) for name in names), **options)


def test_masks_come_back_as_they_are_with_the_names_of_their_classes(scenes):
    prepare_masks(scenes)
    for split in ("train", "val"):
        source = PreparedSource(str(scenes / "out"), split)
        assert source.segmentations == {"mask": ("background", "potted plant", "wall, wainscot", "sky")}
        assert source.tasks == {} and source[0].captions == ()
    train = PreparedSource(str(scenes / "out"), "train")
    assert [train.file(index) for index in range(2)] == ["train/a.png", "train/deep/a.jpg"]
    np.testing.assert_array_equal(train.mask(0), MASK)
    np.testing.assert_array_equal(train.mask(1), MASK[:, ::-1])


def test_masks_that_begin_at_one_and_ignore_zero(scenes):
    (scenes / "classes.txt").write_text("plant\nwall\nsky\n")
    prepare_masks(scenes, first_class=1, ignore_index=0)
    source = PreparedSource(str(scenes / "out"), "train")
    assert source.segmentations == {"mask": ("plant", "wall", "sky")}
    np.testing.assert_array_equal(source.mask(0), [[255, 0, 1], [2, 255, 0]])


def test_an_image_that_does_not_decode_is_left_out_with_its_mask(scenes):
    plant(scenes, "images/train/a.png", data=b"no image")
    with pytest.raises(UserError, match="images/train/a.png .*--skip_bad"):
        prepare_masks(scenes)
    assert prepare_masks(scenes, skip_bad=True).skipped == 1
    source = PreparedSource(str(scenes / "out"), "train")
    assert len(source) == 1 and source.file(0) == "train/deep/a.jpg"


@pytest.fixture
def unfinished(scenes, monkeypatch) -> Path:
    """The scenes beside a partial in which all shards are whole."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset.statistics, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare_masks(scenes)
    assert len(list((scenes / "out.partial/progress").iterdir())) == 2
    return scenes


@pytest.mark.parametrize("change", ["image", "mask"])
def test_what_changed_meanwhile_is_read_anew(unfinished, change):
    if change == "image":
        Image.new("RGB", (3, 2), "blue").save(unfinished / "images/train/a.png", compress_level=0)
    else:
        draw(unfinished / "masks/train/a.png", np.zeros((2, 3), np.uint8))
    prepare_masks(unfinished)
    (unfinished / "out").rename(unfinished / "first")
    prepare_masks(unfinished)
    assert contents(unfinished / "out") == contents(unfinished / "first")


def test_fewer_classes_hold_every_mask_to_them_again(unfinished):
    (unfinished / "classes.txt").write_text("background\npotted plant\n")
    with pytest.raises(UserError, match="train/a.png .*0 to 1"):
        prepare_masks(unfinished)


def test_other_meanings_of_values_are_another_command(unfinished):
    with pytest.raises(UserError, match=r"ignore_index \(there None, here 9\)"):
        prepare_masks(unfinished, ignore_index=9)


BAD_MASKS = {
    "no mask": (lambda root: (root / "masks/val/b.c.png").unlink(), "images/val/b.c.jpeg has no mask"),
    "no image": (lambda root: (root / "images/val/b.c.jpeg").unlink(), "masks/val/b.c.png has no image"),
    "two images": (lambda root: plant(root, "images/train/a.gif"), "train/a.png and train/a.gif"),
    "size": (lambda root: draw(root / "masks/train/a.png", MASK.T.copy()), "train/a.png has 2 x 3 .* 3 x 2"),
    "value": (
        lambda root: draw(root / "masks/train/a.png", np.full((2, 3), 7, np.uint8)),
        "train/a.png contains 7.* 0 to 3",
    ),
    "colours": (lambda root: draw(root / "masks/train/a.png", np.zeros((2, 3, 3), np.uint8)), "train/a.png .*channel"),
    "no PNG": (lambda root: plant(root, "masks/train/a.txt"), "masks/train/a.txt"),
    "splits": (lambda root: plant(root, "images/test/a.png"), "images has the split test"),
    "no classes": (lambda root: (root / "classes.txt").unlink(), "--classes=.*classes.txt cannot"),
    "empty classes": (lambda root: (root / "classes.txt").write_text(""), "--classes=.* is empty"),
    "blank class": (lambda root: (root / "classes.txt").write_text("a\n\nb"), "classes.txt:2: ''"),
    "repeated": (lambda root: (root / "classes.txt").write_text("a\nb\na\n"), "txt:3 repeats 'a' of line 1"),
    "too many": (lambda root: write_lines(root / "classes.txt", [str(i) for i in range(256)]), "has 256 lines; .* 255"),
}


@pytest.mark.parametrize(("change", "message"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_masks_that_do_not_fit_are_named_in_one_line(scenes, change, message):
    change(scenes)
    with pytest.raises(UserError, match=message) as error:
        prepare_masks(scenes, skip_bad=True)
    assert "\n" not in str(error.value)
    assert not (scenes / "out").exists() and not (scenes / "out.partial").exists()


def test_a_value_is_no_class_and_ignored_at_once(scenes):
    with pytest.raises(UserError, match="--ignore_index=1 .*'potted plant'"):
        prepare_masks(scenes, ignore_index=1)
    with pytest.raises(UserError, match="train/a.png contains 0.* 1 to 4"):
        prepare_masks(scenes, first_class=1)


def test_an_image_and_its_mask_may_be_named_in_two_unicode_forms(tmp_path):
    for root, form in (("images", "NFC"), ("masks", "NFD")):
        (tmp_path / root / "train").mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / root / "train" / f"{unicodedata.normalize(form, 'é')}.png")
    (tmp_path / "classes.txt").write_text("wall\n")
    roots = str(tmp_path / "images"), str(tmp_path / "masks"), str(tmp_path / "classes.txt")
    assert prepare_segmentation(*roots, str(tmp_path / "out")).images == {"train": 1}
    shutil.copy(tmp_path / "masks/train" / f"{unicodedata.normalize('NFD', 'é')}.png", tmp_path / "masks/train/é.png")
    with pytest.raises(UserError, match="of the same image"):
        prepare_segmentation(*roots, str(tmp_path / "other"))
