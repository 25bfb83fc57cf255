"""Shared by all tests: how hypothesis runs, the command, and what becomes of tests that need a GPU."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from gpudedup import cli
from gpudedup.backends.cuda.detect import detect

# A loaded machine is no bug, so no deadlines; in continuous integration the same examples every time.
settings.register_profile("gpudedup", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gpudedup-ci", settings.get_profile("gpudedup"), derandomize=True)
settings.load_profile("gpudedup-ci" if os.environ.get("CI") else "gpudedup")

# A test run that was started in the background ignores SIGINT, and what it starts would too; a handler here gives
# children the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 server on loopback."""
    from object_store import serve  # here, so that other tests need not wait for it

    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def object_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty ``object_store.ObjectStore`` that ``s3://`` URLs lead to."""
    from object_store import new_store

    with new_store(s3_endpoint, monkeypatch) as store:
        yield store


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Calls the command in this process, as a user would; checks that no failure shows a traceback."""
    monkeypatch.setenv("COLUMNS", "300")  # no path is folded
    handlers = {number: signal.getsignal(number) for number in cli.SIGNALS}

    def call(*arguments: object, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["gpudedup", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        done = Done(int(ended.value.code or 0), out, err)
        assert done.code == code, done
        assert "Traceback" not in err
        return done

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@cache
def why_no_gpu() -> str | None:
    return detect().reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked gpu where no GPU can be used; fail it where GPUDEDUP_REQUIRE_GPU=1 promises one."""
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()) is not None:
        if os.environ.get("GPUDEDUP_REQUIRE_GPU") == "1":
            pytest.fail(f"GPUDEDUP_REQUIRE_GPU=1, but {reason}", pytrace=False)
        pytest.skip(reason)
