"""Published files of captions and questions, in miniature, to a prepared folder and back; and what is refused."""

import json
from pathlib import Path

from PIL import Image
import pytest

from tc_jepa.data.prepare.annotations import prepare_annotations
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.data.sources import Question
from tc_jepa.errors import UserError

CAPTIONS = {
    "images": [{"id": 139, "file_name": "000000000139.jpg"}, {"id": 7, "file_name": "7.jpeg"}],
    "annotations": [
        {"image_id": 139, "id": 1, "caption": "A dog. "},
        {"image_id": 7, "id": 2, "caption": "A cat."},
        {"image_id": 139, "id": 3, "caption": "A wet dog."},
    ],
}
QUESTIONS = {"questions": [{"image_id": 139, "question_id": 1390, "question": "Is it wet?"}]}
ANSWERS = {
    "annotations": [
        {"image_id": 139, "question_id": 1390, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 9}
        | {"multiple_choice_answer": "yes"}
    ]
}
ANSWERS["annotations"][0]["answers"] = [{"answer": "yes"}] * 9 + [{"answer": "no"}]
GQA = {
    "05": {"imageId": "7", "question": "Who is this?", "answer": "cat", "types": {"structural": "query"}},
    "06": {"imageId": "n8", "question": "Is it?", "answer": "no", "types": {"structural": "verify"}},
}
KARPATHY = {
    "images": [
        {"filename": "COCO_val2014_000000000139.jpg", "split": "restval", "sentences": [{"raw": "a dog"}]},
        {"filename": "n8.png", "split": "val", "sentences": [{"raw": "a wall"}, {"raw": "a tall wall"}]},
        {"filename": "7.jpeg", "split": "test", "sentences": [{"raw": "a cat"}]},
    ]
}
MISNUMBERED = {
    "images": [{"id": 8, "file_name": "frame_1.jpg"}],
    "annotations": [{"image_id": 8, "id": 1, "caption": "A wall."}],
}
TOKENS = (
    "n8.png#0\tA wall .\nn8.png#1\tA tall wall .\n7.jpeg#0\tA cat .\nnowhere.jpg.1#0\tA dog .\n"  # it has such a line
)
ASKED = [{"image_id": 139, "question_id": 1390, "question": "Is it wet?"}]


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for name in ("val2014/COCO_val2014_000000000139.jpg", "more/7.jpeg", "n8.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), "red").save(folder / name)
    return folder


@pytest.fixture
def prepare(images):
    """Prepares files of annotations, by [SPLIT:]NAME: a text or what becomes JSON. Returns the prepared folder."""

    def run(files: dict[str, str | dict]) -> str:
        given = []
        for name, content in files.items():
            split, _, own = name.rpartition(":")
            path = images.parent / own
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            given.append(f"{split}:{path}" if split else str(path))
        prepare_annotations(str(images), given, str(images.parent / "out"))
        return str(images.parent / "out")

    return run


def read(folder: str, split: str) -> dict[str, tuple]:
    source = PreparedSource(folder, split)
    return {source.file(i): (source[i].captions, source.questions(i)) for i in range(len(source))}


def test_captions_and_questions_of_several_files_are_put_together(prepare):
    out = prepare({"captions.json": CAPTIONS, "gqa.json": GQA, "answers.json": ANSWERS, "questions.json": QUESTIONS})
    wet = Question("Is it wet", ("yes",) * 9 + ("no",), "yes/no")
    assert list(read(out, "train")) == sorted(read(out, "train"))
    assert read(out, "train") == {
        "more/7.jpeg": (("A cat.",), [Question("Who is this", ("cat",), "query")]),
        "n8.png": ((), [Question("Is it", ("no",), "verify")]),
        "val2014/COCO_val2014_000000000139.jpg": (("A dog.", "A wet dog."), [wet]),
    }


def test_a_file_has_the_split_before_it(prepare):
    only = {"annotations": CAPTIONS["annotations"][1:2]}
    out = prepare({"val:captions.json": only, "gqa.json": {"06": GQA["06"]}})
    assert read(out, "val").keys() == {"more/7.jpeg"} and read(out, "train").keys() == {"n8.png"}


def test_karpathys_splits(prepare):
    out = prepare({"dataset_coco.json": KARPATHY})
    assert {split: list(read(out, split)) for split in ("train", "val", "test")} == {
        "train": ["val2014/COCO_val2014_000000000139.jpg"],
        "val": ["n8.png"],
        "test": ["more/7.jpeg"],
    }
    assert read(out, "val")["n8.png"] == (("a wall", "a tall wall"), [])
    assert not PreparedSource(out, "val").has_questions


def test_flickr8k_has_the_splits_of_its_lists_and_leaves_out_what_is_in_none(prepare):
    out = prepare({"Flickr8k.token.txt": TOKENS, "trainImages.txt": "n8.png\n", "test:testImages.txt": "7.jpeg\n"})
    assert read(out, "train") == {"n8.png": (("A wall .", "A tall wall ."), [])}
    assert read(out, "test").keys() == {"more/7.jpeg"}


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ([{"id": 1, "file_name": "n8.png"}, {"id": 8, "file_name": "7.jpeg"}], "more/7.jpeg"),  # 8 is not n8.png's
        ([{"id": 8, "file_name": "more/7.jpeg"}], "more/7.jpeg"),
        ([{"id": 139, "file_name": "000000000139.jpg"}], "val2014/COCO_val2014_000000000139.jpg"),
        ([], "n8.png"),
    ],
)
def test_an_image_is_what_the_file_says_that_its_number_is(prepare, listed, found):
    number = listed[-1]["id"] if listed else 8
    out = prepare({"captions.json": {"images": listed, "annotations": [{"image_id": number, "caption": "a"}]}})
    assert list(read(out, "train")) == [found]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"questions.json": QUESTIONS}, "question 1390 .*no answers"),
        ({"answers.json": ANSWERS}, "question 1390 .*no question"),
        ({"a.json": QUESTIONS, "b.json": QUESTIONS, "c.json": ANSWERS}, r"1390 is in .*a\.json and again in .*b\.json"),
        ({"a.json": {"questions": ASKED + ASKED}, "c.json": ANSWERS}, "question 1390 is in"),
        ({"a.json": {"questions": [ASKED[0] | {"image_id": 7}]}, "c.json": ANSWERS}, "question 1390 .*no answers"),
        (
            {"a.json": {"questions": [ASKED[0] | {"question": " ?"}]}, "c.json": ANSWERS},
            r"a\.json has an empty question",
        ),
        ({"captions.json": {"annotations": [{"image_id": 5, "caption": "a dog"}]}}, "image 5: no file"),
        ({"captions.json": MISNUMBERED}, r"image frame_1\.jpg: no file"),  # 8 is n8.png's number, and not there
        ({"gqa.json": {"1": GQA["05"] | {"imageId": "val2014/7"}}}, "image val2014/7: no file"),
        ({"gqa.json": {"1": GQA["05"] | {"answer": ""}}}, r"gqa\.json, image .*no answer"),
        ({"gqa.json": {"1": GQA["05"] | {"types": {"structural": ""}}}}, r"gqa\.json, image .*not a class name"),
        (
            {"captions.json": {"annotations": [{"image_id": 7, "caption": "\ud800"}]}},
            r"captions\.json, image 7: .*Unicode",
        ),
        (
            {"captions.json": {"annotations": [{"image_id": 7, "caption": None}]}},
            r"captions\.json has None in the place",
        ),
        ({"captions.json": {"annotations": [{"image_id": 7, "caption": "a"}, {"image_id": 7}]}}, "'caption'"),
        ({"captions.json": CAPTIONS, "val:gqa.json": GQA}, r"more/7\.jpeg is in val"),
        ({"val:dataset_coco.json": KARPATHY}, r"leave out val:"),
        ({"dataset_coco.json": {"images": [KARPATHY["images"][0] | {"split": "dev"}]}}, "split 'dev'"),
        ({"tokens.txt": TOKENS, "a.txt": "n8.png\n", "val:b.txt": "n8.png\n"}, r"n8\.png is in val"),
        ({"a.txt": "7.jpeg\n", "val:captions.json": CAPTIONS}, r"more/7\.jpeg is in val"),
        ({"a.txt": "n8.png\n"}, "no image has captions"),
        ({"tokens.txt": TOKENS}, r"nowhere\.jpg\.1: no file"),
        ({"captions.txt": "image,caption\nn8.png,a wall\n"}, "none of the known forms"),
        ({"tokens.txt": TOKENS + "n8.png"}, "has no tab: 'n8.png'"),
        ({"instances.json": {"annotations": [{"image_id": 7, "bbox": []}]}}, "none of the known forms"),
        ({"captions.json": "{"}, "not JSON"),
        ({"list.json": [1]}, "none of the known forms"),
    ],
)
def test_what_cannot_be_used_is_refused(prepare, images, files, named):
    with pytest.raises(UserError, match=named):
        prepare(files)
    assert not (images.parent / "out").exists()


def test_two_images_of_one_name_are_refused(prepare, images):
    Image.new("RGB", (6, 4)).save(images / "000000000139.jpg")
    with pytest.raises(UserError, match="image 139: 2 files"):
        prepare({"captions.json": {"annotations": CAPTIONS["annotations"]}})


def test_an_image_that_does_not_decode_is_named(prepare, images):
    (images / "more" / "7.jpeg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"more/7\.jpeg"):
        prepare({"captions.json": CAPTIONS})
