"""Whatever is given at a door, a right result or a UserError comes out: hypothesis looks for what is neither.

TC_JEPA_EXAMPLES is how many inputs are tried at each door; .ci/run tries 500.
"""

import io
import json
import os
from pathlib import Path
import shutil
import struct
import tempfile

from hypothesis import assume, given, HealthCheck, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from tc_jepa.convert import folder as converted
from tc_jepa.convert import hf_ijepa, t5, tensors
from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.images import decode_image, decode_mask, EncodedImage, image_shape
from tc_jepa.data.prepare.annotations import prepare_annotations
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.tars import prepare_tars
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.errors import UserError
from tc_jepa.pretrained.encoder import is_run
from tc_jepa.storage.checkpoint import read_config, restore_trained
from tests.preparing import write_tar

FIXTURES = Path(__file__).parent / "fixtures"
door = settings(
    max_examples=int(os.environ.get("TC_JEPA_EXAMPLES", "20")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def one_line(error: UserError) -> None:
    assert str(error) and "\n" not in str(error)


def encoded(pixels: np.ndarray, mode: str, form: str, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(file, form, exif=exif.tobytes())
    return file.getvalue()


PLACE = st.floats(0, 0.1) | st.floats(0, 1)  # in a file, as a share of its length: headers are at the beginning
EDITS = st.just([]) | st.lists(st.tuples(PLACE, st.binary(max_size=8), st.booleans()), min_size=1, max_size=3)


def damaged(content: bytes, edits: list[tuple[float, bytes, bool]]) -> bytes:
    """A file with bytes changed or put in between; with no bytes to put in, it is cut there."""
    for place, new, instead in edits:
        start = int(place * len(content))
        content = content[:start] + new + content[start + instead * len(new) :] if new else content[:start]
    return content


@pytest.fixture(scope="module")
def root():
    """A folder for all examples of a test: creating one for each takes longer than the test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def fresh(root: Path, *names: str) -> list[Path]:
    """Paths of which nothing is left from the example before."""
    paths = [root / name for name in (*names, "out", "out.partial")]
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return paths[: len(names)]


def prepared(root: Path, line: dict) -> PreparedSource | None:
    """The only image of a listing; None where it is refused, after which nothing is left."""
    (listing,) = fresh(root, "captions.jsonl")
    listing.write_text(json.dumps(line) + "\n")
    try:
        prepare_folder(str(root / "images"), str(listing), str(root / "out"))
    except UserError as error:
        one_line(error)
        assert not (root / "out").exists() and not (root / "out.partial").exists()
        return None
    return PreparedSource(str(root / "out"), line.get("split", "train"))


@pytest.fixture(scope="module")
def images(root):
    folder = root / "images"
    folder.mkdir()
    for name in ("a.png", "7.png"):
        Image.new("RGB", (6, 4), "red").save(folder / name)
    Image.new("RGB", (6, 4), "blue").save(root / "secret.png")
    (folder / "out.png").symlink_to(root / "secret.png")
    return folder


WHOLE = st.sampled_from(["a.png", "./a.png", "out.png", "../secret.png", "../images/out.png", "../images/a.png"])
PARTS = st.sampled_from(["a.png", "out.png", "..", ".", "", "images", "secret.png", "\0", "é", "~", "x" * 300]) | TEXT


@door
@given(
    path=WHOLE | st.lists(PARTS, min_size=1, max_size=4).map("/".join),
    start=st.sampled_from(["", "", "/"]),
    mask=st.booleans(),
)
def test_paths(root, images, path, start, mask):
    path = start + path
    source = prepared(root, {"captions": [], "file": "a.png", "mask" if mask else "file": path})
    assert source is None or source[0].image[0, 0].tolist() == [255, 0, 0]  # never the one outside


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged files
@door
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "LAB", "HSV"]),
    form=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    orientation=st.integers(0, 9),
    edits=EDITS,
)
def test_modes_of_images(mode, form, size, orientation, edits):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    try:
        data = encoded(pixels, mode, form, orientation)
    except (OSError, ValueError, KeyError):  # a format that does not have the mode
        assume(False)
    data = damaged(data, edits)
    image = EncodedImage(data, "here")
    try:
        found = [image.pixels(divisor) for divisor in image.divisors][-1]
    except UserError as error:
        one_line(error)
        return
    assert found.dtype == np.uint8 and found.shape == image.shape == (*image_shape(io.BytesIO(data)), 3)


@door
@given(
    mode=st.sampled_from(["1", "L", "P", "I;16", "RGB"]),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    orientation=st.integers(1, 8),
    edits=EDITS,
)
def test_masks(mode, size, orientation, edits):
    classes = np.random.default_rng(0).integers(0, 5, size).astype(np.uint8)
    whole = encoded(classes, mode, "PNG", orientation)
    data = damaged(whole, edits)
    try:
        found = decode_mask(data)
    except ValueError:
        return
    assert found.dtype == np.uint8 and found.shape == image_shape(data)
    if data == whole and mode == "L":
        np.testing.assert_array_equal(found, decode_image(data)[..., 0])


KEYS = st.sampled_from(["1", "2", "é", "d/1", ".h", "../x"])
ENDINGS = st.sampled_from(["jpg", "png", "txt", "json", "a.jpg", "a.txt", "a.b.json", "", "JPG", "tar"])
CONTENT = st.binary(max_size=20) | st.dictionaries(st.just("caption") | TEXT, JSON, max_size=2)


@door
@given(
    text=CONTENT,
    others=st.just([]) | st.lists(st.tuples(KEYS, ENDINGS, CONTENT), max_size=5),
    field=st.sampled_from(["txt", "a.txt", "caption"]),
    skip_bad=st.booleans(),
    edits=EDITS,
)
def test_tars(root, text, others, field, skip_bad, edits):
    jpg = encoded(np.full((8, 8, 3), 99, np.uint8), "RGB", "JPEG")
    files = {"0.jpg": jpg, "0.txt": "a", "0.a.txt": "b", "0.json": {"caption": "c"}}
    files |= {"00.jpg": jpg, "00.txt": text, "00.json": text}
    files |= {f"{key}.{ending}": jpg if ending.endswith("jpg") else content for key, ending, content in others}
    (path,) = fresh(root, "a.tar")
    whole = write_tar(path, files).read_bytes()
    path.write_bytes(data := damaged(whole, edits))
    try:
        prepare_tars([str(path)], str(root / "out"), caption_fields=[field], skip_bad=skip_bad)
    except UserError as error:
        one_line(error)
        return
    source = PreparedSource(str(root / "out"), "train")
    assert len(source) >= 1
    if data == whole:
        assert source[0].captions == ({"txt": "a", "a.txt": "b", "caption": "c"}[field],)


@door
@given(texts=st.lists(st.text(max_size=60)), descriptions=st.lists(st.text(max_size=60)), words=st.integers(2, 8))
def test_captions(texts, descriptions, words):
    found = candidates(texts, descriptions).texts
    assert all(text == " ".join(text.split()) != "" for text in found)
    ids, valid = CaptionTokenizer(scenes_vocabulary_path(), words).encode(found)
    assert ids.shape == valid.shape == (len(found), words) and (not found or valid[:, 0].all())


NAME = st.sampled_from(["cat", "a\nb", " a", "", "\ud800", "é"]) | TEXT
TEXTS = st.lists(NAME, max_size=3)
FIELDS = {
    "descriptions": TEXT | TEXTS | JSON,
    "label": NAME | JSON,
    "labels": TEXTS | JSON,
    "split": st.sampled_from(["train", "val", "test"]) | JSON,
    "mask": TEXT | JSON,
    "questions": st.lists(st.fixed_dictionaries({"question": TEXT | JSON, "answers": TEXTS | JSON}), max_size=2) | JSON,
}


@door
@given(
    line=st.fixed_dictionaries({"file": st.just("a.png"), "captions": TEXTS | JSON}, optional=FIELDS),
    skip=st.sets(st.sampled_from(sorted(FIELDS))),
)
def test_labels_and_other_fields(root, images, line, skip):
    line = {key: value for key, value in line.items() if key not in skip}
    source = prepared(root, line)
    if source is None:
        return
    labels = source.labels(0)
    assert labels.keys() == line.keys() & {"label", "labels"}
    if "label" in line:
        assert source.tasks["label"].classes[labels["label"]] == line["label"]
    if "labels" in line:
        assert {name for name, is_one in zip(source.tasks["labels"].classes, labels["labels"]) if is_one} == set(
            line["labels"]
        )


ENTRIES = {  # of published annotations, by form: how a file holds entries, and a good one
    "coco": (lambda one: {"annotations": [one]}, {"image_id": 7, "caption": "a"}),
    "questions": (lambda one: {"questions": [one]}, {"image_id": 7, "question_id": 1, "question": "b"}),
    "answers": (
        lambda one: {"annotations": [one]},
        {"image_id": 7, "question_id": 1, "answer_type": "other", "answers": [{"answer": "c"}]},
    ),
    "karpathy": (lambda one: {"images": [one]}, {"filename": "7.png", "split": "train", "sentences": [{"raw": "d"}]}),
    "gqa": (lambda one: {"1": one}, {"imageId": "7", "question": "e", "answer": "f", "types": {"structural": "query"}}),
}


@door
@given(
    form=st.sampled_from(sorted(ENTRIES)),
    key=st.integers(0, 3),
    value=st.none() | JSON,
    change=st.booleans(),
    edits=EDITS,
)
def test_annotations(root, images, form, key, value, change, edits):
    hold, entry = ENTRIES[form]
    if change:
        entry = entry | {sorted(entry)[key % len(entry)]: value}
    (path, other) = fresh(root, "annotations.json", "others.json")
    path.write_bytes(damaged(json.dumps(hold(entry)).encode(), edits))
    files = [str(path)]
    if form in ("questions", "answers"):
        hold, entry = ENTRIES["answers" if form == "questions" else "questions"]
        other.write_text(json.dumps(hold(entry)))
        files.append(str(other))
    refused = refused_or(prepare_annotations, str(images), files, str(root / "out")) is None
    assert refused != (root / "out").exists() and not (root / "out.partial").exists()
    if not refused and not edits and not change:
        source = PreparedSource(str(root / "out"), "train")
        said = [*source[0].captions, *(word for one in source.questions(0) for word in (one.text, *one.answers))]
        assert said == {"coco": ["a"], "karpathy": ["d"], "gqa": ["e", "f"]}.get(form, ["b", "c"])


def refused_or(function, *arguments):
    try:
        return function(*arguments)
    except UserError as error:
        one_line(error)
        return None


CONFIG_VALUE = st.integers(0, 100) | st.sampled_from([1 << 40, 10**9, 0, -1, 0.5, float("inf"), "t5", "ijepa"]) | JSON
CONFIGS = {"hf_ijepa_tiny": hf_ijepa.load, "t5_v1_1": t5.load}


@door
@given(name=st.sampled_from(sorted(CONFIGS)), key=st.integers(0, 50), value=CONFIG_VALUE, edits=EDITS)
def test_configs(root, name, key, value, edits):
    (folder,) = fresh(root, "weights")
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / "config.json").read_text())
    changed = config | {sorted(config)[key % len(config)]: value}
    for content in (json.dumps(changed).encode(), damaged(json.dumps(config, indent=1).encode(), edits)):
        (folder / "config.json").write_bytes(content)
        refused_or(CONFIGS[name], folder)
        refused_or(is_run, folder)


STEPS = st.sampled_from(["3", "x", "-1", "3.orbax-checkpoint-tmp"])
METADATA = st.sampled_from(["_METADATA", "manifest.ocdbt", "_sharding"])


@door
@given(edits=EDITS, step=STEPS, files=st.dictionaries(METADATA, st.binary(max_size=30) | JSON))
def test_checkpoints(root, edits, step, files):
    (workdir,) = fresh(root, "run")
    state = workdir / "checkpoints" / step / "state"
    state.mkdir(parents=True)
    (workdir / "config.json").write_bytes(damaged((FIXTURES / "config_08567d1.json").read_bytes(), edits))
    for name, content in files.items():
        (state / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    refused_or(read_config, workdir)
    assert refused_or(restore_trained, workdir, None, "encoder") is None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A converted folder, and its file in two parts: the header and the numbers."""
    folder = tmp_path_factory.mktemp("converted")
    converted.save(hf_ijepa.load(FIXTURES / "hf_ijepa_tiny"), folder, "a test")
    whole = (folder / converted.ENCODER).read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    return folder, json.loads(whole[8 : 8 + size]), whole[8 + size :]


SIZES = st.lists(st.integers(0, 100) | st.integers(0, 2**64), max_size=3)
ENTRY = {"dtype": st.sampled_from(["F32", "I64", "BF16", "F8_E4M3", ""]), "shape": SIZES, "data_offsets": SIZES}


@door
@given(name=st.integers(0, 50), entry=st.none() | st.fixed_dictionaries({}, optional=ENTRY) | JSON, edits=EDITS)
def test_weights(weights, name, entry, edits):
    folder, header, numbers = weights
    name = sorted(header)[name % len(header)]
    if entry is not None:
        header = header | {name: header[name] | entry if isinstance(entry, dict) else entry}
    text = json.dumps(header).encode()
    data = damaged(struct.pack("<Q", len(text)) + text + numbers, edits)
    (folder / converted.ENCODER).write_bytes(data)
    found = refused_or(converted.load, folder)
    if entry is None and not edits:
        assert found is not None
    if found is not None:
        assert tensors.tensors_in(folder / converted.ENCODER).keys() == converted.flatten(found.params).keys()
