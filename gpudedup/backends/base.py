"""What a backend offers to the stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class Shingles(Protocol):
    """Shingle hashes of a batch in document order, with repeats: document i has hashes[offsets[i] : offsets[i + 1]]."""

    @property
    def hashes(self) -> U32:
        """On the host; brought there anew each time if they lie on a device."""

    @property
    def offsets(self) -> I64: ...

    @property
    def bytes_in_memory(self) -> int:
        """Of the host's."""

    def add_to(self, store: SetStore, numbers: U32, rows: U32, *, workers: int) -> None:
        """`SetStore.add`, from where they lie; it uses them up. ``rows`` ascend."""


@dataclass(frozen=True, slots=True)
class HostShingles:
    """`Shingles` in memory."""

    hashes: U32
    offsets: I64

    @property
    def bytes_in_memory(self) -> int:
        return self.hashes.nbytes + self.offsets.nbytes

    def add_to(self, store: SetStore, numbers: U32, rows: U32, *, workers: int) -> None:
        store.add(numbers, rows, self.hashes, self.offsets, adopt=True, workers=workers)


@dataclass(frozen=True, slots=True)
class ToSign:
    """A batch of text, or of lists of tokens, and what is wanted of it beside content hash and unit count."""

    text: pa.Array
    scope_keys: U64 | None = None
    band_keys: bool = False
    lanes: bool = False
    shingles: bool = False


@dataclass(frozen=True, slots=True)
class SignedBatch:
    """content uint64[n, 2], unit_count uint64[n] (0: the document is empty); where they were asked for, band keys
    uint64[bands, n], lanes uint32[n, num_perm], and shingles."""

    content: U64
    unit_count: U64
    band_keys: U64 | None
    lanes: U32 | None
    shingles: Shingles | None


LaneGroups = Sequence[U32]
"""Signatures of a batch where they lie: arrays uint32[n, width], of which group g holds the lanes from g * width on;
the last may be narrower. In memory one array uint32[n, num_perm]; in a run directory columns of 8 lanes, perhaps mapped
and read-only. Widths may differ from batch to batch. Document numbers run over all batches."""


@dataclass(frozen=True, slots=True)
class Band:
    """The buckets of one band that hold two documents or more; the same from every backend.

    members: places in rank order, bucket after bucket, buckets by ascending band key, by rank in each. lengths: of the
    buckets, in that order. Both may be read-only and lie in a file; they are checked where they are used.
    """

    members: U32
    lengths: U32


class Buckets(Protocol):
    """Documents sorted into buckets, on the device. A document is its place among those that were given, by rank."""

    @property
    def bounded_buckets(self) -> int: ...
    @property
    def bounded_documents(self) -> int: ...
    @property
    def longest(self) -> int: ...

    def shared(self) -> U32:
        """The documents that share a bucket with another, not counting buckets of documents of earlier runs alone."""

    def candidates(self, first: int, last: int) -> tuple[U32, U32]:
        """(better, worse): all candidate pairs whose worse document is in [first, last)."""


class SetStore(Protocol):
    """Shingle sets by document, where the backend compares them."""

    @property
    def bytes_in_memory(self) -> int: ...
    @property
    def bytes_on_disk(self) -> int: ...

    def add(self, numbers: U32, rows: U32, hashes: U32, offsets: I64, *, adopt: bool = False, workers: int) -> None:
        """The set of numbers[i] is hashes[offsets[rows[i]] : offsets[rows[i] + 1]]. Raises OSError without room.

        adopt: ``hashes`` are the store's from then on, which may make the sets in them; ``rows`` ascend.
        """

    def missing(self, numbers: U32) -> U32:
        """Those of ``numbers`` that have no set yet."""


class GatheredLanes(Protocol):
    """Signatures of chosen documents, where the backend compares them; a document is its place among them."""

    def __len__(self) -> int: ...


class Decision(Protocol):
    """Which documents are removed for which."""

    @property
    def compared(self) -> int:
        """Pairs that were compared."""

    def arrays(self) -> tuple[U32, U64, U64]:
        """(keeper, part, whole) per document: NO_KEEPER if kept; similarity part / whole, whole 0 if not measured."""


class Stream(Protocol):
    """Decides documents one after another."""

    def decide(
        self,
        *,
        lanes: U32,
        content: U64,
        unit_count: U64,
        scope_keys: U64 | None,
        scopes: I32 | None,
        across: I32 | None,
        hashes: U32 | None,
        offsets: I64 | None,
        num_perm: int,
    ) -> tuple[I64, U64, U64, U8]:
        """(keeper input position or -1, part, whole, 1 where the content is equal) per document."""


NO_KEEPER = 2**32 - 1
"""In `Decision.arrays`: the document is kept."""


class Backend(Protocol):
    """One device. Arrays are numpy arrays in host memory; a document is named by its place in what it is given."""

    name: str
    reason: str
    workers: int

    def sign(self, batches: Iterable[ToSign]) -> Iterator[SignedBatch]:
        """One for each batch, in order. Some may be drawn before the first is given: a device is fed ahead."""

    def shingles(self, texts: Iterable[pa.Array]) -> Iterator[Shingles]:
        """The shingle hashes alone, likewise."""

    def hash_values(self, values: pa.Array) -> U64:
        """Scope keys of non-null values (docs/spec.md, section 5)."""

    def group_content(self, order: U32, content: U64, within: I32 | None, across: I32 | None) -> U32:
        """leader[i] = the first place in ``order`` whose content (and within, across) equals that of order[i]. O(n)."""

    def band_keys(self, lanes: Sequence[LaneGroups], band: int, scope_keys: U64 | None) -> U64:
        """The key of each document in one band, of which no other groups of lanes are read than those it lies in.

        scope_keys: uint64[documents], or None without `within`. Raises ValueError if groups do not make num_perm lanes.
        """

    def band(self, keys: U64, documents: U32, *, memory_bytes: int) -> Band:
        """The buckets of ``documents`` (by rank) in one band; keys[document] is its key. O(n). An array of documents
        that is given again, for the next band, is as it was.

        Takes 12 bytes a document beside the answer, or, where that is more than ``memory_bytes``, less in several
        passes. (Keys that mostly agree in their upper bits take 12 bytes each in any case.)
        """

    def buckets(
        self,
        bands: Sequence[Band],
        count: int,
        scopes: I32 | None,
        across: I32 | None,
        *,
        fixed: int = 0,
        memory_bytes: int,
        directory: str,
    ) -> Buckets:
        """The buckets of all bands, of ``count`` documents by rank; scopes and across int32[count] by rank too.

        The first ``fixed`` documents are of earlier runs: they are kept, and not compared with each other.
        Takes 20 bytes a member and 8 a document, in memory up to ``memory_bytes``, then in ``directory``. Raises
        ValueError if a band cannot be one of ``count`` documents, and OSError without room.
        """

    def set_store(self, count: int, *, memory_bytes: int, directory: str) -> SetStore:
        """Room for the sets of ``count`` documents: in memory up to ``memory_bytes``, then in ``directory``."""

    def gather_lanes(
        self, lanes: Iterable[LaneGroups], numbers: U32, *, memory_bytes: int, directory: str
    ) -> GatheredLanes:
        """The signatures of ``numbers``, which ascend, from one pass over ``lanes``; memory as for `set_store`."""

    def verify(
        self,
        buckets: Buckets,
        *,
        threshold_ppm: int,
        sets: SetStore | None,
        lanes: GatheredLanes | None,
        documents: U32,
        leader: U32 | None,
        prior: Decision | None,
    ) -> Decision:
        """Which documents are removed for which; compares by ``sets``, else by ``lanes``, else takes all as similar.

        documents: their places in ``lanes``; leader: `group_content` of them, with ``across``; prior: the decision
        at a lower threshold over the same buckets.
        """

    def undecided(self, buckets: Buckets, prior: Decision) -> U32:
        """The documents of pairs whose outcome at a higher threshold ``prior`` does not tell."""

    def stream(self, *, memory_bytes: int, directory: str) -> Stream:
        """An empty stream; memory as for `set_store`."""
