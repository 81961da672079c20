"""A server on this machine with as much of Cloud Storage's JSON API as gcsfs, google-cloud-storage and TensorStore use.

Objects live in memory, and appear whole, as in the real store. There are no folders, no renames and no locks.
"""

import base64
from collections.abc import Iterator
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import itertools
import json
import re
import sys
import threading
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

BUCKET = "bucket"


class Stored(NamedTuple):
    content: bytes
    generation: int


class Store:
    """The objects of one bucket, by name. `writes` has the name of every object written, in order."""

    def __init__(self):
        self.objects: dict[str, Stored] = {}
        self.writes: list[str] = []
        self.uploads: dict[str, tuple[str, bytearray]] = {}  # unfinished ones by id
        self.generations = itertools.count(1)
        self.lock = threading.Lock()

    def write(self, name: str, content: bytes, expected: str | None) -> int:
        """Writes an object where the store has the generation `expected` of it; returns an HTTP status."""
        with self.lock:
            held = self.objects[name].generation if name in self.objects else 0
            if expected is not None and int(expected) != held:
                return 412
            self.objects[name] = Stored(bytes(content), next(self.generations))
            self.writes.append(name)
        return 200

    def about(self, name: str) -> dict[str, object]:
        content, generation = self.objects[name]
        checksum = google_crc32c.Checksum(content).digest()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "crc32c": base64.b64encode(checksum).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, content: bytes | dict = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.read_body()
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o)?(?:/(.+))?", url.path)
        if not found or unquote(found[2]) != BUCKET:
            return self.answer(404, {"error": {"code": 404, "message": f"no {self.path}"}})
        name = unquote(found[3] or "")
        if found[1] == "/upload":
            return self.upload()
        if "/rewriteTo/" in (found[3] or "") or "/copyTo/" in (found[3] or ""):
            return self.copy(found[3])
        if not name:
            return self.list() if "/o" in url.path.removesuffix("/")[-2:] else self.answer(200, {"name": BUCKET})
        return self.one(name, media=found[1] == "/download" or self.query.get("alt") == "media")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def one(self, name: str, *, media: bool) -> None:
        if name not in self.store.objects:
            return self.answer(404, {"error": {"code": 404, "message": f"No such object: {BUCKET}/{name}"}})
        content, generation = self.store.objects[name]
        if self.command == "DELETE":
            with self.store.lock:
                self.store.objects.pop(name, None)
            return self.answer(204)
        if not media:
            return self.answer(200, self.store.about(name))
        if self.query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        headers = {"x-goog-generation": str(generation)}
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first and not last:
            return self.answer(200, content, **headers)
        start, end = (int(first), int(last or len(content) - 1)) if first else (-int(last), len(content) - 1)
        start, end = start % len(content) if start < 0 else start, min(end, len(content) - 1)
        if start >= len(content):
            return self.answer(416)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self.answer(206, content[start : end + 1], **headers)

    def list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        names, folders = [], set()
        for name in sorted(self.store.objects):
            if name.startswith(prefix) and self.query.get("startOffset", "") <= name:
                rest, inside, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                folders |= {prefix + rest + delimiter} if inside else set()
                names += [] if inside else [name]
        items = [self.store.about(name) for name in names]
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def copy(self, path: str) -> None:
        source, _, target = re.fullmatch(rf"(.+)/(rewriteTo|copyTo)/b/{BUCKET}/o/(.+)", path).groups()
        if unquote(source) not in self.store.objects:
            return self.answer(404, {"error": {"code": 404, "message": "No such object"}})
        self.store.write(unquote(target), self.store.objects[unquote(source)].content, None)
        about = self.store.about(unquote(target))
        self.answer(200, {"done": True, "resource": about} if "/rewriteTo/" in path else about)

    def upload(self) -> None:
        kind, expected = self.query.get("uploadType"), self.query.get("ifGenerationMatch")
        if "upload_id" in self.query:
            return self.chunk(self.query["upload_id"])
        if kind == "media":
            return self.written(self.query["name"], self.body, expected)
        if kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            about, content = self.body.split(b"--" + boundary)[1:3]
            newline = b"\r\n" if b"\r\n\r\n" in about else b"\n"
            about, content = (part.partition(2 * newline)[2] for part in (about, content))
            return self.written(json.loads(about)["name"], content.removesuffix(newline), expected)
        name = self.query.get("name") or json.loads(self.body)["name"]
        key = str(len(self.store.uploads))
        self.store.uploads[key] = (name, bytearray())
        place = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={key}"
        self.answer(200, Location=place)

    def chunk(self, key: str) -> None:
        name, content = self.store.uploads[key]
        content += self.body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total == "*" or (total and int(total) > len(content)):
            return self.answer(308, Range=f"bytes=0-{len(content) - 1}")
        self.written(name, bytes(content), None)

    def written(self, name: str, content: bytes, expected: str | None) -> None:
        status = self.store.write(name, content, expected)
        self.answer(status, self.store.about(name) if status == 200 else {"error": {"code": status}})


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """gcsfs asks in two ways at once and drops the slower answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving() -> Iterator[tuple[Store, dict[str, str]]]:
    """Serves an empty store; yields it, and the environment variables that make the clients use it."""
    store = Store()
    server = Server(("localhost", 0), type("StoreHandler", (Handler,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    url = f"http://localhost:{server.server_port}"
    try:
        yield (
            store,
            {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "GOOGLE_CLOUD_PROJECT": "none",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
