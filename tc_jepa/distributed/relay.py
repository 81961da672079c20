"""A relay to JAX's coordinator that does not show its end.

JAX's client aborts the process, with C++ stacks, as soon as its connection to the coordinator closes, and offers no way
to change that. Through the relay it sees no such end, so that the Watch can name the process that was lost. JAX's
heartbeats still end a process whose coordinator is silent.
"""

import contextlib
import socket
import threading


def relayed(address: str) -> str:
    """Starts a relay on this host to HOST:PORT; returns the address to use instead."""
    host, _, port = address.rpartition(":")
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(server, (host.strip("[]"), int(port))), daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


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
