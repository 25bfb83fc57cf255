"""Loop bodies as Numba CUDA kernels. Imports Numba: import it where a GPU is used, or Numba's simulator of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cuda


@cache  # by Numba for each set of types, once a process
def compiled_loop(body: Callable[..., None]) -> Any:
    """A kernel loop(count, args) that calls body(i, *args) for i = 0 .. count - 1, whatever its grid."""
    step = cuda.jit(device=True)(body)

    @cuda.jit
    def loop(count, args):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            step(i, *args)

    return loop
