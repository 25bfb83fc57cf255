"""Shared by all tests: how hypothesis runs."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A loaded machine is no bug, so no deadlines; in continuous integration the same examples every time.
settings.register_profile("gpudedup", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gpudedup-ci", settings.get_profile("gpudedup"), derandomize=True)
settings.load_profile("gpudedup-ci" if os.environ.get("CI") else "gpudedup")

# A test run that was started in the background ignores SIGINT, and what it starts would too; a handler here gives
# children the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)
