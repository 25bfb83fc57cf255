"""Where the arithmetic runs. One backend object is one device; `select_backend` is the only place that chooses."""

from gpudedup.backends.base import Backend
from gpudedup.backends.select import select_backend

__all__ = ["Backend", "select_backend"]
