from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

_U8 = npt.NDArray[np.uint8]
_U16 = npt.NDArray[np.uint16]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
_I32 = npt.NDArray[np.int32]
_I64 = npt.NDArray[np.int64]

NONE: int
fold_tables_sha256: str
fold_tables_sources: str

class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...

def fold_tables(fold: str) -> tuple[_U16, _U32, _U32, bool]: ...
def tier() -> str: ...
def available_tiers() -> str: ...
def release_memory() -> None: ...

class Signer:
    def __init__(self, *, unit: str, n: int, fold: str, num_perm: int, seed: int) -> None: ...
    def sign(
        self, text: Any, offsets: _I32 | _I64, *, keep_hashes: bool, workers: int
    ) -> tuple[_U32, _U64, _U64, _U32 | None, _I64 | None]: ...

def hash_values(values: Any, offsets: _I32 | _I64) -> _U64: ...
def hash_words(words: _U64) -> _U64: ...
def copy_values(target: npt.NDArray[Any], source: npt.NDArray[Any], *, workers: int) -> None: ...
def band_keys(lanes: _U32, *, bands: int, rows: int, scope_keys: _U64 | None = None, workers: int = 1) -> _U64: ...
def group_content(
    order: _U32, content: _U64, *, within: _I32 | None = None, across: _I32 | None = None, workers: int
) -> _U32: ...
def intersect(left: _U32, right: _U32, needed: int) -> int: ...

class Lanes:
    def __init__(self, batches: Sequence[Sequence[_U32]], num_perm: int) -> None: ...
    def band_keys(self, band: int, *, rows: int, scope_keys: _U64 | None = None, workers: int) -> _U64: ...

def sort_band(keys: _U64, documents: _U32, *, memory_bytes: int, workers: int) -> tuple[_U32, _U32]: ...
def check_band(members: _U32, lengths: _U32, count: int) -> None: ...

class Buckets:
    def __init__(
        self,
        bands: list[tuple[_U32, _U32]],
        *,
        count: int,
        fixed: int = 0,
        scopes: _I32 | None = None,
        across: _I32 | None = None,
        window: int,
        memory_bytes: int,
        directory: str,
        workers: int,
    ) -> None: ...
    @property
    def bounded_buckets(self) -> int: ...
    @property
    def bounded_documents(self) -> int: ...
    @property
    def longest(self) -> int: ...
    def shared(self) -> _U32: ...
    def candidates(self, first: int, last: int) -> tuple[_U32, _U32]: ...

class SetStore:
    def __init__(self, *, count: int, memory_bytes: int, directory: str) -> None: ...
    def add(self, numbers: _U32, rows: _U32, hashes: _U32, offsets: _I64, *, workers: int) -> None: ...
    def missing(self, numbers: _U32) -> _U32: ...
    def get(self, number: int) -> _U32: ...
    @property
    def bytes_in_memory(self) -> int: ...
    @property
    def bytes_on_disk(self) -> int: ...

class Decision:
    def arrays(self) -> tuple[_U32, _U64, _U64]: ...
    @property
    def compared(self) -> int: ...

def decision_of(keeper: _U32, part: _U64, whole: _U64, compared: int) -> Decision: ...
def verify(
    buckets: Buckets,
    *,
    components: bool,
    threshold_ppm: int,
    sets: SetStore | None,
    lanes: Lanes | None,
    documents: _U32 | None,
    leader: _U32 | None,
    prior: Decision | None,
    workers: int,
) -> Decision: ...
def undecided_documents(buckets: Buckets, prior: Decision) -> _U32: ...

class Stream:
    def __init__(
        self,
        *,
        bands: int,
        rows: int,
        num_perm: int,
        window: int,
        threshold_ppm: int,
        verify: str,
        across: bool,
        memory_bytes: int,
        directory: str,
    ) -> None: ...
    def decide(
        self,
        *,
        lanes: _U32,
        content: _U64,
        unit_count: _U64,
        scope_keys: _U64 | None = None,
        scopes: _I32 | None = None,
        across: _I32 | None = None,
        hashes: _U32 | None = None,
        offsets: _I64 | None = None,
        num_perm: int,
    ) -> tuple[_I64, _U64, _U64, _U8]: ...
    @property
    def documents(self) -> int: ...
    @property
    def compared(self) -> int: ...
    @property
    def set_bytes_in_memory(self) -> int: ...
    @property
    def set_bytes_on_disk(self) -> int: ...
