"""launch.caption: two answers become the sentences of captions.jsonl, a killed command goes on, models are local."""

import json
import os

import numpy as np
from PIL import Image
import pytest

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.prepare import captioner
from tc_jepa.data.prepare.captioner import caption_folder, Captioner, find_images, weights_of
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.errors import UserError
from tests.test_commands import launch

PROMPTS = ("short", "detail")


@pytest.fixture
def images(tmp_path):
    """Five images of one colour each, two of them in a folder below, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.PNG", "below/a.jpg", "below/c.webp", "d.jpeg")):
        Image.new("RGB", (20, 16), (40 * i, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def answer(pictures, prompt):
    """What a model would say."""
    reds = [int(np.round(picture[..., 0].mean() / 40)) for picture in pictures]
    more = " It has no star. A photo of red %d!" if prompt == "detail" else ""
    return [f"A photo of red {red}." + (more % red if more else "") for red in reds]


def never():
    raise AssertionError("a model is loaded")


def test_sentences_of_both_answers_are_captions_without_duplicates(images, tmp_path):
    output = tmp_path / "new" / "captions.jsonl"
    assert caption_folder(images, output, lambda: answer, PROMPTS, 2, {}) == 5
    found = {line["file"]: line["captions"] for line in map(json.loads, output.read_text().splitlines())}
    assert list(found) == find_images(images) == ["a.png", "b.PNG", "below/a.jpg", "below/c.webp", "d.jpeg"]
    assert found["below/c.webp"] == ["A photo of red 3.", "It has no star."]
    assert [path.name for path in output.parent.iterdir()] == ["captions.jsonl"]
    prepare_folder(images, output, tmp_path / "data", vocabulary=None, workers=0)


def test_a_stopped_command_goes_on_where_it_was(images, tmp_path, monkeypatch):
    monkeypatch.setattr(captioner, "PIECE", 2)
    whole, output, asked = tmp_path / "whole.jsonl", tmp_path / "captions.jsonl", []

    def failing(pictures, prompt):
        asked.append(len(pictures))
        if len(asked) > 4:
            raise RuntimeError
        return answer(pictures, prompt)

    caption_folder(images, whole, lambda: answer, PROMPTS, 2, {"weights": 1})
    with pytest.raises(RuntimeError):
        caption_folder(images, output, lambda: failing, PROMPTS, 2, {"weights": 1})
    assert not output.exists()
    for other in ({"weights": 2}, {}):
        with pytest.raises(UserError):
            caption_folder(images, output, never, PROMPTS, 2, other)
    asked.clear()
    caption_folder(images, output, lambda: failing, PROMPTS, 2, {"weights": 1})
    assert asked == [1, 1]  # both prompts about the fifth image
    assert output.read_text() == whole.read_text()
    with pytest.raises(UserError):
        caption_folder(images, output, lambda: answer, PROMPTS, 2, {"weights": 1})


def test_a_command_that_was_stopped_before_its_last_file_needs_no_model(images, tmp_path, monkeypatch):
    output = tmp_path / "captions.jsonl"
    with monkeypatch.context() as context:
        context.setattr(captioner.PartialFolder, "discard", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            caption_folder(images, output, lambda: answer, PROMPTS, 2, {})
    output.unlink()
    assert caption_folder(images, output, never, PROMPTS, 2, {}) == len(output.read_text().splitlines()) == 5


def test_a_file_that_is_no_image_is_named(images, tmp_path):
    (images / "b.PNG").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="b.PNG"):
        caption_folder(images, tmp_path / "captions.jsonl", lambda: answer, PROMPTS, 2, {})
    with pytest.raises(UserError, match="images"):
        find_images(tmp_path / "images" / "nothing")


def test_a_name_that_json_cannot_hold_and_no_prompts_are_refused_before_a_model_is_loaded(images, tmp_path):
    with pytest.raises(UserError, match="--short and --detailed"):
        caption_folder(images, tmp_path / "captions.jsonl", never, (), 2, {})
    (images / "a.png").rename(images / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match="caf.*rename"):
        caption_folder(images, tmp_path / "captions.jsonl", never, PROMPTS, 2, {})
    assert not list(tmp_path.glob("captions*"))


def blip(folder):
    """A BLIP of one layer with random weights, as Hugging Face publishes them."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch").manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "red", "star", "."]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config=small
        | {"vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
        | {"eos_token_id": 3},
        vision_config=small | {"image_size": 16, "patch_size": 8},
    )
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    seen = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    transformers.BlipProcessor(seen, tokenizer).save_pretrained(folder)
    return folder


TEMPLATE = (
    "{% for turn in messages %}USER : {% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} BOT :{% endif %}"
)


def llava(folder):
    """The same of a LLaVA, which is asked in a conversation."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    pytest.importorskip("torch").manual_seed(0)
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER", "BOT", ":", "a", "photo", "of", "red", "star"]
    splitter = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    splitter.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=splitter, additional_special_tokens=["<image>"], **special
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, num_hidden_layers=2, image_size=16, patch_size=8),
        text_config=transformers.LlamaConfig(
            **small, vocab_size=len(words), num_hidden_layers=1, pad_token_id=0, bos_token_id=2, eos_token_id=3
        ),
        image_token_index=4,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    seen = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.LlavaProcessor(
        seen,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("build", [blip, llava])
def test_a_model_of_transformers_captions_a_folder(images, tmp_path, build):
    torch = pytest.importorskip("torch")
    model, output = build(tmp_path / "model"), tmp_path / "captions.jsonl"
    arguments = [f"--images={images}", f"--model={model}", "--tokens=4", "--short=a photo of", "--detailed="]
    done = launch(*arguments, f"--output={output}", command="caption")
    assert not done.returncode, done.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["file"] for line in lines] == find_images(images)
    said = Captioner(model, "cpu", 4)
    for line in lines:  # one image at a time gives what a batch gives
        (one,) = said([np.asarray(Image.open(images / line["file"]).convert("RGB"))], "a photo of")
        assert "USER" not in one and line["captions"] == list(candidates((), [one]).texts)
    assert list(weights_of(model)) == ["model.safetensors"]
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device=cuda"):
            Captioner(model, "cuda", 4)
    whole = (model / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"):
        (model / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="--model"):
            Captioner(model, "cpu", 4)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    done = launch(*arguments, f"--output={tmp_path / 'other.jsonl'}", command="caption")
    assert done.returncode == 2 and "--model" in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_folder_is_named(images, tmp_path):
    done = launch(f"--images={images}", "--model=nothing", f"--output={tmp_path / 'c.jsonl'}", command="caption")
    assert done.returncode == 2 and "--model=nothing" in done.stderr
