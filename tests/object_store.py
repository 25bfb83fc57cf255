"""A real S3 API on loopback, for tests of remote files."""

from __future__ import annotations

import http.client
import logging
import math
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

ACCOUNT = "123456789012"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """A server with one empty bucket. Keys may be any text: what the API refuses is put in behind its back."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self.endpoint, self.bucket = endpoint, bucket
        self._backend = s3_backends[ACCOUNT]["aws"]

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, files: Mapping[str, bytes]) -> None:
        for key, data in files.items():
            self._backend.put_object(self.bucket, key, data)

    def get(self, key: str) -> bytes:
        return bytes(self._backend.get_object(self.bucket, key).value)

    def delete(self, key: str) -> None:
        self._backend.delete_object(self.bucket, key)

    @property
    def keys(self) -> list[str]:
        return sorted(self._backend.get_bucket(self.bucket).keys)


@contextmanager
def serve() -> Iterator[str]:
    """The URL of a server, in a thread of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def new_store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An empty store that ``s3://`` URLs lead to, by the environment."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    backend = s3_backends[ACCOUNT]["aws"]
    backend.create_bucket("corpus", "us-east-1")
    yield ObjectStore(endpoint, "corpus")
    backend.reset()


@dataclass
class Fault:
    """What becomes of a request that matches, ``times`` times, after ``after`` such requests went well.

    ``what``: a status code, "reset" (no answer), "cut" (half of the body), or seconds to wait before a good answer.
    """

    what: int | float | str
    method: str = "GET"
    path: str = ""
    times: float = math.inf
    after: int = 0


class FaultyProxy:
    """A server before another that passes requests on, one by one, but for those that ``faults`` are for."""

    def __init__(self, endpoint: str) -> None:
        self._address = endpoint.removeprefix("http://")
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, range) of all."""
        self.most_at_once = self._at_once = 0
        """Requests that were being answered."""
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def pass_on(self) -> None:
                with proxy._lock:
                    proxy._at_once += 1
                    proxy.most_at_once = max(proxy.most_at_once, proxy._at_once)
                try:
                    proxy._answer(self)
                finally:
                    with proxy._lock:
                        proxy._at_once -= 1

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Nothing: a client may hang up, and ask for something still when the test has ended."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, method: str, path: str) -> int | float | str | None:
        with self._lock:
            for fault in self.faults:
                if fault.method == method and fault.path in path:
                    fault.after -= 1
                    if fault.after < 0 and fault.times > 0:
                        fault.times -= 1
                        return fault.what
        return None

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = _body(request)
        self.requests.append((request.command, request.path, request.headers.get("Range", "")))
        fault = self._fault(request.command, request.path)
        if fault == "reset":
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            request.connection.close()
            return
        if isinstance(fault, int):
            request.send_response(fault)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if isinstance(fault, float):
            time.sleep(fault)
        connection = http.client.HTTPConnection(self._address)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        headers["Content-Length"] = str(len(body))
        connection.request(request.command, request.path, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                request.send_header(name, value)
        request.send_header("Content-Length", answer.getheader("Content-Length", str(len(data))))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            request.close_connection = True
        connection.close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """The body of a request, which uploads send in chunks."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():  # trailers
        pass
    return b"".join(parts)
