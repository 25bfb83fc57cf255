"""gpudedup finds near-copies in text corpora, removes them, and proves each removal.

    result = gpudedup.deduplicate(table)          # Arrow data of any library, a list of str, a path or glob
    result.removed                                # what was removed, for which keeper, why
    result.kept()                                 # the rest, as an Arrow stream

`Deduplicator` decides a stream batch by batch, `run` writes a directory of results for files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpudedup.api import Run, advance, begin, deduplicate, plan, run, status
    from gpudedup.audit import Audit
    from gpudedup.engines.status import Status
    from gpudedup.errors import (
        ArtefactError,
        DeviceError,
        GpudedupError,
        GuardError,
        InputError,
        MemoryLimitError,
        OutputError,
        ParameterError,
    )
    from gpudedup.params import SPEC, Params
    from gpudedup.planning import Plan
    from gpudedup.result import Result
    from gpudedup.streaming import Deduplicator
    from gpudedup.summary import Summary

    __version__: str

__all__ = [
    "SPEC",
    "ArtefactError",
    "Audit",
    "Deduplicator",
    "DeviceError",
    "GpudedupError",
    "GuardError",
    "InputError",
    "LockedError",
    "MemoryLimitError",
    "OutputError",
    "ParameterError",
    "Params",
    "Plan",
    "Result",
    "Run",
    "Status",
    "Summary",
    "advance",
    "begin",
    "deduplicate",
    "plan",
    "run",
    "status",
]

# Where names live. They are imported at their first use, so that `import gpudedup` and `gpudedup --version` are quick.
_HOMES = {
    **dict.fromkeys(("Run", "advance", "begin", "deduplicate", "plan", "run", "status"), "gpudedup.api"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "gpudedup.errors"),
    **dict.fromkeys(("SPEC", "Params"), "gpudedup.params"),
    "Result": "gpudedup.result",
    "Status": "gpudedup.engines.status",
    "Summary": "gpudedup.summary",
    "Audit": "gpudedup.audit",
    "Plan": "gpudedup.planning",
    "Deduplicator": "gpudedup.streaming",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("gpudedup")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'gpudedup' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
