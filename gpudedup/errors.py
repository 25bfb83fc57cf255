"""Every error that gpudedup raises on purpose; each says what was wrong, the values, and the way out."""

from __future__ import annotations


class GpudedupError(Exception):
    """Root of all errors of gpudedup. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class ParameterError(GpudedupError, ValueError):
    """A parameter, or a combination of parameters, cannot be used."""

    exit_code = 2


class InputError(GpudedupError):
    """Input is missing, unreadable, damaged, of a wrong type, or changed while it was read."""

    exit_code = 3


class ArtefactError(GpudedupError):
    """A run directory is damaged, unfinished, or belongs to another plan."""

    exit_code = 4


class DeviceError(GpudedupError):
    """The device or CPU tier that was asked for cannot be used here."""

    exit_code = 5


class OutputError(GpudedupError):
    """Results cannot be written: no space, no permission, or the place is taken."""


class LockedError(GpudedupError):
    """Another process drives the same run, or has the same saved stream open."""


class GuardError(GpudedupError):
    """More would be removed than ``max_removed`` allows."""


class MemoryLimitError(GpudedupError):
    """A single document or line needs more than ``memory`` allows."""


class DeviceMemoryError(DeviceError):
    """The device has no room for what cannot be made smaller."""


class BenchmarkError(GpudedupError):
    """A case of a benchmark gave a wrong result, or ended without one."""
