"""Labels from captions: the right words, on images that pretraining never saw."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from tc_jepa.data.prepare.word_labels import content_words, label_by_words, read_listing
from tc_jepa.errors import UserError

ROOT = Path(__file__).parent.parent
LINES = [
    {"file": "0.jpg", "captions": ["A dog runs .", "The brown dog"], "split": "val"},
    {"file": "1.jpg", "captions": ["a DOG and a cat"], "split": "val", "label": "kept"},
    {"file": "2.jpg", "captions": ["a cat sleeps"], "split": "val"},
    {"file": "3.jpg", "captions": [], "split": "val"},
    {"file": "4.jpg", "captions": ["horse"] * 9, "split": "train"},
    {"file": "5.jpg", "captions": ["horse"]},
]


def test_content_words_leave_out_stop_words_short_ones_and_punctuation():
    assert content_words(["The dog's ball is in an old, OLD shed ."]) == {"dog", "ball", "old", "shed"}


def test_labels_are_the_words_that_most_images_of_the_split_have():
    labelled, words = label_by_words(LINES, "val", 3, 0.5)
    assert words == ["cat", "dog", "brown"]  # by images, not by mentions; then by the alphabet
    assert [line["labels"] for line in labelled] == [["dog", "brown"], ["cat", "dog"], ["cat"], []]
    assert [line["file"] for line in labelled] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert sorted(line["split"] for line in labelled) == ["test", "test", "train", "train"]
    assert labelled[1]["label"] == "kept" and labelled == label_by_words(LINES, "val", 3, 0.5)[0]
    assert label_by_words(LINES, "train", 1, 0.5)[1] == ["horse"]  # where no split is named


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 3, 0.5), "0 images of split 'test'"),
        (("val", 3, 1.0), "share of 1"),
        (("val", 9, 0.5), "--count=9"),
    ],
)
def test_what_cannot_be_labelled_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        label_by_words(LINES, *arguments)


@pytest.mark.parametrize("line", ["not JSON", "[]", '{"file": "a.jpg"}', '{"captions": "a dog"}'])
def test_a_bad_line_is_refused(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match="captions.jsonl:3"):
        read_listing(path)
    with pytest.raises(UserError, match="--captions=.*missing"):
        read_listing(tmp_path / "missing")


def test_the_command_writes_lines_and_lists_the_words(tmp_path):
    captions, output = tmp_path / "captions.jsonl", tmp_path / "probe.jsonl"
    captions.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    flags = [f"--captions={captions}", f"--output={output}", "--count=3", "--fit_share=0.5"]
    command = [sys.executable, "-m", "launch.word_labels", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "cat, dog, brown" in done.stdout, done.stderr
    assert read_listing(output) == label_by_words(LINES, "val", 3, 0.5)[0]
