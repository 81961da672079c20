"""Captions of images by an image-to-text model of transformers, from a local folder."""

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
import tqdm

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.images import decode_image
from tc_jepa.data.prepare.tars import IMAGE_ENDINGS
from tc_jepa.errors import UserError
from tc_jepa.storage.faults import writing
from tc_jepa.storage.files import refuse_existing, replace_text
from tc_jepa.storage.hashing import file_sha256
from tc_jepa.storage.partial import partial_path, PartialFolder
from tc_jepa.storage.reading import lfs_reason_of, read_regular

PIECE = 64  # images of a piece of unfinished work
Answer = Callable[[Sequence[np.ndarray], str], list[str]]  # images uint8 [H, W, 3] and a prompt -> a text for each


class Captioner:
    """Answers a prompt about images, greedily, with a model and a processor from a local folder.

    Weights are read from safetensors alone, and no code that a folder brings is run. A model with a chat template is
    asked in a conversation; any other continues the prompt. Raises UserError for a folder that transformers cannot read
    so.
    """

    def __init__(self, folder: Path, device: str, tokens: int):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise UserError(f"captions need more packages ({error}); pip install '.[caption]'") from error
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor = AutoProcessor.from_pretrained(folder, **local)
            model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, dtype="auto", **local)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            pointers = (f"{path.name}: {why}" for path in sorted(folder.iterdir()) if (why := lfs_reason_of(path)))
            reason = next(pointers, None) or [*str(error).strip().splitlines(), type(error).__name__][0]
            raise UserError(
                f"--model={folder} is not an image-to-text model that can be loaded ({reason}); give a folder with "
                "config.json, safetensors and the files of its processor",
                about="model",
            ) from error
        try:
            self._model = model.to(device).eval()
        except (AssertionError, RuntimeError) as error:  # PyTorch's without CUDA, without a driver, without memory
            reason = str(error).strip().splitlines()[0]
            fix = "give cpu" if device != "cpu" else "take a smaller model, or a machine with more memory"
            raise UserError(f"--device={device} cannot hold the model ({reason}); {fix}", about="device") from error
        if getattr(self._processor, "tokenizer", None) is not None:
            self._processor.tokenizer.padding_side = "left"  # a text that is continued ends at the right
        self._tokens = tokens

    def __call__(self, images: Sequence[np.ndarray], prompt: str) -> list[str]:
        """A text for each image, uint8 [H, W, 3]."""
        text = prompt
        if getattr(self._processor, "chat_template", None):
            question = [{"type": "image"}, {"type": "text", "text": prompt}]
            turns = [{"role": "user", "content": question}]
            text = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        pictures = [Image.fromarray(image) for image in images]
        inputs = self._processor(images=pictures, text=[text] * len(images), padding=True, return_tensors="pt")
        written = self._model.generate(
            **inputs.to(self._model.device, self._model.dtype), do_sample=False, max_new_tokens=self._tokens
        )
        asked = inputs["input_ids"]
        if written.shape[1] >= asked.shape[1] and bool((written[:, : asked.shape[1]].cpu() == asked.cpu()).all()):
            written = written[:, asked.shape[1] :]  # most models repeat the question
        return [text.strip() for text in self._processor.batch_decode(written, skip_special_tokens=True)]


def caption_folder(
    images: Path, output: Path, load: Callable[[], Answer], prompts: Sequence[str], batch_size: int, about: dict
) -> int:
    """Writes a captions.jsonl of all images in a folder; returns their number.

    An image's captions are the sentences of the answers to all prompts, without duplicates. `load` gives what answers;
    it is called once the arguments are checked, and only if images are left. `about` is what the captions depend on
    beside the prompts, in JSON's types: unfinished work of other settings is refused. Raises UserError for a folder
    without images, for an image that does not decode, and without a prompt.
    """
    if not prompts:
        raise UserError("--short and --detailed are both empty; give one of them", about="short")
    refuse_existing(output)
    names = find_images(images)
    with PartialFolder(partial_path(output), about | {"prompts": list(prompts), "images": names}) as partial:
        pieces = {f"{start:09d}.jsonl": names[start : start + PIECE] for start in range(0, len(names), PIECE)}
        done = {path.name for path in partial.pieces()}
        if left := {name: piece for name, piece in pieces.items() if name not in done}:
            answer, finished = load(), len(names) - sum(map(len, left.values()))
            with tqdm.tqdm(total=len(names), initial=finished, desc="captions", unit="image") as bar:
                for name, piece in left.items():
                    lines = []
                    for i in range(0, len(piece), batch_size):
                        lines += _caption(images, piece[i : i + batch_size], answer, prompts)
                    replace_text(partial.data / name, "".join(lines))
                    bar.update(len(piece))
        whole = "".join((partial.data / name).read_text() for name in pieces)
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_text(output, whole)
        partial.discard()
    return len(names)


def find_images(folder: Path) -> list[str]:
    """The paths of all image files in a folder, at any depth, relative to it and sorted.

    UserError where there is none, and for a name that is not Unicode, which JSON cannot hold.
    """
    found = []
    for path, _, files in os.walk(folder):
        found += [os.path.join(path, name) for name in files if name.rpartition(".")[2].lower() in IMAGE_ENDINGS]
    if not found:
        raise UserError(f"--images={folder} has no {', '.join(IMAGE_ENDINGS)} file; give a folder of images")
    names = sorted(Path(path).relative_to(folder).as_posix() for path in found)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"--images={folder}: the name {name!r} is not Unicode; rename it", about="images"
            ) from error
    return names


def weights_of(folder: Path) -> dict[str, str]:
    """The hash of every safetensors file of a model, by name, so that work is not continued with another model."""
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def _caption(root: Path, names: Sequence[str], answer: Answer, prompts: Sequence[str]) -> list[str]:
    pictures = []
    for name in names:
        try:
            pictures.append(decode_image(read_regular(root / name)))
        except (OSError, ValueError) as error:
            raise UserError(f"{root / name} does not decode ({error}); correct it or move it away") from error
    answers = [answer(pictures, prompt) for prompt in prompts]
    return [
        json.dumps({"file": name, "captions": candidates((), texts).texts}, ensure_ascii=False) + "\n"
        for name, texts in zip(names, zip(*answers, strict=True), strict=True)
    ]
