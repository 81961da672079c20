"""What the tests of preparation share: photographs as a listing or as tars, and folders compared."""

import io
import json
from pathlib import Path
import pickle
import tarfile

from tc_jepa.data.prepare import dataset

PHOTOS = Path(__file__).parent / "fixtures" / "photos"
PHOTO_LINES = [json.loads(line) for line in (PHOTOS / "captions.jsonl").read_text().splitlines()]


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_tar(path: Path, members: dict[str, bytes | str | dict]) -> Path:
    """Members by name: bytes, text, or what becomes JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            text = json.dumps(content) if isinstance(content, dict) else content
            data = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pickle_writer(monkeypatch) -> None:
    """Shards are written by a pickled copy of the writer, as in worker processes, which take seconds to start."""
    run = dataset.processes.run
    monkeypatch.setattr(
        dataset.processes, "run", lambda function, *rest: run(pickle.loads(pickle.dumps(function)), *rest)
    )
