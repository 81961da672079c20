"""The end of one of several processes is noticed by the others, which name it."""

import itertools
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import pytest

from tc_jepa.distributed import relay
from tests.test_processes import saved_steps, start, statuses, train, wait_for_lines

ROOT = Path(__file__).parent.parent
PROCESS = """
import os, pathlib, sys, time
from tc_jepa.distributed import watch

index, place = int(sys.argv[1]), pathlib.Path(sys.argv[2])
watch.GRACE = 0.5

def share(content):
    if not index:
        place.with_name("new").write_bytes(content)
        place.with_name("new").rename(place)
    while not place.exists():
        time.sleep(0.01)
    return place.read_bytes()

found = watch.Watch(index, "localhost", share)
while not index and len(found._connections) < 2 or index and not found._connections:
    time.sleep(0.01)
print("joined", flush=True)
for command in sys.stdin:
    if command == "close\\n":
        found.close()
    elif command == "fail\\n":
        found.fail()
        os._exit(3)
    elif command == "leave\\n":
        os._exit(4)
"""


@pytest.fixture
def three(tmp_path):
    """Three processes that watch each other and carry out commands."""
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), str(tmp_path / "place")],
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for index in range(3)
    ]
    try:
        for process in started:
            assert process.stdout.readline() == "joined\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def tell(process: subprocess.Popen, command: str) -> None:
    process.stdin.write(f"{command}\n")
    process.stdin.flush()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_named_by_all_others(three, lost):
    three[lost].kill()
    for index, process in enumerate(three):
        if index != lost:
            assert process.wait(30) == os.EX_TEMPFAIL
            message = process.stderr.read().strip()
            assert f"process {lost} (" in message and "\n" not in message


@pytest.mark.parametrize("failing", [0, 2])
def test_a_process_that_fails_is_named_and_keeps_its_own_status(three, failing):
    tell(three[failing], "fail")
    assert [process.wait(30) for process in three] == [3 if i == failing else os.EX_TEMPFAIL for i in range(3)]
    assert f"process {failing} (" in three[1].stderr.read()


def test_processes_that_fail_together_each_keep_their_own_status(three):
    for process in three:
        tell(process, "fail")
    assert [process.wait(30) for process in three] == [3] * 3


def test_processes_that_end_well_end_nothing(three):
    for process in reversed(three):
        tell(process, "close")
        tell(process, "leave")
        assert process.wait(30) == 4
        time.sleep(0.2)


def test_a_stranger_on_the_port_ends_nothing(three, tmp_path):
    place = (tmp_path / "place").read_text()
    port = int(place.partition('"port": ')[2].partition(",")[0])
    hosts = ["127.0.0.1", *["::1"] * socket.has_dualstack_ipv6()]
    for host, said in itertools.product(hosts, (b"token 1\n", b"\x16\x03\xff\n", "\u00e9 1\n".encode())):
        with socket.create_connection((host, port), timeout=30) as stranger:
            stranger.sendall(said)
            assert stranger.recv(1) == b""
    time.sleep(0.5)
    assert [process.poll() for process in three] == [None] * 3
    three[0].kill()
    assert three[0].communicate()[1] == ""


def test_a_relay_forwards_both_ways_whatever_signals_come_and_does_not_show_the_end():
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = relay.relayed(f"localhost:{server.getsockname()[1]}").split(":")
        client = socket.create_connection((host, int(port)))
        upstream, _ = server.accept()
    process = relay._relays[-1]
    process.send_signal(signal.SIGTERM)
    client.sendall(b"question")
    assert upstream.recv(100) == b"question"
    upstream.sendall(b"answer")
    assert client.recv(100) == b"answer"
    upstream.close()
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.close()
    refused = socket.create_connection((host, int(port)))  # nothing listens there now
    assert refused.recv(1) == b""
    process.stdin.close()  # as when the process that it serves ends
    assert process.wait(30) == 0


CHANGES = {
    "train.steps": 24,
    "train.checkpoint_every": 6,
    "train.eval_every": 24,
    "train.eval_tasks": "",
    "train.eval_examples": 1000,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The fingerprints of a run of two processes that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert statuses(start(2, 1, *train(workdir, **CHANGES))) == [0, 0]
    return fingerprints(workdir)


def fingerprints(workdir: Path) -> str:
    return (workdir / "checkpoints" / "24" / "fingerprints" / "metadata").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_whose_process_is_killed_is_resumed_bit_for_bit(whole, tmp_path, lost):
    workdir = tmp_path / "killed"
    command, metrics = train(workdir, **CHANGES), workdir / "metrics.jsonl"
    started = start(2, 1, *command)
    wait_for_lines(metrics, 9, started)
    started[lost].kill()
    assert statuses(started) == [-signal.SIGKILL if i == lost else os.EX_TEMPFAIL for i in range(2)]
    assert saved_steps(workdir)[-1] < 24
    assert statuses(start(2, 1, *command)) == [0, 0]
    assert fingerprints(workdir) == whole
