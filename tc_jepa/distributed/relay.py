"""A relay to JAX's coordinator that does not show its end.

JAX's client aborts the process, with C++ stacks, as soon as its connection to the coordinator closes, and offers no way
to change that. Through the relay it sees no such end, so that the Watch can name the process that was lost. JAX's
heartbeats still end a process whose coordinator is silent.

The relay is a process of its own. As a thread it would need the GIL, which JAX's reached_sync_point holds while it
waits for what comes through the relay: a run that gets SIGTERM would wait for ever.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading

from tc_jepa.errors import UserError

_relays: list[subprocess.Popen] = []  # one ends when its standard input is closed, at the latest with this process


def relayed(address: str) -> str:
    """Starts a relay on this host to HOST:PORT; returns the address to use instead."""
    command = [sys.executable, "-m", "tc_jepa.distributed.relay", *address.rpartition(":")[::2]]
    relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    _relays.append(relay)
    if not (port := relay.stdout.readline().strip()):
        raise UserError(f"the relay to {address} could not start; lines above say why", about="distributed")
    return f"127.0.0.1:{port}"


def main(host: str, port: str) -> None:
    """Relays until standard input ends, whatever signals come: a job's signals are for the process that it serves."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(server, (host.strip("[]"), int(port))), daemon=True).start()
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()


def _serve(server: socket.socket, coordinator: tuple[str, int]) -> None:
    while True:
        client, _ = server.accept()
        try:
            upstream = socket.create_connection(coordinator)
        except OSError:
            client.close()  # JAX tries again until its time is over
            continue
        for source, target in ((client, upstream), (upstream, client)):
            threading.Thread(target=_pump, args=(source, target, source is client), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    if closes:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main(*sys.argv[1:])
