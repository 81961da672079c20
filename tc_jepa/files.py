"""Writing files so that a reader, or a kill, never meets half of one."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes `text` beside `path` and moves it there when whole."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)
