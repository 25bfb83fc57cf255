"""What a backend offers to the stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from gpudedup import _cpu

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shingles:
    """Shingle hashes of a batch in document order, with repeats: document i has hashes[offsets[i] : offsets[i + 1]]."""

    hashes: U32
    offsets: I64


@dataclass(frozen=True, slots=True)
class SignedBatch:
    """lanes uint32[n, num_perm], content uint64[n, 2], unit_count uint64[n] (0: the document is empty)."""

    lanes: U32
    content: U64
    unit_count: U64
    shingles: Shingles | None


class Backend(Protocol):
    """One device. Arrays are numpy arrays in host memory; a document is named by its place in what it is given."""

    name: str
    reason: str
    workers: int

    def sign(self, text: pa.Array, *, keep_shingles: bool) -> SignedBatch:
        """Signatures and content hashes of a batch of text (or of lists of tokens)."""

    def shingles(self, text: pa.Array) -> Shingles:
        """The shingle hashes alone."""

    def hash_values(self, values: pa.Array) -> U64:
        """Scope keys of non-null values (docs/spec.md, section 5)."""

    def group_content(self, order: U32, content: U64, within: I32 | None, across: I32 | None) -> U32:
        """leader[i] = the first place in ``order`` whose content (and within, across) equals that of order[i]."""

    def band_keys(self, lanes: U32, scope_keys: U64 | None) -> U64:
        """uint64[bands, n]: the band keys of signatures uint32[n, num_perm]."""

    def lanes(self, batches: list[U32]) -> _cpu.Lanes:
        """Signature batches as one sequence."""

    def buckets(self, band_keys: list[U64], documents: U32, scopes: I32 | None, across: I32 | None) -> _cpu.Buckets:
        """The buckets of ``documents`` (numbers over all batches of ``band_keys``, in rank order)."""

    def verify(
        self,
        buckets: _cpu.Buckets,
        *,
        threshold_ppm: int,
        sets: _cpu.SetStore | None,
        lanes: _cpu.Lanes | None,
        documents: U32,
        leader: U32 | None,
        prior: _cpu.Decision | None,
    ) -> _cpu.Decision:
        """Which documents are removed for which; compares by ``sets``, else by ``lanes``, else takes all as similar."""
