"""Shared by all tests: how hypothesis runs, and what becomes of tests that need a GPU."""

from __future__ import annotations

import os
import signal
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

from gpudedup.backends.cuda.detect import detect

# A loaded machine is no bug, so no deadlines; in continuous integration the same examples every time.
settings.register_profile("gpudedup", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gpudedup-ci", settings.get_profile("gpudedup"), derandomize=True)
settings.load_profile("gpudedup-ci" if os.environ.get("CI") else "gpudedup")

# A test run that was started in the background ignores SIGINT, and what it starts would too; a handler here gives
# children the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def why_no_gpu() -> str | None:
    return detect().reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked gpu where no GPU can be used; fail it where GPUDEDUP_REQUIRE_GPU=1 promises one."""
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()) is not None:
        if os.environ.get("GPUDEDUP_REQUIRE_GPU") == "1":
            pytest.fail(f"GPUDEDUP_REQUIRE_GPU=1, but {reason}", pytrace=False)
        pytest.skip(reason)
