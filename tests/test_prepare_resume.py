"""Preparation in several processes, killed, interrupted and resumed: always the same bytes."""

import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.prepare import dataset, pictures
from tc_jepa.data.prepare import workers as processes
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.prepare.tars import prepare_tars
from tc_jepa.data.prepared import PreparedSource, splits
from tc_jepa.errors import UserError
from tests.preparing import contents, PHOTO_LINES, PHOTOS, pickle_writer, write_lines, write_tar

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 2)


@pytest.fixture
def photos(tmp_path) -> Path:
    """12 photographs, in 4 shards of train and 2 of val."""
    return Path(shutil.copytree(PHOTOS, tmp_path / "photos"))


def run(photos: Path, output: str, **options) -> Summary:
    options = {"vocabulary": scenes_vocabulary_path(), "words": 12} | options
    return prepare_folder(str(photos), str(photos / "captions.jsonl"), str(photos.parent / output), **options)


def interrupted(photos: Path, monkeypatch, after: int, output: str = "out", **options) -> Path:
    """The partial that is left when Ctrl-C comes at an image."""
    decode, seen = pictures.decode_image, []

    def decode_or_stop(data):
        seen.append(data)
        if len(seen) > after:
            raise KeyboardInterrupt
        return decode(data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pictures, "decode_image", decode_or_stop)
        run(photos, output, **options)
    return photos.parent / f"{output}.partial"


def decoded(monkeypatch) -> list[bytes]:
    """Fills up with the images that are read from now on."""
    decode, seen = pictures.decode_image, []
    monkeypatch.setattr(pictures, "decode_image", lambda data: (seen.append(data), decode(data))[1])
    return seen


def test_shards_hold_the_splits_in_order(photos):
    run(photos, "out")
    for split in ("train", "val"):
        expected = [tuple(line["captions"]) for line in PHOTO_LINES if line["split"] == split]
        source = PreparedSource(str(photos.parent / "out"), split)
        assert [source[index].captions for index in range(len(source))] == expected
    assert len(list((photos.parent / "out").glob("*train*"))) == 4


@pytest.mark.parametrize(
    ("count", "size"), [(1, 1000), (512_000, 1000), (512_001, 2000), (511_000, 1000), (12_000_000, 32_000)]
)
def test_shards_are_small_yet_never_too_many(monkeypatch, count, size):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 1000)
    assert len(dataset.spans(count)[0]) == min(size, count)


def test_two_processes_write_what_one_does(photos, capfd):
    lines = [*PHOTO_LINES, {"file": "bad.jpg", "captions": [], "labels": [], "mask": PHOTO_LINES[0]["mask"]}]
    (photos / "bad.jpg").write_bytes((photos / PHOTO_LINES[0]["file"]).read_bytes()[:999])
    write_lines(photos / "captions.jsonl", lines)
    one = run(photos, "one", workers=0, skip_bad=True)
    two = run(photos, "two", workers=2, skip_bad=True)
    assert one == two and one.skipped == 1
    assert contents(photos.parent / "one") == contents(photos.parent / "two")
    assert capfd.readouterr().err.count("skipped ") == 2
    with pytest.raises(UserError, match="captions.jsonl:13: bad.jpg .*shards are finished"):
        run(photos, "three", workers=2)


def endless(item: int, advance) -> None:
    """Item 0 fails; any other ends only by being stopped."""
    if item == 0:
        raise UserError("bad input")
    while True:
        advance(1)
        time.sleep(0.01)


def test_an_error_in_one_process_ends_the_others():
    with pytest.raises(UserError, match="bad input"):
        list(processes.run(endless, [1, 0], 2, lambda count: None))


def test_a_pickled_reader_of_scenes_writes_the_same(tmp_path, monkeypatch):
    prepare_scenes(9, str(tmp_path / "one"), seed=1, size=16)
    pickle_writer(monkeypatch)
    prepare_scenes(9, str(tmp_path / "other"), seed=1, size=16)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_an_interrupted_command_goes_on_to_the_same_bytes(photos, monkeypatch, capsys):
    run(photos, "whole")
    partial = interrupted(photos, monkeypatch, after=5)
    assert sorted(path.name for path in (partial / "progress").iterdir()) == ["train-00000.json", "train-00001.json"]
    assert not (photos.parent / "out").exists()
    (partial / "data" / "captioned_images-train.array_record-00002.tmp").write_text("half")  # as a kill leaves it
    seen = decoded(monkeypatch)
    run(photos, "out")
    assert len(seen) == len(PHOTO_LINES) - 4
    assert "2 of 6 shards are finished" in capsys.readouterr().err
    assert contents(photos.parent / "out") == contents(photos.parent / "whole")
    assert not partial.exists()


def test_other_classes_of_masks_begin_anew(photos, monkeypatch):
    names = photos.parent / "classes.txt"
    names.write_text("\n".join(map(str, range(200))))
    assert len(list((interrupted(photos, monkeypatch, after=5, classes=str(names)) / "progress").iterdir())) == 2
    names.write_text("\n".join(map(str, range(199, -1, -1))))
    seen = decoded(monkeypatch)
    run(photos, "out", classes=str(names))
    assert len(seen) == len(PHOTO_LINES)


def test_a_killed_command_takes_its_processes_along_and_goes_on(tmp_path):
    output, command = tmp_path / "out", [sys.executable, "-m", "launch.prepare_data", "--source=scenes"]
    command += ["--count=20000", "--size=64", f"--output={output}", "--workers=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    progress = tmp_path / "out.partial" / "progress"
    while not list(progress.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.stderr.read()  # ends when the last process that holds the pipe does
    before = {path.name: path.stat().st_mtime_ns for path in progress.glob("*.json")}
    command[-1] = "--workers=0"
    again = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = again.stderr.readline()
    again.send_signal(signal.SIGTERM)
    assert f"{len(before)} of 24 shards are finished" in said
    assert "out.partial" in again.stderr.read() and again.wait() == 130
    after = {path.name: path.stat().st_mtime_ns for path in progress.glob("*.json")}
    assert before.items() <= after.items() and not output.exists()


def test_bad_input_keeps_whole_shards_and_the_mended_listing_goes_on(photos, monkeypatch):
    good = PHOTO_LINES[6]["file"]
    bytes_before = (photos / good).read_bytes()
    (photos / good).write_bytes(bytes_before[:500])
    number = [line["file"] for line in PHOTO_LINES].index(good) + 1
    with pytest.raises(UserError, match=rf":{number}: .* does not decode.*\(\d of 6 shards are finished"):
        run(photos, "out")
    (photos / good).write_bytes(bytes_before)
    seen = decoded(monkeypatch)
    run(photos, "out")
    run(photos, "whole")
    assert len(seen) < 2 * len(PHOTO_LINES)
    assert contents(photos.parent / "out") == contents(photos.parent / "whole")


@pytest.mark.parametrize("change", ["caption", "image", "class", "shorter"])
def test_what_changed_meanwhile_is_written_anew(photos, monkeypatch, change):
    lines = [dict(line) for line in PHOTO_LINES]
    interrupted(photos, monkeypatch, after=7)
    if change == "caption":
        lines[0]["captions"] = ["something else"]
    elif change == "image":
        shutil.copy(photos / PHOTO_LINES[1]["file"], photos / PHOTO_LINES[0]["file"])
        shutil.copy(photos / PHOTO_LINES[1]["mask"], photos / PHOTO_LINES[0]["mask"])
    elif change == "class":
        lines[-1]["labels"] = ["aardvark"]
    else:
        lines = lines[:3]
    write_lines(photos / "captions.jsonl", lines)
    run(photos, "out")
    run(photos, "anew")
    assert contents(photos.parent / "out") == contents(photos.parent / "anew")


def test_shards_with_skipped_images_do_not_pass_without_skip_bad(photos, monkeypatch):
    (photos / PHOTO_LINES[0]["file"]).write_bytes(b"no image")
    partial = photos.parent / "out.partial"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(dataset.statistics, "write", lambda *_: (_ for _ in ()).throw(RuntimeError))
        run(photos, "out", skip_bad=True)
    assert len(list((partial / "progress").iterdir())) == 6
    with pytest.raises(UserError, match=":1: .* does not decode"):
        run(photos, "out")
    assert run(photos, "out", skip_bad=True).skipped == 1


def test_a_damaged_shard_is_written_anew(photos, monkeypatch):
    run(photos, "whole")
    partial = interrupted(photos, monkeypatch, after=7)
    first, second, *_ = sorted((partial / "data").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    run(photos, "out")
    assert contents(photos.parent / "out") == contents(photos.parent / "whole")


def test_a_partial_of_another_command_is_refused_by_name(photos, monkeypatch):
    partial = interrupted(photos, monkeypatch, after=5)
    before = contents(partial)
    with pytest.raises(UserError, match=r"out.partial .*words \(there 12, here 9\)"):
        run(photos, "out", words=9)
    with pytest.raises(UserError, match=r"vocabulary \(there \w+, here None\)"):
        run(photos, "out", vocabulary=None)
    tar = write_tar(photos.parent / "a.tar", {"a.jpg": (photos / PHOTO_LINES[0]["file"]).read_bytes(), "a.txt": "a"})
    with pytest.raises(UserError, match="source .there folder, here tars"):
        prepare_tars([str(tar)], str(photos.parent / "out"))
    assert contents(partial) == before


def test_what_lies_in_the_way_is_refused_and_kept(photos, monkeypatch):
    (photos.parent / "out.partial").mkdir()
    (photos.parent / "out.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="out.partial .*not created"):
        run(photos, "out")
    assert contents(photos.parent / "out.partial") == {"thesis.txt": b"mine"}


def test_two_commands_do_not_write_one_output(photos, monkeypatch):
    def meanwhile(*_):
        run(photos, "out")

    monkeypatch.setattr(dataset.statistics, "write", meanwhile)
    with pytest.raises(UserError, match="out.partial is in use"):
        run(photos, "out")


def test_a_new_parent_appears_with_the_output_alone(photos, monkeypatch):
    interrupted(photos, monkeypatch, after=1, output="new/deep/out")
    assert not (photos.parent / "new").exists()
    run(photos, "new/deep/out")
    assert sum(splits(str(photos.parent / "new" / "deep" / "out")).values()) == len(PHOTO_LINES)


def test_a_split_without_any_good_image_is_left_out(photos):
    lines = [dict(line) for line in PHOTO_LINES[:6]]
    for line in lines:
        line["split"] = "train"
    for line in lines[:4]:  # two whole shards
        (photos / line["file"]).write_bytes(b"no image")
    write_lines(photos / "captions.jsonl", [*lines, {**lines[0], "file": PHOTO_LINES[7]["file"], "split": "val"}])
    (photos / PHOTO_LINES[7]["file"]).write_bytes(b"no image")
    run(photos, "out", skip_bad=True)
    assert splits(str(photos.parent / "out")) == {"train": 2}
    source = PreparedSource(str(photos.parent / "out"), "train")
    assert [source[index].captions for index in range(2)] == [tuple(line["captions"]) for line in lines[4:]]
    assert json.loads((photos.parent / "out" / "captions.json").read_text())["skipped"] == 5
