"""A real S3 API on loopback, for tests of remote files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
