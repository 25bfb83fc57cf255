"""Threads that write look here between two pieces of work, so that a stop need not wait for a whole shard."""

from __future__ import annotations

import threading


class GivenUpError(Exception):
    """Raised in a thread whose work is wanted no more; only who asked for the stop sees it."""


_of_thread = threading.local()


def heed(stop: threading.Event) -> None:
    """From now on ``checkpoint`` raises in this thread once ``stop`` is set."""
    _of_thread.stop = stop


def checkpoint() -> None:
    """Raise GivenUpError if this thread is to stop. To be called every few MB."""
    stop: threading.Event | None = getattr(_of_thread, "stop", None)
    if stop is not None and stop.is_set():
        raise GivenUpError
