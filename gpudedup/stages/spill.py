"""What stages keep beyond memory: the errors of having no room for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpudedup.errors import OutputError


@contextmanager
def spill_errors(what: str) -> Iterator[None]:
    """Turn a failure to make room for ``what``, in memory or in ``tmp``, into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"no room for {what} ({error.strerror or error}); give another directory with tmp=, or more memory="
        ) from error
