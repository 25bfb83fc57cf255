"""Threads that write look here between two pieces of work, so that a stop need not wait for a whole shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Protocol, TypeVar

Value = TypeVar("Value")


class GivenUpError(Exception):
    """Raised in a thread whose work is wanted no more; only who asked for the stop sees it."""


class Submit(Protocol):
    """Hands a task to a thread."""

    def __call__(self, task: Callable[[], Value], /) -> Future[Value]: ...


_of_thread = threading.local()


def heed(*stops: threading.Event) -> None:
    """From now on ``checkpoint`` raises in this thread once any of ``stops`` is set."""
    _of_thread.stops = stops


def _heeded() -> tuple[threading.Event, ...]:
    return getattr(_of_thread, "stops", ())


def checkpoint() -> None:
    """Raise GivenUpError if this thread is to stop. To be called every few MB."""
    if any(stop.is_set() for stop in _heeded()):
        raise GivenUpError


@contextmanager
def stoppable_threads(count: int, name: str) -> Iterator[Submit]:
    """``count`` threads. When the block is left, for whatever reason, tasks that are going on end at their next
    checkpoint, others are forgotten, and none is going on any more when this ends. What stops this thread stops them.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=heed, initargs=(stop, *_heeded()))
    changed = threading.Condition()
    going_on: set[int] = set()

    def submit(task: Callable[[], Value], /) -> Future[Value]:
        def watched() -> Value:
            with changed:
                checkpoint()
                going_on.add(id(task))
            try:
                return task()
            finally:
                with changed:
                    going_on.remove(id(task))
                    changed.notify_all()

        return pool.submit(watched)

    try:
        yield submit
    finally:
        with changed:  # the pool does not know a thread that it was starting when a signal came in between
            stop.set()
            changed.wait_for(lambda: not going_on)
        pool.shutdown(cancel_futures=True)


def results(futures: Sequence[Future[Value]]) -> list[Value]:
    """What the tasks gave, in their order; or raises what the first one to fail raised."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done:
            future.result()
    return [future.result() for future in futures]
