"""A full, read-only or failing disk ends in one line; a reader that goes away ends nothing."""

import contextlib
import errno
import os
from pathlib import Path
import subprocess
import sys

import pytest

from launch import common
from tc_jepa.errors import UserError
from tc_jepa.monitoring.board import Board
from tc_jepa.storage.faults import fault_of, FIXES, StorageFault, writing
from tc_jepa.storage.files import GrowingFile, new_folder, replace_text, replacing

ROOT = Path(__file__).parent.parent
with_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full, a file that is full")


@pytest.mark.parametrize("code", FIXES)
def test_an_error_of_the_disk_names_the_file_that_was_written(code):
    text = ValueError(f'RESOURCE_EXHAUSTED: Error writing "x" [{os.strerror(code)}]')
    for error in (OSError(code, os.strerror(code)), text, OSError(code, "", "run/metrics.jsonl.tmp")):
        with pytest.raises(StorageFault, match=os.strerror(code)) as fault, writing("run/metrics.jsonl"):
            raise error
        assert fault.value.about == "run/metrics.jsonl" and fault.value.status == os.EX_IOERR


def test_only_errors_of_the_disk_are_faults():
    for error in (ValueError("x"), KeyError(1), FileNotFoundError(errno.ENOENT, "", "x"), BrokenPipeError(errno.EPIPE)):
        with pytest.raises(type(error)), writing("file"):
            raise error
        assert fault_of(error) is None
    assert fault_of(ValueError(os.strerror(errno.EACCES))) is None  # of nothing that is being written
    assert fault_of(OSError(errno.EIO, "", "image.jpg")).about == "image.jpg"


def test_a_message_about_input_stays_in_what_is_being_written():
    """An image that cannot be read is not a file that cannot be written."""
    with pytest.raises(UserError, match="^correct image.jpg$") as kept, writing("shard"):
        try:
            raise PermissionError(errno.EACCES, "", "image.jpg")
        except OSError as error:
            raise UserError("correct image.jpg") from error
    assert not isinstance(kept.value, StorageFault)


def test_a_cause_is_found_behind_the_error_that_it_led_to():
    try:
        try:
            raise OSError(errno.ENOSPC, "", "file")
        finally:
            raise RuntimeError("cannot close")
    except RuntimeError as error:
        assert fault_of(error).about == "file"


@pytest.fixture
def full(monkeypatch, tmp_path):
    """A path at which every file is /dev/full: it can be opened, and no byte can be written."""
    path = tmp_path / "file"
    for name in (path, tmp_path / "file.tmp"):
        name.symlink_to("/dev/full")
    return path


@with_full
def test_every_way_to_write_says_what_cannot_be_written(full):
    def replace():
        replace_text(full, "text")

    def grow():
        file = GrowingFile(full)
        try:
            file.write("{}\n")
        finally:
            with contextlib.suppress(StorageFault):
                file.close()

    for write in (replace, grow):
        with pytest.raises(StorageFault) as fault:
            write()
        assert fault.value.about == str(full)


@with_full
def test_a_folder_that_cannot_be_completed_is_named(tmp_path):
    with pytest.raises(StorageFault) as fault, new_folder(tmp_path / "output") as folder:
        (folder / "weights").symlink_to("/dev/full")
        (folder / "weights").write_bytes(b"x")
    assert fault.value.about == str(tmp_path / "output") and not list(tmp_path.iterdir())


def test_what_was_there_stays_where_a_file_cannot_be_replaced(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("before")
    with pytest.raises(StorageFault), replacing(path) as beside:
        beside.write_text("half")
        raise OSError(errno.EDQUOT, "")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@with_full
def test_tensorboard_does_not_wait_for_a_disk_that_is_full(tmp_path, monkeypatch):
    board = Board(tmp_path / "tensorboard", 0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    os.dup2(os.open("/dev/full", os.O_WRONLY), board._events._py_recordio_writer._writer.fileno())
    with pytest.raises(StorageFault) as fault:
        for step in range(10_000):  # tensorboardX buffers
            board.write(step, {"loss": 1.0})
        board.close()
    assert fault.value.about == str(events.parent)
    with contextlib.suppress(StorageFault):
        board.close()


def test_a_fault_without_a_line_of_its_own_becomes_one(capsys):
    def main(argv):
        raise OSError(errno.EROFS, "", "somewhere")

    statuses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command"])
        patch.setattr(common.logging, "disable", lambda: None)
        common.run(main, statuses.append, configs=())
    assert statuses == [os.EX_IOERR]
    assert capsys.readouterr().err.count("\n") == 1


PRINTS = """
import os, sys
from launch import streams
streams.outlive_readers()
print("first", flush=True)
sys.stdin.read()
for number in range(10_000):
    print(number)
    print(number, file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write("done")
os.write(2, b"a library's line")
sys.exit(7)
"""


@pytest.mark.parametrize("closed", [False, True])
def test_a_reader_that_goes_away_ends_nothing(tmp_path, closed):
    """Also where standard output and error were never open."""
    done = tmp_path / "done"
    shell = '"$0" -c "$1" "$2"' + " >&- 2>&-" * closed
    command = ["bash", "-c", shell, sys.executable, PRINTS, str(done)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        if not closed:
            assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        assert process.wait(60) == 7
    assert done.read_text() == "done"
