"""What stages keep beyond memory: the errors of having no room for it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

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


def room(shape: tuple[int, ...], kind: npt.DTypeLike, *, memory_bytes: int, tmp: str) -> npt.NDArray[Any]:
    """An array of zeros: in memory if it fits ``memory_bytes``, else mapped from a file without a name in ``tmp``.

    Raises OSError if that has no room: it is taken first, since a full disk would end the process later.
    """
    size_bytes = math.prod(shape) * np.dtype(kind).itemsize
    if size_bytes <= memory_bytes:
        return np.zeros(shape, kind)
    with tempfile.TemporaryFile(prefix="gpudedup-", dir=tmp) as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        return np.memmap(file, kind, shape=shape)
