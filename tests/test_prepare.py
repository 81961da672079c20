"""A folder of photographs, or scenes, to a prepared folder and back; and what is refused on the way."""

from collections import Counter
import inspect
import json
from pathlib import Path
import pickle
import subprocess
import sys
import unicodedata

import numpy as np
from PIL import Image
import pytest

from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.images import decode_image, decode_mask
from tc_jepa.data.prepare import dataset, pictures, statistics
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.prepare.sources import COMMON_FLAGS, describe_sources, prepare_function, SOURCES
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.prepared import PreparedDataset, PreparedSource, splits
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Question
from tc_jepa.errors import UserError

PHOTOS = Path(__file__).parent / "fixtures" / "photos"
GOOD, OTHER = {"file": "a.png", "captions": ["a wall"]}, {"file": "b.png", "captions": []}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("data") / "photos")
    prepare_folder(str(PHOTOS), str(PHOTOS / "captions.jsonl"), output, vocabulary=scenes_vocabulary_path())
    return output


@pytest.fixture
def folder(tmp_path) -> Path:
    """An images folder with two small images and two masks, one of them turned; and an image beside the folder."""
    images = tmp_path / "images"
    images.mkdir()
    for path in (images / "a.png", images / "b.png", tmp_path / "outside.png"):
        Image.new("RGB", (6, 4), "red").save(path)
    Image.new("L", (6, 4)).save(images / "mask.png")
    Image.new("L", (4, 6)).save(images / "turned.png")
    Image.effect_noise((60, 60), 99).save(images / "large.png")
    Image.effect_noise((60, 60), 99).save(images / "half.png")
    (images / "half.png").write_bytes((images / "half.png").read_bytes()[:2000])
    (images / "link.png").symlink_to(tmp_path / "outside.png")
    return images


def write(folder: Path, lines: list) -> str:
    listing = folder.parent / "captions.jsonl"
    listing.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(listing)


def prepare_lines(folder: Path, lines: list, **options) -> Summary:
    return prepare_folder(str(folder), write(folder, lines), str(folder.parent / "out"), **options)


def listing_of(split: str) -> list[dict]:
    lines = map(json.loads, (PHOTOS / "captions.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


@pytest.mark.parametrize("split", ["train", "val"])
def test_photos_come_back_as_they_were_given(photos, split):
    source, lines = PreparedSource(photos, split), listing_of(split)
    assert len(source) == len(lines) == splits(photos)[split]
    for index, line in enumerate(lines):
        example = source[index]
        np.testing.assert_array_equal(example.image, decode_image((PHOTOS / line["file"]).read_bytes()))
        assert example.captions == tuple(line["captions"])
        np.testing.assert_array_equal(source.mask(index), decode_mask((PHOTOS / line["mask"]).read_bytes()))
        label = source.labels(index)["labels"]
        assert label.dtype == bool
        assert {name for name, present in zip(source.tasks["labels"].classes, label) if present} == set(line["labels"])


def test_the_vocabulary_comes_with_the_data(photos):
    assert Path(PreparedDataset(photos).vocabulary_path()).read_bytes() == Path(scenes_vocabulary_path()).read_bytes()


def test_a_source_pickles(photos):
    source = PreparedSource(photos, "val")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1].image, source[1].image)
    assert copy.tasks == source.tasks


def test_scenes_come_back_pixel_for_pixel(tmp_path):
    output = str(tmp_path / "scenes")
    prepare_scenes(9, output, seed=3, size=32)
    assert splits(output) == {"train": 9, "val": 1, "test": 1}
    drawn, read = SceneSource(3, "train", 9, 32), PreparedSource(output, "train")
    assert read.tasks == drawn.tasks and list(read.tasks) == sorted(drawn.tasks)
    np.testing.assert_array_equal(read[7].image, drawn[7].image)
    assert read[7].captions == drawn[7].captions
    np.testing.assert_array_equal(read.mask(7), drawn.mask(7))
    labels = read.labels(7)
    for name, label in drawn.labels(7).items():
        np.testing.assert_array_equal(labels[name], label)
    assert PreparedDataset(output).vocabulary_path() is not None


def test_a_folder_without_extras(folder):
    lines = [{"file": "b.png", "captions": [], "unknown": 1}, "", GOOD | {"captions": ["one", "zwei é"]}]
    summary = prepare_lines(folder, lines)
    assert str(summary) == "images: 2 train; captions per image: min 0, mean 1.00, max 2; skipped: 0"
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert [source[index].captions for index in range(2)] == [(), ("one", "zwei é")]
    assert source.tasks == {} and source.labels(0) == {} and not source.segmentations
    assert PreparedDataset(str(folder.parent / "out")).vocabulary_path() is None


def test_questions_come_back_with_their_answers(folder):
    asked = {"question": " What is it? ", "answers": ["a wall", "wall"], "kind": "object"}
    prepare_lines(folder, [GOOD | {"questions": [asked, {"question": "Is it red", "answers": ["é"]}]}, OTHER])
    source = PreparedSource(str(folder.parent / "out"), "train")
    questions = [Question("What is it", ("a wall", "wall"), "object"), Question("Is it red", ("é",), "any")]
    assert source.has_questions and [source.questions(i) for i in range(2)] == [questions, []]


@pytest.mark.parametrize(
    "questions",
    [
        "is it red",
        ["is it red"],
        [{"question": "is it red"}],
        [{"question": "is it red", "answers": []}],
        [{"question": "?", "answers": ["yes"]}],
        [{"question": "is it red", "answers": "yes"}],
        [{"question": "is it red", "answers": ["yes"], "kind": 1}],
        [{"question": "is it red", "answers": ["yes"], "kind": "all"}],
        [{"question": "is it red", "answers": ["yes"], "kind": ""}],
    ],
)
def test_questions_in_another_form_are_refused(folder, questions):
    with pytest.raises(UserError, match=r"captions\.jsonl:2"):
        prepare_lines(folder, [OTHER, GOOD | {"questions": questions}])


def test_one_label_an_image(folder):
    prepare_lines(folder, [GOOD | {"label": "wall"}, {"file": "b.png", "captions": [], "label": "red door"}])
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert source.tasks["label"].classes == ("red door", "wall") and source.tasks["label"].kind == "single"
    assert [source.labels(index)["label"] for index in range(2)] == [1, 0]


@pytest.mark.parametrize("listed, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_may_have_another_unicode_form_on_disk(folder, listed, stored):
    names = {form: unicodedata.normalize(form, "Café.png") for form in ("NFC", "NFD")}
    Image.new("RGB", (6, 4), "blue").save(folder / names[stored])
    if (folder / names[listed]).exists():
        pytest.skip("this file system does not tell the forms apart")
    line = {"file": names[listed], "captions": ["a café"], "mask": "mask.png"}
    prepare_lines(folder, [line])
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert source[0].image[0, 0].tolist() == [0, 0, 255] and source.file(0) == names[listed]
    with pytest.raises(UserError, match=":2: .*already on line 1"):
        prepare_folder(str(folder), write(folder, [line, line | {"file": names[stored]}]), str(folder.parent / "other"))
    Image.new("RGB", (6, 4), "green").save(folder / names[listed])
    prepare_folder(str(folder), write(folder, [line, line | {"file": names[stored]}]), str(folder.parent / "both"))
    source = PreparedSource(str(folder.parent / "both"), "train")
    assert [source[index].image[0, 0].tolist() for index in range(2)] == [[0, 128, 0], [0, 0, 255]]


def labelled(folder: Path, key: str, **values: list) -> list[dict]:
    """Lines with images of their own, for each split and each of its values."""
    lines = []
    for split, all_values in values.items():
        for value in all_values:
            name = f"{len(lines)}.png"
            Image.new("RGB", (6, 4)).save(folder / name)
            lines.append({"file": name, "captions": [], "split": split, key: value})
    return lines


def test_a_label_that_train_has_not_is_refused(folder):
    with pytest.raises(UserError, match=r""".jsonl:4: "label" 'cow' .*1 more""") as error:
        prepare_lines(folder, labelled(folder, "label", train=["ant", "bee"], val=["bee"], test=["cow", "dog", "cow"]))
    assert "\n" not in str(error.value) and not (folder.parent / "out").exists()
    prepare_lines(folder, labelled(folder, "label", train=["ant", "bee"], val=["bee"]))


def test_a_split_without_train_may_have_any_labels(folder):
    prepare_lines(folder, labelled(folder, "label", val=["ant"], test=["bee"]))
    assert PreparedSource(str(folder.parent / "out"), "test").tasks["label"].classes == ("ant", "bee")


@pytest.mark.parametrize("seen", [["ant"], []], ids=["some", "none"])
def test_one_of_many_labels_that_train_has_not_is_told(folder, capsys, seen):
    prepare_lines(folder, labelled(folder, "labels", train=[seen], val=[["ant", "bee"]]))
    told = "1 more like it" if not seen else "'bee' of split val"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "on no line of train" in line]
    assert told in line and "probes cannot learn it" in line
    assert PreparedSource(str(folder.parent / "out"), "val").tasks["labels"].classes == ("ant", "bee")


def test_more_images_than_one_shard_holds_keep_their_order(folder, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 4)
    lines = []
    for index in range(11):
        Image.new("RGB", (5, 5), (index, 0, 0)).save(folder / f"{index}.png")
        lines.append({"file": f"{index}.png", "captions": [str(index)]})
    prepare_lines(folder, lines)
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert [(source[i].image[0, 0, 0], source[i].captions) for i in range(11)] == [(i, (str(i),)) for i in range(11)]


def test_a_mask_is_held_to_the_upright_size(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(folder / "turned.jpg", exif=exif.tobytes())
    prepare_lines(folder, [{"file": "turned.jpg", "captions": [], "mask": "mask.png"}])
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert source[0].image.shape[:2] == source.mask(0).shape == (4, 6)


def test_the_classes_of_masks_may_have_names_and_values_of_their_own(folder):
    Image.fromarray(np.array([[0, 1, 2, 255, 2, 1]] * 4, np.uint8)).save(folder / "mask.png")
    names = folder.parent / "classes.txt"
    names.write_text("wall\nsky\n")
    lines = [{"file": "a.png", "captions": ["a wall"], "mask": "mask.png"}]
    with pytest.raises(UserError, match="captions.jsonl:1: mask .* 2, .* 0 to 1"):
        prepare_lines(folder, lines, classes=str(names))
    prepare_lines(folder, lines, classes=str(names), first_class=1, ignore_index=0)
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert source.segmentations == {"mask": ("wall", "sky")}
    np.testing.assert_array_equal(source.mask(0), [[255, 0, 1, 255, 1, 0]] * 4)
    with pytest.raises(UserError, match="--classes .*captions.jsonl"):
        listing = write(folder, [{"file": "a.png", "captions": []}])
        prepare_folder(str(folder), listing, str(folder.parent / "other"), classes=str(names))


def test_descriptions_become_candidates_sentence_by_sentence(folder):
    lines = [
        {"file": "a.png", "captions": ["a wall"], "descriptions": "A red wall. It is 2.5 m high. A wall!"},
        {"file": "b.png", "captions": [], "descriptions": ["- one\n- two", "", "One. Three"]},
    ]
    summary = prepare_lines(folder, lines, vocabulary=scenes_vocabulary_path(), words=9)
    source = PreparedSource(str(folder.parent / "out"), "train")
    assert source[0].captions == ("a wall", "A red wall.", "It is 2.5 m high.")
    assert source[1].captions == ("one", "two", "Three")
    assert summary.captions == {3: 2} and (summary.duplicates, summary.blank) == (2, 1)


def test_counts_are_told_drawn_and_kept(folder):
    captions = ["red", "a red circle", "a red circle and a blue circle and a green square"]
    lengths = CaptionTokenizer(scenes_vocabulary_path(), 99).lengths(captions)
    lines = [{"file": "a.png", "captions": captions}, {"file": "b.png", "captions": [], "split": "val"}]
    summary = prepare_lines(folder, lines, vocabulary=scenes_vocabulary_path(), words=lengths[1])
    assert json.loads((folder.parent / "out" / "captions.json").read_text()) == {
        "images": {"train": 1, "val": 1},
        "images_by_candidates": {"0": 1, "3": 1},
        "candidates_by_words": {str(length): 1 for length in sorted(lengths)},
        "words": lengths[1],
        "longer_than_words": 1,
        "blank": 0,
        "duplicates": 0,
        "skipped": 0,
    }
    report = statistics.text(summary)
    assert f"  {lengths[0]} | {'#' * 50} 1" in report.replace("   ", "  ")
    assert f"longer than {lengths[1]} words, cut when read: 1 (33.3%)" in report
    with Image.open(folder.parent / "out" / "captions.png") as plot:
        assert plot.width > 500 and len(plot.getcolors(1 << 20)) > 10


def test_a_dataset_without_captions_has_no_plot_of_them(folder):
    prepare_lines(folder, [GOOD | {"captions": []}])
    assert (folder.parent / "out" / "captions.json").exists() and not (folder.parent / "out" / "captions.png").exists()


def test_words_are_not_counted_without_a_vocabulary(folder):
    report = statistics.text(prepare_lines(folder, [GOOD], words=9))
    assert "words per candidate: not counted" in report and "--vocabulary" in report
    assert json.loads((folder.parent / "out" / "captions.json").read_text())["candidates_by_words"] is None


def test_a_histogram_has_few_rows_and_loses_nothing():
    summary = Summary(Counter(train=400), Counter({number: number for number in range(400)}))
    rows = [line.split("|") for line in statistics.text(summary).splitlines() if "|" in line]
    assert len(rows) <= 16 and sum(int(row[1].split()[-1]) for row in rows) == sum(range(400))
    assert max(row[1].count("#") for row in rows) == 50


def test_skip_bad_names_counts_and_leaves_out(folder, capsys):
    bad = {"file": "half.png", "captions": ["x", "y"], "split": "val"}
    summary = prepare_lines(folder, [GOOD, bad], skip_bad=True)
    assert summary.skipped == 1 and summary.images == {"train": 1} and summary.captions == {1: 1}
    assert "captions.jsonl:2: half.png does not decode" in capsys.readouterr().err
    assert splits(str(folder.parent / "out")) == {"train": 1}


BAD_LINES = {
    "not JSON": ("{'file': 'b.png'}", r"captions.jsonl:2 is not JSON"),
    "not UTF-8 JSON": ('{"file": "b.png", "captions": ["\\ud800"]}', r":2: .*Unicode"),
    "no object": ("[]", r":2 is not a JSON object"),
    "no file": ({"captions": []}, r':2 has no "file"'),
    "no captions": ({"file": "b.png", "caption": "a"}, r':2 has no "captions"'),
    "missing image": ({"file": "c.png", "captions": []}, r"""captions.jsonl:2: "file" 'c.png' is missing"""),
    "broken image": ({"file": "half.png", "captions": []}, r"captions.jsonl:2: half.png does not decode.*--skip_bad"),
    "captions a string": ({"file": "b.png", "captions": "a"}, r':2: "captions" is not a list of strings'),
    "captions of numbers": ({"file": "b.png", "captions": [1]}, r':2: "captions" is 1'),
    "absolute path": ({"file": "{root}/b.png", "captions": []}, r":2: .*leaves the images folder"),
    "path upwards": ({"file": "../outside.png", "captions": []}, r":2: .*leaves the images folder"),
    "link outwards": ({"file": "link.png", "captions": []}, r":2: .*leaves the images folder"),
    "null byte": ({"file": "a\0", "captions": []}, r":2: \"file\""),
    "unknown split": ({"file": "b.png", "captions": [], "split": "dev"}, r":2: \"split\" is 'dev'.*train, val, test"),
    "listed twice": ({"file": "./a.png", "captions": []}, r":2: ./a.png is already on line 1"),
    "descriptions a number": ({"file": "b.png", "captions": [], "descriptions": 7}, r':2: "descriptions" is 7'),
    "descriptions of null": ({"file": "b.png", "captions": [], "descriptions": ["a", None]}, r":2: .* is None"),
    "captions of NaN": ('{"file": "b.png", "captions": [NaN]}', r':2: "captions" is None'),
    "label of infinity": ('{"file": "b.png", "captions": [], "label": -Infinity}', r':2: "label" is None'),
    "100,000 brackets": ("[" * 100_000 + "]" * 100_000, r":2 is not JSON \(it is nested too deeply\)"),
    "a folder": ({"file": ".", "captions": []}, r':2: "file" .* is a folder'),
    "10 MB": ({"file": "b.png", "captions": ["a " * 5_000_000]}, r"captions.jsonl:2 .*1 MiB"),
    "label on some lines": ({"file": "b.png", "captions": [], "label": "x"}, r':1 has no "label" but .*:2 has'),
    "label a number": ({"file": "b.png", "captions": [], "label": 7}, r':2: "label" is 7'),
    "label of two lines": ({"file": "b.png", "captions": [], "label": "x\ny"}, r":2: .*class name"),
}


@pytest.mark.parametrize("line, message", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_left(folder, line, message):
    if isinstance(line, dict) and "file" in line:
        line = line | {"file": line["file"].replace("{root}", str(folder))}
    before = sorted(folder.parent.rglob("*")) + [folder.parent / "captions.jsonl"]
    with pytest.raises(UserError, match=message) as error:
        prepare_lines(folder, [GOOD, line])
    assert "\n" not in str(error.value)
    assert sorted(folder.parent.rglob("*")) == sorted(before)


@pytest.mark.parametrize(
    "file, mask, message",
    [
        ("a.png", "turned.png", "4 x 6 .*6 x 4"),
        ("a.png", "a.png", "one channel"),
        ("large.png", "half.png", "does not decode"),
        ("a.png", "../outside.png", "leaves the images folder"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(folder, file, mask, message):
    with pytest.raises(UserError, match=f":1: .*{message}"):
        prepare_lines(folder, [{"file": file, "captions": [], "mask": mask}])
    assert not (folder.parent / "out").exists()


def test_masks_of_another_size_are_counted_before_anything_is_written(folder):
    masks = {"a.png": "turned.png", "b.png": "mask.png", "large.png": "mask.png", "half.png": "mask.png"}
    lines = [{"file": file, "captions": [], "mask": mask} for file, mask in masks.items()]
    with pytest.raises(UserError, match="3 of 4 masks .*:1: mask .*turned.png"):
        prepare_lines(folder, lines)
    assert not (folder.parent / "out.partial").exists()


@pytest.mark.parametrize("lines", [[], [{"file": "half.png", "captions": []}]], ids=["no lines", "all skipped"])
def test_an_empty_dataset_is_refused(folder, lines):
    with pytest.raises(UserError, match="captions.jsonl|out"):
        prepare_lines(folder, lines, skip_bad=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["captions.jsonl", "images", "outside.png"]


def test_labels_that_name_no_class_are_refused(folder):
    with pytest.raises(UserError, match='captions.jsonl: "labels" is empty on every line'):
        prepare_lines(folder, [GOOD | {"labels": []}])


@pytest.mark.parametrize("name", SOURCES)
def test_the_table_lists_the_arguments_of_the_functions(name):
    parameters = inspect.signature(prepare_function(name)).parameters
    kind = SOURCES[name]
    assert set(parameters) == {*kind.required, *kind.optional, *COMMON_FLAGS}
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    assert required == {*kind.required, "output"}
    assert f"--source={name}" in describe_sources() and kind.summary in describe_sources().lower()


def test_an_existing_output_is_refused_and_kept(folder):
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        prepare_lines(folder, [GOOD])
    assert (folder.parent / "out" / "thesis.txt").read_text() == "mine"


def test_missing_inputs_are_named(folder, tmp_path):
    listing = write(folder, [GOOD])
    with pytest.raises(UserError, match="--images=.*nowhere"):
        prepare_folder(str(tmp_path / "nowhere"), listing, str(tmp_path / "out"))
    with pytest.raises(UserError, match="--captions=.*nowhere"):
        prepare_folder(str(folder), str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="a.png.*SentencePiece"):
        prepare_folder(str(folder), listing, str(tmp_path / "out"), vocabulary=str(folder / "a.png"))


def test_an_interrupted_command_leaves_nothing(folder, monkeypatch):
    def interrupt(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_lines(folder, [GOOD])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["captions.jsonl", "images", "outside.png"]


def test_what_is_no_prepared_folder_is_refused(photos, folder, tmp_path):
    for path, message in ((tmp_path / "nowhere", "not a folder"), (folder, "features.json")):
        with pytest.raises(UserError, match=f"{path.name} .*{message}"):
            PreparedSource(str(path), "train")
        with pytest.raises(UserError, match=message):
            splits(str(path))
    with pytest.raises(UserError, match="'test'.*train, val"):
        PreparedSource(photos, "test")


def test_a_missing_shard_is_named_when_the_data_is_opened(folder):
    prepare_lines(folder, [GOOD])
    (shard,) = (folder.parent / "out").glob("*array_record*")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        PreparedSource(str(folder.parent / "out"), "train")


def test_the_command_fails_in_one_line_and_says_what_it_wrote(folder):
    listing, out = write(folder, [GOOD, {"file": "half.png", "captions": []}]), folder.parent / "out"
    command = [sys.executable, "-m", "launch.prepare_data", "--source=folder", f"--images={folder}"]
    command += [f"--captions={listing}", f"--output={out}"]
    root = Path(__file__).parents[1]
    failed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert failed.returncode == 2 and not out.exists()
    (line,) = [line for line in failed.stderr.splitlines() if line and "images/s" not in line]
    assert "half.png" in line and "WARN" not in failed.stderr
    done = subprocess.run([*command, "--skip_bad"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0
    first, *histograms = done.stdout.splitlines()
    assert first == f"{out}: images: 1 train; captions per image: min 1, mean 1.00, max 1; skipped: 1"
    assert "  1 | ################################################## 1" in histograms
