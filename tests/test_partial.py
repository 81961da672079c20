"""Folders of unfinished work: resumed by the same command, refused to another, and never left empty."""

import json
import subprocess
import sys

import pytest

from tc_jepa.errors import UserError
from tc_jepa.storage.partial import partial_path, PartialFolder, Processes, write_record
from tests.preparing import contents
from tests.test_house import ROOT

SETTINGS = {"data": "here", "size": 3}


def interrupted(path, piece: str | None = "one") -> None:
    with pytest.raises(KeyboardInterrupt), PartialFolder(path, SETTINGS) as partial:
        (partial.data / "half.tmp").write_text("ha")
        if piece is not None:
            (partial.data / piece).write_text("whole")
            write_record(path, piece, [1, "a"])
        raise KeyboardInterrupt


def test_finished_pieces_become_the_output(tmp_path):
    output = tmp_path / "new" / "out"
    path = partial_path(output)
    interrupted(path)
    assert not output.exists()
    with PartialFolder(path, SETTINGS) as partial:
        assert [piece.name for piece in partial.pieces()] == ["one"] and partial.records() == {"one": [1, "a"]}
        (partial.data / "half.tmp").unlink()
        (partial.data / "two").write_text("2")
        partial.finish(output)
    assert contents(tmp_path) == {"new/out/one": b"whole", "new/out/two": b"2"}
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_a_failure_without_a_piece_leaves_nothing(tmp_path):
    interrupted(tmp_path / "new" / "deep" / "out.partial", piece=None)
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_while_there_are_pieces(tmp_path):
    path = tmp_path / "out.partial"
    interrupted(path)
    before = contents(path)
    with pytest.raises(UserError, match=r"out.partial .*size \(there 3, here 4\), more \(there None, here 1\)"):
        PartialFolder(path, SETTINGS | {"size": 4, "more": 1})
    assert contents(path) == before
    PartialFolder(path, json.loads(json.dumps(SETTINGS))).close()
    (path / "data" / "one").unlink()
    PartialFolder(path, {"size": 5}).discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.txt", "data/thesis.txt"])
def test_foreign_files_are_refused_and_kept(tmp_path, name):
    path = tmp_path / "out.partial" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="out.partial .*not created"):
        PartialFolder(tmp_path / "out.partial", SETTINGS)
    assert contents(tmp_path) == {f"out.partial/{name}": b"mine"}


def test_a_command_that_was_killed_while_it_started_is_not_in_the_way(tmp_path):
    (tmp_path / "out.partial" / "data").mkdir(parents=True)
    (tmp_path / "out.partial" / "lock").touch()
    PartialFolder(tmp_path / "out.partial", SETTINGS).close()


def test_only_one_command_at_a_time(tmp_path):
    path = tmp_path / "out.partial"
    code = "import sys, time, pathlib; from tc_jepa.storage.partial import PartialFolder; "
    code += "folder = PartialFolder(pathlib.Path(sys.argv[1]), {'size': 1}); (folder.data / 'one').touch(); "
    code += "print('locked', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            with pytest.raises(UserError, match="out.partial is in use"):
                PartialFolder(path, {"size": 1})
        finally:
            process.kill()
    PartialFolder(path, {"size": 1}).close()


def test_a_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out.partial"):
        PartialFolder(tmp_path / "file" / "out.partial", SETTINGS)


def test_the_first_of_several_processes_makes_and_removes_the_folder(tmp_path):
    path = tmp_path / "out.partial"
    with pytest.raises(UserError) as refused:
        PartialFolder(path, SETTINGS, Processes(1, 2))  # they do not see the same files
    assert refused.value.about == "output" and not path.exists()
    first, second = (PartialFolder(path, SETTINGS, Processes(index, 2)) for index in (0, 1))
    with pytest.raises(KeyboardInterrupt), second:
        raise KeyboardInterrupt
    assert path.exists()
    with pytest.raises(UserError):
        first.check_complete(["one"])
    (second.data / "one").touch()
    first.check_complete(["one"])
    first.discard()
    assert not path.exists()


def test_every_piece_belongs_to_one_process():
    shares = [Processes(index, 3).share(range(7)) for index in range(3)]
    assert sorted(piece for share in shares for piece in share) == list(range(7))
