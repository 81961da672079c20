"""The fault matrix: what a command says of a fault, its exit status, and that nothing is lost.

  python -m tests.fault_matrix

prints the table that launch/README.md shows. tests/test_fault_matrix.py makes each fault and runs the command.
"""

from collections.abc import Callable, Sequence
import dataclasses
import io
import json
import os
from pathlib import Path
import shutil
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import tiny

FIXTURES = Path(__file__).parent / "fixtures"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
STEPS, EVERY = 12, 4
SETTINGS = tiny.SMALL_RUN | {
    "train.steps": STEPS,
    "train.checkpoint_every": EVERY,
    "train.keep_checkpoints": 5,
    "train.eval_every": 100,
    "model.encoder": "nano",
}
# What holds after the command.
KEPT = "files unchanged"  # every file that was there is as it was; neither a result nor half of one is there
EQUAL = "ends as without the fault"  # bit for bit
LOGGED = "ends as without the fault, but for that line of the log"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row. `make` makes the fault in a Place and may return flags that the command has besides."""

    what: str
    command: str
    make: Callable[["Place"], Sequence[str] | None]
    status: int
    says: tuple[str, ...]  # parts of the last line on stderr, or of any line where the status is 0
    after: str = KEPT


class Place:
    """A folder with what the commands need. Of the run, which has 12 steps, the checkpoints of steps 4 and 8 are left.

    It is as a kill after step 10 leaves it.
    """

    def __init__(self, root: Path):
        self.root = root
        self.run, self.data, self.images = root / "run", root / "data", root / "images"
        self.newest = self.run / "checkpoints" / "8"
        self.shard = self.data / "captioned_images-train.array_record-00000"
        self.listing = root / "captions.jsonl"
        self.encoder, self.t5 = root / "encoder", root / "t5"
        self.output = root / "out"

    def line(self, **entry: object) -> None:
        """Adds a line to the listing."""
        with self.listing.open("a") as file:
            file.write(json.dumps({"captions": ["a red square"]} | entry) + "\n")

    def picture(self, name: str) -> Path:
        """A new name in the folder of images, and a line for it in the listing."""
        self.line(file=name)
        return self.images / name

    def masked(self, mask: bytes) -> None:
        """An image with a mask."""
        (self.images / "b.png").write_bytes(small_png())
        (self.images / "m.png").write_bytes(mask)
        self.line(file="b.png", mask="m.png")

    def arguments(self, command: str) -> list[str]:
        """The arguments of python -m for a command."""
        settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
        data, output = f"--config.data.path={self.data}", f"--output={self.output}"
        listed = ["--source=folder", f"--images={self.images}", f"--captions={self.listing}", "--workers=0"]
        return {
            "train": ["launch.train", "--config=configs/scenes_standard.py", data, f"--workdir={self.run}", *settings],
            "evaluate": ["launch.evaluate", f"--encoder={self.run}", "--tasks=rank"],
            "report": ["launch.report", f"--workdir={self.run}"],
            "prepare_data": ["launch.prepare_data", *listed, output],
            "prepare_data, tars": [
                "launch.prepare_data",
                "--source=tars",
                f"--input={self.root / 'a.tar'}",
                "--caption_fields=txt",
                "--workers=0",
                output,
            ],
            "extract_features": ["launch.extract_features", f"--encoder={self.encoder}", f"--data={self.data}", output],
            "convert": ["launch.convert", "--to=hf_ijepa", f"--input={self.encoder}", output],
            "convert, t5": ["launch.convert", "--from=t5", f"--input={self.t5}", output],
            "encode_captions": ["launch.encode_captions", f"--data={self.data}", f"--text={self.t5}", output],
        }[command]


def flip(path: Path, bits: int = 0x55) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= bits
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def png(width: int, height: int) -> bytes:
    """A black PNG; one of many pixels takes little space."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def add_to_tar(place: Place, **members: bytes) -> None:
    """Adds the members of a sample; a name's first underscore is the dot before its ending, and a second one too."""
    with tarfile.open(place.root / "a.tar", "a") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def small_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return file.getvalue()


def not_finite(path: Path) -> None:
    arrays = load_file(path)
    first = sorted(arrays)[0]
    arrays[first] = np.full_like(arrays[first], np.nan)
    save_file(arrays, path)


def whole_numbers(path: Path) -> None:
    save_file({name: np.zeros(array.shape, np.int32) for name, array in load_file(path).items()}, path)


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    """Puts something else where a file or folder was."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make(path)


OLDER = ("--config.train.on_damage=older",)


def _log_with_zeros(place: Place) -> None:
    log = place.run / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'{"step": 3,', bytes(11), 1))


def _lost_checkpoints(place: Place) -> None:
    shutil.rmtree(place.run / "checkpoints")


def _stopped(place: Place) -> None:
    (place.run / "stopped.json").write_text(json.dumps({"step": 10, "reason": "loss is nan at step 10"}))


def _results(place: Place, content: str) -> None:
    folder = place.run / "eval" / "8"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(content)


WORKDIR = [
    Fault("config.json cut", "train", lambda p: cut(p.run / "config.json"), 2, ("config.json",)),
    Fault("config.json empty", "train", lambda p: (p.run / "config.json").write_text(""), 2, ("config.json",)),
    Fault("config.json is a list", "train", lambda p: (p.run / "config.json").write_text("[]"), 2, ("config.json",)),
    Fault("config.json removed", "train", lambda p: (p.run / "config.json").unlink(), 2, ("config.json",)),
    Fault("config.json is a folder", "train", lambda p: in_place_of(p.run / "config.json", Path.mkdir), 2, ("config",)),
    Fault(
        "a group of config.json is a number",
        "evaluate",
        lambda p: edit(p.run / "config.json", lambda values: values.update(train=3)),
        2,
        ("config.json", "train"),
    ),
    Fault(
        "a key of config.json is a string",
        "evaluate",
        lambda p: edit(p.run / "config.json", lambda values: values["model"].update(patch_size="many")),
        2,
        ("config.json", "model.patch_size"),
    ),
    Fault("data.json is a string", "train", lambda p: (p.run / "data.json").write_text('"a"'), 2, ("data.json",)),
    Fault("a line of metrics.jsonl is zeros", "train", _log_with_zeros, 0, ("metrics.damaged.jsonl",), LOGGED),
    Fault(
        "a line of metrics.jsonl is a list",
        "report",
        lambda p: (p.run / "metrics.jsonl").write_text("[1]\n"),
        2,
        ("metrics.jsonl, line 1",),
    ),
    Fault("all checkpoints removed", "train", _lost_checkpoints, 2, ("no checkpoint", "saved.json")),
    Fault(
        "checkpoints/ is a file", "train", lambda p: in_place_of(p.run / "checkpoints", Path.touch), 2, ("checkpoints",)
    ),
    Fault("arrays flipped", "train", lambda p: flip(largest(p.newest / "state")), 2, ("step 8", "step 4")),
    Fault("one bit of the arrays flipped", "evaluate", lambda p: flip(largest(p.newest / "target"), 1), 2, ("step 8",)),
    Fault(
        "arrays flipped, train.on_damage=older",
        "train",
        lambda p: flip(largest(p.newest / "state")) or OLDER,
        0,
        ("step 8", "damaged"),
        EQUAL,
    ),
    Fault("arrays cut", "train", lambda p: cut(largest(p.newest / "state")), 2, ("step 8", "step 4")),
    Fault("a file of arrays removed", "train", lambda p: largest(p.newest / "state").unlink(), 2, ("step 8",)),
    Fault(
        "arrays are Git LFS pointers",
        "train",
        lambda p: largest(p.newest / "state").write_bytes(LFS_POINTER),
        2,
        ("step 8", "Git LFS"),
    ),
    Fault("the averages removed", "train", lambda p: shutil.rmtree(p.newest / "target"), 2, ("step 8",)),
    Fault(
        "the index of arrays flipped",
        "train",
        lambda p: flip(p.newest / "state" / "manifest.ocdbt"),
        2,
        ("checkpoints/8/state",),
    ),
    Fault(
        "fingerprints are a list",
        "train",
        lambda p: (p.newest / "fingerprints" / "metadata").write_text("[]"),
        2,
        ("step 8", "fingerprints"),
    ),
    Fault(
        "a fingerprint is missing",
        "train",
        lambda p: edit(p.newest / "fingerprints" / "metadata", lambda v: v["state"].popitem()),
        2,
        ("step 8",),
    ),
    Fault(
        "Orbax's metadata of a step is a list",
        "train",
        lambda p: (p.newest / "_CHECKPOINT_METADATA").write_text("[]"),
        2,
        ("_CHECKPOINT_METADATA",),
    ),
    Fault("stopped at a loss that is not finite", "train", _stopped, 2, ("loss is nan at step 10",)),
    Fault("stopped.json is a list", "train", lambda p: (p.run / "stopped.json").write_text("[]"), 2, ("stopped.json",)),
    Fault("results.json is cut", "report", lambda p: _results(p, '{"about": '), 2, ("results.json",)),
    Fault(
        "a score is a string",
        "report",
        lambda p: _results(p, '{"about": {}, "scores": {"a": "b"}}'),
        2,
        ("results.json",),
    ),
    Fault(
        "other keys than before",
        "train",
        lambda p: ["--config.optimizer.warmup_steps=7"],
        2,
        ("optimizer.warmup_steps",),
    ),
]

DATA = [
    Fault("a shard removed", "train", lambda p: p.shard.unlink(), 2, (".array_record",)),
    Fault(
        "a shard is a Git LFS pointer",
        "extract_features",
        lambda p: p.shard.write_bytes(LFS_POINTER),
        2,
        (".array_record", "Git LFS"),
    ),
    Fault("a shard is a folder", "train", lambda p: in_place_of(p.shard, Path.mkdir), 2, (".array_record",)),
    Fault("a shard cut", "train", lambda p: cut(p.shard), 2, (".array_record",)),
    Fault("the vocabulary cut", "train", lambda p: cut(p.data / "vocabulary.model"), 2, ("vocabulary",)),
    Fault(
        "features.json names another class",
        "train",
        lambda p: edit(p.data / "features.json", lambda v: v.update(pythonClassName="os.system")),
        2,
        ("os.system",),
    ),
    Fault(
        "features.json nested 100,000 deep",
        "train",
        lambda p: (p.data / "features.json").write_text("[" * 100_000),
        2,
        ("features.json",),
    ),
]

IMAGES = [
    Fault(
        "an image cut",
        "prepare_data",
        lambda p: p.picture("b.png").write_bytes(small_png()[:60]),
        2,
        ("captions.jsonl:2", "b.png"),
    ),
    Fault(
        "text in an image's place", "prepare_data", lambda p: p.picture("b.png").write_text("no image"), 2, ("b.png",)
    ),
    Fault("an empty image", "prepare_data", lambda p: p.picture("b.png").touch(), 2, ("b.png",)),
    Fault("an image removed", "prepare_data", lambda p: p.picture("b.png") and None, 2, ("b.png",)),
    Fault(
        "an image of 150 million pixels",
        "prepare_data",
        lambda p: p.picture("b.png").write_bytes(png(15_000, 10_000)),
        2,
        ("b.png", "pixels"),
    ),
    Fault(
        "an image of 900 million pixels",
        "prepare_data",
        lambda p: p.picture("b.png").write_bytes(png(30_000, 30_000)),
        2,
        ("b.png", "pixels"),
    ),
    Fault("a pipe in an image's place", "prepare_data", lambda p: os.mkfifo(p.picture("b.png")), 2, ("b.png", "pipe")),
    Fault("a link to /dev/zero", "prepare_data", lambda p: p.picture("b.png").symlink_to("/dev/zero"), 2, ("b.png",)),
    Fault(
        "a link out of the folder",
        "prepare_data",
        lambda p: p.picture("b.png").symlink_to(p.data / "captions.png"),
        2,
        ("b.png", "leaves"),
    ),
    Fault(
        "a path out of the folder", "prepare_data", lambda p: p.line(file="../a.png"), 2, ("captions.jsonl:2", "leaves")
    ),
    Fault(
        "a Git LFS pointer",
        "prepare_data",
        lambda p: p.picture("b.png").write_bytes(LFS_POINTER),
        2,
        ("b.png", "Git LFS"),
    ),
    Fault(
        "a mask of another size",
        "prepare_data",
        lambda p: p.masked(png(3, 3)),
        2,
        ("mask",),
    ),
    Fault(
        "a mask of 150 million pixels",
        "prepare_data",
        lambda p: p.masked(png(15_000, 10_000)),
        2,
        ("mask",),
    ),
    Fault(
        "a line is not JSON",
        "prepare_data",
        lambda p: p.listing.open("a").write("{\n") and None,
        2,
        ("captions.jsonl:2",),
    ),
    Fault(
        "a line nested 100,000 deep",
        "prepare_data",
        lambda p: p.listing.open("a").write("[" * 100_000 + "\n") and None,
        2,
        ("captions.jsonl:2",),
    ),
    Fault(
        "captions are a number",
        "prepare_data",
        lambda p: p.line(file="a.png", captions=3),
        2,
        ("captions.jsonl:2", "captions"),
    ),
    Fault(
        "an unknown split",
        "prepare_data",
        lambda p: p.line(file="a.png", split="later"),
        2,
        ("captions.jsonl:2", "later"),
    ),
    Fault("the output exists", "prepare_data", lambda p: p.output.mkdir(), 2, ("--output",)),
    Fault("a tar cut", "prepare_data, tars", lambda p: os.truncate(p.root / "a.tar", 1600), 2, ("a.tar",)),
    Fault(
        "a sample without an image",
        "prepare_data, tars",
        lambda p: add_to_tar(p, b_txt=b"a cat"),
        2,
        ("a.tar", "b", "no image"),
    ),
    Fault(
        "a caption that is not UTF-8",
        "prepare_data, tars",
        lambda p: add_to_tar(p, b_png=small_png(), b_txt=b"\xff\xfe"),
        2,
        ("a.tar", "b"),
    ),
]

WEIGHTS = [
    Fault(
        "a header of petabytes",
        "convert",
        lambda p: (p.encoder / "encoder.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        2,
        ("encoder.safetensors",),
    ),
    Fault("weights cut", "convert", lambda p: cut(p.encoder / "encoder.safetensors"), 2, ("encoder.safetensors",)),
    Fault(
        "weights are a Git LFS pointer",
        "convert",
        lambda p: (p.encoder / "encoder.safetensors").write_bytes(LFS_POINTER),
        2,
        ("encoder.safetensors", "Git LFS"),
    ),
    Fault(
        "a weight is missing",
        "convert",
        lambda p: save_file(
            dict(sorted(load_file(p.encoder / "encoder.safetensors").items())[1:]), p.encoder / "encoder.safetensors"
        ),
        2,
        ("encoder.safetensors",),
    ),
    Fault(
        "weights that are whole numbers",
        "convert",
        lambda p: whole_numbers(p.encoder / "encoder.safetensors"),
        2,
        ("encoder.safetensors",),
    ),
    Fault(
        "weights that are not finite",
        "convert",
        lambda p: not_finite(p.encoder / "encoder.safetensors"),
        2,
        ("not finite",),
    ),
    Fault(
        "a depth of 100,000",
        "convert",
        lambda p: edit(p.encoder / "config.json", lambda v: v["encoder"].update(depth=100_000)),
        2,
        ("config.json", "100000"),
    ),
    Fault(
        "config.json is a list", "convert", lambda p: (p.encoder / "config.json").write_text("[]"), 2, ("config.json",)
    ),
    Fault(
        "a vocabulary that is text",
        "encode_captions",
        lambda p: (p.t5 / "spiece.model").write_text("words"),
        2,
        ("spiece.model",),
    ),
    Fault(
        "a T5 of a billion layers",
        "convert, t5",
        lambda p: edit(p.t5 / "config.json", lambda v: v.update(num_layers=10**9)),
        2,
        ("config.json", "num_layers"),
    ),
]

FAULTS = {"Workdir": WORKDIR, "Prepared data": DATA, "Images and captions": IMAGES, "Weights": WEIGHTS}


def table() -> str:
    """The rows in Markdown."""
    lines = ["| fault | command | status | its line names | afterwards |", "|---|---|---|---|---|"]
    for title, faults in FAULTS.items():
        lines.append(f"| **{title}** | | | | |")
        for fault in faults:
            named = ", ".join(f"`{part}`" for part in fault.says)
            lines.append(f"| {fault.what} | `{fault.command}` | {fault.status} | {named} | {fault.after} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
