"""Each row of the fault matrix as a command that meets the fault, and the table in the README."""

from collections.abc import Sequence
import hashlib
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests import soak
from tests.fault_matrix import add_to_tar, EQUAL, Fault, FAULTS, FIXTURES, KEPT, Place, small_png, STEPS, table

ROOT = Path(__file__).parent.parent
ROWS = [fault for faults in FAULTS.values() for fault in faults]
SECONDS = 300  # a command that takes longer hangs


def test_the_readme_shows_the_table():
    assert len(ROWS) >= 60
    assert table() in (ROOT / "launch" / "README.md").read_text()


def ran(arguments: Sequence[str]) -> subprocess.CompletedProcess:
    # One device, as the command of a user has, not the eight of the tests.
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `reference`, a run of 12 steps, and `template`, which is copied for each row."""
    folder = tmp_path_factory.mktemp("faults")
    place = Place(folder / "place")
    place.images.mkdir(parents=True)
    (place.images / "a.png").write_bytes(small_png())
    place.line(file="a.png")
    with tarfile.open(place.root / "a.tar", "w"):
        pass
    add_to_tar(place, a_png=small_png(), a_txt=b"a red square")
    shutil.copytree(FIXTURES / "t5_v1_1", place.t5)
    scenes = ["launch.prepare_data", "--source=scenes", "--count=40", "--size=32", "--workers=0"]
    export = ["launch.convert", "--from=tc_jepa", "--to=tc_jepa", f"--input={place.run}", f"--output={place.encoder}"]
    for arguments in ([*scenes, f"--output={place.data}"], place.arguments("train"), export):
        done = ran(arguments)
        assert not done.returncode, done.stderr
    shutil.copytree(place.run, folder / "reference")
    shutil.rmtree(place.run / "checkpoints" / str(STEPS))
    shutil.rmtree(place.run / "report")
    log = place.run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:11]))  # of steps 0 to 10
    place.root.rename(folder / "template")
    return folder


@pytest.fixture
def place(folder):
    shutil.copytree(folder / "template", folder / "place", symlinks=True)
    yield Place(folder / "place")
    shutil.rmtree(folder / "place")


def contents(place: Place) -> dict[str, str]:
    """What is in a place: of each file a hash, of all else what it is."""
    found = {}
    for path in place.root.rglob("*"):
        name = str(path.relative_to(place.root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: f"{fault.command}: {fault.what}")
def test_a_fault_is_named_in_one_line_and_nothing_is_lost(folder, place, fault: Fault):
    more = fault.make(place)
    before = contents(place)
    done = ran([*place.arguments(fault.command), *(more if isinstance(more, (tuple, list)) else ())])
    assert done.returncode == fault.status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = (done.stderr if fault.status else done.stdout + done.stderr).splitlines()
    said = [line for line in lines if line.strip() and "%|" not in line]  # without progress bars
    assert all(part in " ".join(said) for part in fault.says), said
    if fault.after == KEPT:
        assert len([line for line in said if not line.startswith("W")]) == 1, said  # without warnings
        assert contents(place) == before
        return
    lost = soak.difference(folder / "reference", place.run, STEPS)
    assert lost == "" if fault.after == EQUAL else "lines in its log" in lost
