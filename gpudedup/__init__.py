"""gpudedup finds near-copies in text corpora, removes them, and proves each removal.

    result = gpudedup.deduplicate(table)          # Arrow data of any library, a list of str, a path or glob
    result.removed                                # what was removed, for which keeper, why
    result.kept()                                 # the rest, as an Arrow stream

`Deduplicator` decides a stream batch by batch, `run` writes a directory of results for files.
"""

from importlib.metadata import version

from gpudedup.api import Run, deduplicate, run
from gpudedup.errors import (
    ArtefactError,
    DeviceError,
    GpudedupError,
    InputError,
    MemoryLimitError,
    OutputError,
    ParameterError,
)
from gpudedup.params import SPEC, Params
from gpudedup.result import Result, Summary
from gpudedup.streaming import Deduplicator

__version__ = version("gpudedup")
__all__ = [
    "SPEC",
    "ArtefactError",
    "Deduplicator",
    "DeviceError",
    "GpudedupError",
    "InputError",
    "MemoryLimitError",
    "OutputError",
    "ParameterError",
    "Params",
    "Result",
    "Run",
    "Summary",
    "deduplicate",
    "run",
]
