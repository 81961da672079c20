"""Images with the files of captions and questions of COCO, VQAv2, GQA, Karpathy's splits and Flickr8k, as published."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import json
from operator import index
import os
from pathlib import Path
import re
import tempfile
from typing import Any, NamedTuple

from tc_jepa.data.prepare import dataset, folder, texts
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.sources import SPLITS, TRAIN
from tc_jepa.errors import UserError
from tc_jepa.storage.reading import parse_json, read_regular

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
KARPATHY = {"train": "train", "restval": "train", "val": "val", "test": "test"}  # splits: his name -> ours
GIVE = "give COCO's captions, VQAv2's questions and answers, GQA's questions, dataset_NAME.json or Flickr8k.token.txt"


class Said(NamedTuple):
    """What a file says of an image: one thing."""

    image: tuple[str | int, ...]  # what to look for: names, with or without folder and suffix, or numbers at their end
    caption: str | None = None
    question: str | None = None
    number: int | None = None  # of a question whose answers are in another file
    answers: tuple[str, ...] = ()
    kind: str = folder.ANY_KIND
    split: str | None = None  # where the file says it
    listed: bool = False  # that it is in the file, and no more


@dataclasses.dataclass
class Image:
    """What all files say of an image."""

    split: str
    where: str  # the file that first said something
    captions: list[str] = dataclasses.field(default_factory=list)
    questions: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def ask(self, said: Said, answered: Said) -> None:
        self.questions.append({"question": said.question, "answers": answered.answers, "kind": answered.kind})


def prepare_annotations(
    images: str,
    annotations: list[str],
    output: str,
    vocabulary: str | None = None,
    skip_bad: bool = False,
    words: int | None = None,
    workers: int = 0,
) -> Summary:
    """Writes the images that the files `annotations` name, [SPLIT:]FILE each, to the new folder `output`.

    sources.SOURCES["annotations"] describes the files. The rest is as in prepare_folder. Raises UserError, which names
    the file, for one in none of the forms, an image that is not there or in two splits, and a question without answers.
    """
    root = Path(images)
    if not root.is_dir():
        raise UserError(f"--images={root} is not a folder; give the one that the images of --annotations are in")
    model, found = dataset.read_vocabulary(vocabulary), _collect(root, annotations)
    settings = {"source": "annotations", "images": str(root.resolve()), "annotations": annotations}
    if not found:
        raise UserError("--annotations: no image has captions or questions; give files that say some of listed images")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "captions.jsonl"
        with path.open("w") as file:
            for name, image in found.items():
                line = {"file": name, "split": image.split, "captions": image.captions, "questions": image.questions}
                file.write(json.dumps(line) + "\n")
        listing = folder.Listing(path, root.resolve(), "--annotations")
        return folder.prepare_listing(listing, output, settings, model, None, skip_bad, words, workers)


def _collect(root: Path, annotations: Iterable[str]) -> dict[str, Image]:
    """By path below `root`, in their order: what is said of each image that has captions or questions."""
    files, collected = Index(root), Collected()
    read = []
    for given in annotations:
        split, separator, path = given.partition(":")
        split, path = (split, path) if separator and split in SPLITS else (None, given)
        read += [(split, path, said) for said in _read(Path(path))]
    for split, path, said in sorted(read, key=lambda one: not one[2].listed):  # lists first
        if split and said.split:
            raise UserError(f"{path} says the split of each image; leave out {split}: before it")
        names = files.names(said.image)
        if said.listed or not collected.leaves_out(names):
            collected.add(files.only(names, said.image, path), said, said.split or split, path)
    return collected.images()


class Collected:
    """What files say, put together by image. Where there are lists of images, they are added first."""

    def __init__(self):
        self._images: dict[str, Image] = {}
        self._listed: dict[str, str] = {}  # the splits of images in lists
        self._asked: dict[int, tuple[str, str, Said]] = {}  # by number: image, file, and question
        self._answered: dict[int, tuple[str, str, Said]] = {}

    def leaves_out(self, names: Sequence[str]) -> bool:
        """Whether there are lists, and none of these images is in one."""
        return bool(self._listed) and self._listed.keys().isdisjoint(names)

    def add(self, name: str, said: Said, split: str | None, where: str) -> None:
        """Raises UserError for an image in two splits, and for a question that two files ask, or answer."""
        if said.listed:
            _check_split(name, self._listed.setdefault(name, split or TRAIN), split or TRAIN, where, "another file")
        elif said.number is not None:
            known = self._answered if said.question is None else self._asked
            if said.number in known:
                before = known[said.number][1]
                raise UserError(f"question {said.number} is in {before} and again in {where}; give each once")
            known[said.number] = name, where, said
            if said.question is not None:
                self._image(name, split, where)
        else:
            image = self._image(name, split, where)
            if said.caption is not None:
                image.captions.append(said.caption)
            else:
                image.ask(said, said)

    def _image(self, name: str, split: str | None, where: str) -> Image:
        listed = self._listed.get(name, split or TRAIN)
        image = self._images.setdefault(name, Image(listed, where))
        _check_split(name, image.split, split or listed, where, image.where)
        return image

    def images(self) -> dict[str, Image]:
        """By name, in their order. UserError for a question without answers, and for answers without their question."""
        for found, other, what in ((self._asked, self._answered, "answers"), (self._answered, self._asked, "question")):
            for number, (name, where, _) in found.items():
                if number not in other or other[number][0] != name:
                    reason = f"question {number} of {where}, on {name}, has no {what}"
                    raise UserError(f"{reason}; give the file of its {what} too")
        for number, (name, _, said) in self._asked.items():
            self._images[name].ask(said, self._answered[number][2])
        return dict(sorted(self._images.items()))


def _check_split(name: str, before: str, split: str, where: str, other: str) -> None:
    if before != split:
        reason = f"{name} is in {split} by {where} and in {before} by {other}"
        raise UserError(f"{reason}; give [SPLIT:]FILE so that each image has one split")


class Index:
    """The images below a folder, by what annotations call them."""

    def __init__(self, root: Path):
        self._root, self._found = root, {}
        for folder_path, _, files in os.walk(root):
            for file in files:
                if file.lower().endswith(IMAGES):
                    path = (Path(folder_path) / file).relative_to(root)
                    number = re.search(r"(\d+)$", path.stem)
                    for key in {file, path.stem, int(number[1])} if number else {file, path.stem}:
                        self._found.setdefault(key, []).append(path.as_posix())

    def names(self, image: tuple[str | int, ...]) -> list[str]:
        """The paths of the images that the first of these fits that fits any. A folder in it is part of the name."""
        for one in image:
            if isinstance(one, int):
                names = self._found.get(one, [])
            else:
                names = [name for name in self._found.get(os.path.basename(one), []) if _ends_in(name, one)]
            if names:
                return [one] if one in names else names
        return []

    def only(self, names: Sequence[str], image: tuple[str | int, ...], where: str) -> str:
        """The only one of an image's `names`. UserError where there is none, or several."""
        if len(names) != 1:
            several = f"{len(names)} files below {self._root} are called so, such as {' and '.join(names[:2])}"
            reason = several if names else f"no file below {self._root} is called so"
            raise UserError(f"{where}: image {image[0]}: {reason}; give --images with each image once")
        return names[0]


def _ends_in(name: str, image: str) -> bool:
    """Whether a path ends in an image's folder and name, which may lack its suffix."""
    return f"/{name}".endswith(f"/{image}") or f"/{os.path.splitext(name)[0]}".endswith(f"/{image}")


# The forms of the files


def _read(path: Path) -> Iterator[Said]:
    """What a file says. Raises UserError for one that is in none of the forms."""
    try:
        raw = read_regular(path)
        text = raw.decode("utf-8-sig")
        content = text if path.suffix in (".txt", ".token") else parse_json(text)
    except OSError as error:
        raise UserError(f"--annotations: {path} cannot be read ({error.strerror}); {GIVE}") from error
    except ValueError as error:
        raise UserError(f"--annotations: {path} is not text, or not JSON; {GIVE}") from error
    for recognise, read in FORMS:
        if recognise(content):
            try:
                for said in read(content):
                    _check(said, str(path))
                    yield said
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = str(error) if isinstance(error, ValueError) else f"is not as published ({error})"
                raise UserError(f"--annotations: an entry of {path} {reason}; {GIVE}") from error
            return
    raise UserError(f"--annotations: {path} is in none of the known forms; {GIVE}")


def _check(said: Said, where: str) -> None:
    """Raises UserError, naming the file and the image, for what captions.jsonl could not hold."""
    where = f"--annotations: {where}, image {said.image[0]}"
    texts.class_name(said.kind, where)
    for text in (said.caption, said.question, *said.answers):
        if text is not None:
            texts.string(text, "text", where)
    if said.question is not None and said.number is None and not any(said.answers):
        raise UserError(f"{where}: a question has no answer; remove it")


def _list(key: str, first: str) -> Callable[[Any], bool]:
    """Recognises {key: [{first: ...}, ...]}."""

    def recognise(content: Any) -> bool:
        items = content.get(key) if isinstance(content, dict) else None
        return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and first in items[0]

    return recognise


def _is_gqa(content: Any) -> bool:
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "imageId" in first


def _is_tokens(content: Any) -> bool:
    return isinstance(content, str) and "\t" in content


def _is_list(content: Any) -> bool:
    lines = content.split("\n") if isinstance(content, str) else []
    return any(lines) and all(line.strip().lower().endswith(IMAGES) for line in lines if line.strip())


def _read_captions(content: dict) -> Iterator[Said]:
    names = {index(image["id"]): _text(image["file_name"]) for image in content.get("images", [])}
    for item in content["annotations"]:
        number, caption = index(item["image_id"]), _text(item["caption"])
        yield Said(_named(names[number], number) if names else (number,), caption=caption)


def _named(name: str, number: int) -> tuple[str | int, ...]:
    """COCO names the same image in several ways, which all end in its number."""
    return (name, number) if re.search(rf"(^|\D)0*{number}$", os.path.splitext(name)[0]) else (name,)


def _read_questions(content: dict) -> Iterator[Said]:
    for item in content["questions"]:
        yield Said((index(item["image_id"]),), question=_question(item["question"]), number=index(item["question_id"]))


def _read_answers(content: dict) -> Iterator[Said]:
    for item in content["annotations"]:
        answers, kind = tuple(_text(one["answer"]) for one in item["answers"]), _text(item["answer_type"])
        if not any(answers):
            raise ValueError(f"has no answers, for question {item['question_id']}")
        yield Said((index(item["image_id"]),), number=index(item["question_id"]), answers=answers, kind=kind)


def _read_gqa(content: dict) -> Iterator[Said]:
    for item in content.values():
        kind, answers = _text(item["types"]["structural"]), (_text(item["answer"]),)
        yield Said((_text(item["imageId"]),), question=_question(item["question"]), answers=answers, kind=kind)


def _read_karpathy(content: dict) -> Iterator[Said]:
    for item in content["images"]:
        if item["split"] not in list(KARPATHY):
            raise ValueError(f"is in split {item['split']!r}, which is none of {', '.join(KARPATHY)}")
        for sentence in item["sentences"]:
            yield Said((_text(item["filename"]),), caption=_text(sentence["raw"]), split=KARPATHY[item["split"]])


def _read_tokens(content: str) -> Iterator[Said]:
    """NAME#NUMBER, a tab and a caption."""
    for line in filter(str.strip, content.split("\n")):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise ValueError(f"has no tab: {line[:80]!r}")
        yield Said((name.partition("#")[0],), caption=_text(caption))


def _read_list(content: str) -> Iterator[Said]:
    for line in filter(str.strip, content.split("\n")):
        yield Said((line.strip(),), listed=True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"has {value!r} in the place of a text"[:200])
    return value.strip()


def _question(value: Any) -> str:
    if not _text(value).strip(" ?"):
        raise ValueError("has an empty question")
    return _text(value)


FORMS = (  # (whether the content of a file is in a form, what it then says)
    (_list("annotations", "caption"), _read_captions),  # captions_train2017.json
    (_list("questions", "question_id"), _read_questions),  # v2_OpenEnded_mscoco_train2014_questions.json
    (_list("annotations", "answers"), _read_answers),  # v2_mscoco_train2014_annotations.json
    (_list("images", "sentences"), _read_karpathy),  # dataset_coco.json
    (_is_gqa, _read_gqa),  # train_balanced_questions.json
    (_is_tokens, _read_tokens),  # Flickr8k.token.txt
    (_is_list, _read_list),  # Flickr_8k.trainImages.txt
)
