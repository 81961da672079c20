"""Noticing at once that one of several processes has ended.

JAX notices it after 100 s without heartbeats, or when the connection to process 0 closes, and then aborts with C++
stacks. Here each other process has a TCP connection with process 0, and says on it that it ends well, or that it fails.
Where one ends without a word, or its host no longer answers TCP's keepalive (the kernel does, so that a busy process is
not taken for a lost one), all others name it and end.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import secrets
import socket
import threading
import time

from absl import logging

STATUS = os.EX_TEMPFAIL  # of a process that ends because another one has ended
PROBES = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}  # a host that is silent for 3 + 3 * 3 s is lost
CONNECT = 20  # seconds for reaching process 0
GRACE = 2  # seconds for processes that fail together to say why themselves
ANSWER = 5  # seconds in which the end of a process is known, after an operation with it has failed
DONE, FAILED, LOST = "done", "failed", "lost"


class Watch:
    """Watches the other processes from threads; the end of one ends this process. All must create it together."""

    def __init__(self, index: int, host: str | None, share: Callable[[bytes], bytes]):
        """`host` is a name of process 0's host that all can reach; None: its address towards the network.

        `share` returns, in every process, the bytes that process 0 calls it with.
        """
        self._index, self._ending, self._failed = index, threading.Lock(), False
        self._connections: dict[int, socket.socket] = {}
        if index:
            self._start(self._join, json.loads(share(b"")))
            return
        both = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
        server, token = socket.create_server(("", 0), **both), secrets.token_hex(16)
        place = {"host": host or _own_address(), "port": server.getsockname()[1], "token": token}
        share(json.dumps(place).encode())
        self._start(self._accept, server, token)

    def close(self) -> None:
        """Tells the others that this process ends well."""
        self._tell(DONE)

    def fail(self) -> None:
        """Tells the others that this process fails. Process 0 waits for them: JAX would abort them when it ends."""
        self._failed = True
        self._tell(FAILED)
        if not self._index and self._connections:
            time.sleep(2 * GRACE)

    def wait(self) -> None:
        """After an operation of all processes has failed: gives the thread that ends this process time to do so."""
        time.sleep(ANSWER)

    def _accept(self, server: socket.socket, token: str) -> None:
        while True:
            connection, (address, *_) = server.accept()
            self._start(self._hear, _watched(connection), token, address.removeprefix("::ffff:"))

    def _hear(self, connection: socket.socket, token: str, address: str) -> None:
        """Process 0: reads what another process says."""
        lines = _lines(connection)
        given, _, index = next(lines, "").partition(" ")
        if not secrets.compare_digest(given.encode(), token.encode()):
            connection.close()
            return
        self._connections[int(index)] = connection
        news = next(lines, LOST)
        if news != DONE:
            del self._connections[int(index)]
            self._tell(f"{news} {index} {address}")
            self._end(news, index, address)

    def _join(self, place: dict) -> None:
        """Another process: connects to process 0 and reads what it says of itself and of the others."""
        try:
            connection = socket.create_connection((place["host"], place["port"]), timeout=CONNECT)
        except OSError as error:
            where = f"{place['host']}:{place['port']}"
            logging.warning("process 0 cannot be reached at %s (%s): that one ends is noticed late", where, error)
            return
        connection.settimeout(None)
        self._connections[0] = _watched(connection)
        connection.sendall(f"{place['token']} {self._index}\n".encode())
        news, *of = next(_lines(connection), LOST).split()
        if news != DONE:
            self._end(news, *(of or ("0", place["host"])))

    def _tell(self, news: str) -> None:
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):
                connection.sendall(f"{news}\n".encode())

    def _end(self, news: str, index: str, address: str) -> None:
        with self._ending:  # the first of several that end together
            if news == FAILED:
                time.sleep(GRACE)
            if self._failed:
                return
            again = "start all processes again with the same command, which goes on from what is saved"
            message = f"\nerror: process {index} ({address}) has {'failed' if news == FAILED else 'ended'}; {again}\n"
            with contextlib.suppress(OSError):
                os.write(2, message.encode())
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # for what other threads meet until the process ends
            if not self._index:
                time.sleep(GRACE if news == FAILED else GRACE / 2)  # the others read it before JAX aborts them
            os._exit(STATUS)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()


def _watched(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _lines(connection: socket.socket) -> Iterator[str]:
    """The lines that come, until the other end is closed or silent."""
    with contextlib.suppress(OSError), connection.makefile(encoding="ascii", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


def _own_address() -> str:
    """The address of this host towards the network; nothing is sent. Its name where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
