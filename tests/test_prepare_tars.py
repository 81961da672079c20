"""Image-text tars, as img2dataset writes them, to a prepared folder; and what is refused in them."""

import io
import json
from pathlib import Path
import subprocess
import sys
import tarfile

import pytest

from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.prepare import dataset, tars
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.prepare.tars import prepare_tars
from tc_jepa.data.prepared import PreparedSource, splits
from tc_jepa.errors import UserError
from tests.preparing import contents, PHOTO_LINES, PHOTOS, pickle_writer, write_lines, write_tar

JPG = (PHOTOS / PHOTO_LINES[0]["file"]).read_bytes()


def run(tmp_path: Path, *inputs: str, **options) -> Summary:
    return prepare_tars([str(tmp_path / name) for name in inputs], str(tmp_path / "out"), **options)


def candidates(tmp_path: Path, split: str = "train") -> list[tuple[str, ...]]:
    source = PreparedSource(str(tmp_path / "out"), split)
    return [source[index].captions for index in range(len(source))]


def sample(key: str, caption: str | None = "a cat", **fields) -> dict:
    return {f"{key}.jpg": JPG, f"{key}.txt": caption or "", f"{key}.json": {"caption": caption, "key": key} | fields}


def test_tars_give_what_a_listing_of_the_same_photographs_gives(tmp_path):
    lines = [
        {"file": line["file"], "captions": line["captions"], "descriptions": f"It is {i}. It is 2.5 m long."}
        for i, line in enumerate(PHOTO_LINES)
    ]
    listing, members = write_lines(tmp_path / "captions.jsonl", lines), {}
    for line in lines:
        members[line["file"]] = (PHOTOS / line["file"]).read_bytes()
        members[line["file"].replace(".jpg", ".json")] = {"alts": line["captions"], "long": line["descriptions"]}
    write_tar(tmp_path / "a.tar", members)
    shared = {"vocabulary": scenes_vocabulary_path(), "words": 9}
    run(tmp_path, "a.tar", caption_fields=["alts"], description_fields=["long"], **shared)
    prepare_folder(str(PHOTOS), str(listing), str(tmp_path / "listed"), **shared)
    assert contents(tmp_path / "out") == contents(tmp_path / "listed")


def test_a_pickled_reader_writes_the_same(tmp_path, monkeypatch):
    for index in range(5):
        write_tar(tmp_path / f"{index}.tar", sample(f"{index}0", f"a {index}") | sample(f"{index}1", "b"))
    run(tmp_path, "*.tar")
    pickle_writer(monkeypatch)
    prepare_tars([str(tmp_path / "*.tar")], str(tmp_path / "two"))
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    assert candidates(tmp_path)[::2] == [(f"a {index}",) for index in range(5)]


def test_fields_and_splits(tmp_path):
    write_tar(tmp_path / "a.tar", sample("1", "raw", long="One. Two.", tags=["x", "y"]) | sample("2", None, long=None))
    write_tar(tmp_path / "b.tar", {"d/3.b.webp.JPG": b"ignored", "d/3.png": JPG, "d/4.jpeg": JPG, ".hidden.txt": "x"})
    inputs = [str(tmp_path / "a.tar"), f"val:{tmp_path}/b.tar"]
    with pytest.raises(UserError, match="--caption_fields: .*b.tar .*'txt'"):
        prepare_tars(inputs, str(tmp_path / "out"))
    (tmp_path / "b.tar").unlink()
    members = {"d/3.png": JPG, "d/._4.jpeg": b"", "d/4.JPEG": JPG, "d/4.json": {"tags": "z", "long": ""}}
    write_tar(tmp_path / "b.tar", members)
    prepare_tars(inputs, str(tmp_path / "out"), caption_fields=["tags"], description_fields=["long"])
    assert candidates(tmp_path) == [("x", "y", "One.", "Two."), ()]
    assert candidates(tmp_path, "val") == [(), ("z",)]


def test_many_tars_share_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MOST_SHARDS", 2)
    for index in range(5):
        write_tar(tmp_path / f"{index}.tar", sample(f"{index}", f"a {index}"))
    run(tmp_path, "*.tar")
    assert len(list((tmp_path / "out").glob("*.array_record-*"))) == 2
    assert candidates(tmp_path) == [(f"a {index}",) for index in range(5)]


BAD = {
    "no image": ({"1.txt": "a"}, "a.tar: 1 has no image"),
    "two images": ({"1.jpg": JPG, "1.png": JPG, "1.txt": "a"}, "a.tar: 1 has 2 images"),
    "an image that does not decode": ({"1.jpg": JPG[:500], "1.txt": "a"}, "a.tar: 1: 1.jpg does not decode"),
    "text that is not UTF-8": ({"1.jpg": JPG, "1.txt": b"\xff"}, "a.tar: 1: 1.txt is not UTF-8"),
    "10 MB of text": ({"1.jpg": JPG, "1.txt": b"a" * 10_000_000}, "a.tar: 1: 1.txt is larger than 1 MiB"),
}
BAD_JSON = {
    "an array": ("[]", "a.tar: 1: 1.json is not a JSON object"),
    "half": ('{"caption"', "a.tar: 1: 1.json is not JSON"),
    "a number": ('{"caption": 3}', 'a.tar: 1: "caption" is 3'),
    "a list of numbers": ('{"caption": ["a", 3]}', 'a.tar: 1: "caption" is 3'),
    "an object": ('{"caption": {"en": "a"}}', "a.tar: 1: .* not a string"),
    "half a character": ('{"caption": "\\ud800"}', "a.tar: 1: .*Unicode"),
}


@pytest.mark.parametrize(
    ("members", "message", "field"),
    [(*case, "txt") for case in BAD.values()]
    + [({"1.jpg": JPG, "1.json": text}, message, "caption") for text, message in BAD_JSON.values()],
    ids=[*BAD, *BAD_JSON],
)
def test_a_bad_sample_is_named_or_left_out_and_counted(tmp_path, capsys, members, message, field):
    write_tar(tmp_path / "a.tar", sample("0") | members | sample("2"))
    with pytest.raises(UserError, match=f"{message}.*--skip_bad$") as error:
        run(tmp_path, "a.tar", caption_fields=[field])
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    summary = run(tmp_path, "a.tar", caption_fields=[field], skip_bad=True)
    assert summary.skipped == 1 and candidates(tmp_path) == [("a cat",), ("a cat",)]
    assert capsys.readouterr().err.count("skipped ") == 1


def cut(data: bytes) -> dict[str, bytes]:
    """Three samples' tar, broken in every way after its second sample."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        third = tar.getmember("2.jpg")
    head = data[: third.offset]
    return {
        "within an image": data[: third.offset_data + 700],
        "within a header": data[: third.offset + 100],
        "between members": head,
        "a damaged header": head + b"x" + data[third.offset + 1 :],
        "only zeros": head + bytes(100),
    }


@pytest.mark.parametrize(
    "how", ["within an image", "within a header", "between members", "a damaged header", "only zeros"]
)
def test_a_tar_that_breaks_off_is_an_error_or_counted(tmp_path, how):
    whole = write_tar(tmp_path / "whole", sample("0") | sample("1") | sample("2"))
    (tmp_path / "a.tar").write_bytes(cut(whole.read_bytes())[how])
    write_tar(tmp_path / "b.tar", sample("b", "next"))
    with pytest.raises(UserError, match=r"a.tar is broken after \d samples .*--skip_bad"):
        run(tmp_path, "*.tar")
    summary = run(tmp_path, "*.tar", skip_bad=True)
    assert summary.skipped == 1 and candidates(tmp_path)[0] == ("a cat",) and candidates(tmp_path)[-1] == ("next",)


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, None], ids=["empty", "text", "compressed"])
def test_what_is_no_tar_is_refused(tmp_path, content):
    if content is None:
        with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
            tar.add(PHOTOS / PHOTO_LINES[0]["file"], "0.jpg")
    else:
        (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="a.tar is broken after 0 samples"):
        run(tmp_path, "a.tar")


def hostile(**fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo("0.jpg")
    for name, value in fields.items():
        setattr(info, name, value)
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (hostile(name="../0.jpg"), "leaves the tar's folder"),
        (hostile(name="a/../../0.jpg"), "leaves the tar's folder"),
        (hostile(name="/tmp/0.jpg"), "leaves the tar's folder"),
        (hostile(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link or device"),
        (hostile(type=tarfile.LNKTYPE, linkname="1.jpg"), "link or device"),
        (hostile(type=tarfile.CHRTYPE), "link or device"),
        (hostile(type=tarfile.FIFOTYPE), "link or device"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_members_that_reach_out_are_refused_whatever_is_skipped(tmp_path, member, message, skip_bad):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size = len(JPG)
        tar.addfile(info, io.BytesIO(JPG))
        tar.addfile(member)
    with pytest.raises(UserError, match=f"a.tar: .*{message}"):
        run(tmp_path, "a.tar", skip_bad=skip_bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_a_member_of_negative_size_does_not_go_round_for_ever(tmp_path):
    write_tar(tmp_path / "whole", sample("0"))
    header = hostile(name=".1.jpg", size=-512).tobuf(tarfile.GNU_FORMAT)  # the next header is said to be this one
    data = (tmp_path / "whole").read_bytes()
    with tarfile.open(tmp_path / "whole") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    (tmp_path / "a.tar").write_bytes(data[:end] + header + bytes(1024))
    with pytest.raises(UserError, match="a.tar is broken after"):
        run(tmp_path, "a.tar")


def test_an_image_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "IMAGE_LIMIT", len(JPG) - 1)
    write_tar(tmp_path / "a.tar", sample("0"))
    with pytest.raises(UserError, match="0.jpg is larger than"):
        run(tmp_path, "a.tar")


def test_samples_torn_apart_and_doubled_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPG, "1.jpg": JPG, "0.txt": "a", "1.txt": "b"})
    with pytest.raises(UserError, match="a.tar: 0 .*--sort=name"):
        run(tmp_path, "a.tar", skip_bad=True)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for _ in range(2):
            tar.add(PHOTOS / PHOTO_LINES[0]["file"], "0.jpg")
    with pytest.raises(UserError, match="b.tar: 0 has two members .jpg"):
        run(tmp_path, "b.tar", caption_fields=[], skip_bad=True)


def test_inputs_are_checked_first(tmp_path):
    write_tar(tmp_path / "a.tar", sample("0"))
    (tmp_path / "folder.tar").mkdir()
    for inputs, message in [
        (["b*.tar"], r"--input=.*b\*.tar"),
        (["*.tar"], "folder.tar"),
    ]:
        with pytest.raises(UserError, match=message):
            run(tmp_path, *inputs)
    path = str(tmp_path / "a.tar")
    with pytest.raises(UserError, match="a.tar is given for both train and test"):
        prepare_tars([path, f"test:{path}"], str(tmp_path / "out"))
    with pytest.raises(UserError, match="--description_fields: .*'captoin'; they have caption, key, txt"):
        run(tmp_path, "a.tar", description_fields=["captoin"])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        run(tmp_path, "a.tar")


def test_the_command_reads_tars(tmp_path):
    write_tar(tmp_path / "a.tar", sample("0", "raw", long="A cat. It sits."))
    write_tar(tmp_path / "b.tar", sample("1", "raw"))
    command = [sys.executable, "-m", "launch.prepare_data", "--source=tars", f"--input={tmp_path}/a.tar"]
    command += [f"--input=val:{tmp_path}/b.tar", "--caption_fields=txt,key", f"--output={tmp_path}/out", "--workers=0"]
    wrong = subprocess.run([*command, "--count=3"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "error: --count has no effect with --source=tars; leave it out\n")
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    assert candidates(tmp_path) == [("raw", "0")] and splits(str(tmp_path / "out")) == {"train": 1, "val": 1}
    assert json.loads((tmp_path / "out" / "captions.json").read_text())["images"] == {"train": 1, "val": 1}


def test_endings_with_dots(tmp_path):
    members = {}
    for key in ("1", "2"):
        members |= {f"{key}.input.jpg": JPG, f"{key}.outputs.txt": f"a dog {key}", f"{key}.other.txt": "not asked for"}
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match="'txt'.*other.txt, outputs.txt.*input.jpg"):
        run(tmp_path, "a.tar")
    run(tmp_path, "a.tar", caption_fields=["outputs.txt"])
    assert candidates(tmp_path) == [("a dog 1",), ("a dog 2",)]


def test_an_image_of_another_kind_does_not_stand_in_for_a_missing_one(tmp_path, capsys):
    """Such as 2.mask.jpg, where 2.jpg could not be fetched."""
    masks = {f"{key}.mask.jpg": JPG for key in "123"}
    samples = sample("1", "one") | sample("2", "two") | sample("3", "three")
    members = dict(sorted((samples | masks).items()))
    del members["2.jpg"]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match="2 has the image .mask.jpg, but the tar's first sample .jpg"):
        run(tmp_path, "a.tar")
    assert run(tmp_path, "a.tar", skip_bad=True).skipped == 1
    assert candidates(tmp_path) == [("one",), ("three",)]


def test_names_that_only_differ_after_their_first_dot_are_one_sample(tmp_path):
    write_tar(tmp_path / "a.tar", {"v.1.jpg": JPG, "v.1.txt": "a", "v.2.jpg": JPG, "v.2.txt": "b"})
    with pytest.raises(UserError, match="v has 2 images .*1.jpg, 1.txt, 2.jpg, 2.txt.* first dot"):
        run(tmp_path, "a.tar", caption_fields=["1.txt"])


def test_a_sample_of_very_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MOST_MEMBERS", 3)
    write_tar(tmp_path / "a.tar", sample("1"))
    run(tmp_path, "a.tar")
    write_tar(tmp_path / "b.tar", sample("1") | {"1.more": "x"})
    with pytest.raises(UserError, match="b.tar: 1 has more than 3 members"):
        run(tmp_path, "b.tar")


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "null"])
def test_a_number_that_json_does_not_have_is_a_missing_text(tmp_path, missing):
    members = {"2.jpg": JPG, "2.json": f'{{"caption": {missing}}}', "3.jpg": JPG, "3.json": {"caption": "three"}}
    write_tar(tmp_path / "a.tar", members)
    run(tmp_path, "a.tar", caption_fields=["caption"])
    assert candidates(tmp_path) == [(), ("three",)]
