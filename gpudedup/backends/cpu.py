"""The CPU backend: csrc/cpu through the extension gpudedup._cpu."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from gpudedup import _cpu
from gpudedup.backends.base import (
    I32,
    I64,
    U32,
    U64,
    Band,
    Buckets,
    Decision,
    GatheredLanes,
    HostShingles,
    LaneGroups,
    SetStore,
    Shingles,
    SignedBatch,
    ToSign,
)
from gpudedup.backends.columns import buffers, fixed_width_words, is_text, stored_bytes
from gpudedup.backends.lanes import gather_lanes
from gpudedup.errors import DeviceError
from gpudedup.machine import worker_count
from gpudedup.params import Params, parse_shingle


def cpu_tier() -> str:
    """The instruction-set tier in use. Raises DeviceError if GPUDEDUP_CPU names one that this machine cannot run."""
    try:
        return _cpu.tier()
    except ValueError as error:
        raise DeviceError(f"{error}; unset GPUDEDUP_CPU to use the best") from None


class CpuBackend:
    """Native threads on this machine's cores."""

    def __init__(self, params: Params, reason: str) -> None:
        self.name = f"cpu ({cpu_tier()})"
        self.reason = reason
        self.workers = params.workers or worker_count()
        self._params = params
        self._signer = self._make_signer(params.num_perm)
        self._shingler = self._make_signer(0)

    def _make_signer(self, num_perm: int) -> _cpu.Signer:
        unit, n = parse_shingle(self._params.shingle)
        return _cpu.Signer(unit=unit, n=n, fold=self._params.fold, num_perm=num_perm, seed=self._params.seed)

    def sign(self, batches: Iterable[ToSign]) -> Iterator[SignedBatch]:
        for batch in batches:
            content, unit_count, lanes, keys, hashes, offsets = self._signer.sign(
                *buffers(batch.text),
                bands=self._params.banding if batch.band_keys else None,
                scope_keys=batch.scope_keys,
                lanes=batch.lanes,
                keep_hashes=batch.shingles,
                workers=self.workers,
            )
            yield SignedBatch(content, unit_count, keys, lanes, _shingles(hashes, offsets))

    def shingles(self, texts: Iterable[pa.Array]) -> Iterator[Shingles]:
        for text in texts:
            *_, hashes, offsets = self._shingler.sign(
                *buffers(text), lanes=False, keep_hashes=True, workers=self.workers
            )
            shingles = _shingles(hashes, offsets)
            assert shingles is not None
            yield shingles

    def hash_values(self, values: pa.Array) -> U64:
        if is_text(values.type) or pa.types.is_decimal(values.type):
            return _cpu.hash_values(*buffers(stored_bytes(values)))
        return _cpu.hash_words(fixed_width_words(values))

    def group_content(self, order: U32, content: U64, within: I32 | None, across: I32 | None) -> U32:
        return _cpu.group_content(order, content, within=within, across=across, workers=self.workers)

    def band_keys(self, lanes: Sequence[LaneGroups], band: int, scope_keys: U64 | None) -> U64:
        rows = self._params.banding.rows
        every = _cpu.Lanes(lanes, self._params.num_perm)
        return every.band_keys(band, rows=rows, scope_keys=scope_keys, workers=self.workers)

    def band(self, keys: U64, documents: U32, *, memory_bytes: int) -> Band:
        return Band(*_cpu.sort_band(keys, documents, memory_bytes=memory_bytes, workers=self.workers))

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
    ) -> _cpu.Buckets:
        return _cpu.Buckets(
            [(band.members, band.lengths) for band in bands],
            count=count,
            fixed=fixed,
            scopes=scopes,
            across=across,
            window=self._params.bucket_window,
            memory_bytes=memory_bytes,
            directory=directory,
            workers=self.workers,
        )

    def set_store(self, count: int, *, memory_bytes: int, directory: str) -> _cpu.SetStore:
        return _cpu.SetStore(count=count, memory_bytes=memory_bytes, directory=directory)

    def gather_lanes(self, lanes: Iterable[LaneGroups], numbers: U32, *, memory_bytes: int, directory: str) -> U32:
        return gather_lanes(lanes, numbers, self._params.num_perm, memory_bytes=memory_bytes, tmp=directory)

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
    ) -> _cpu.Decision:
        assert isinstance(buckets, _cpu.Buckets)
        assert sets is None or isinstance(sets, _cpu.SetStore)
        assert lanes is None or isinstance(lanes, np.ndarray)
        assert prior is None or isinstance(prior, _cpu.Decision)
        return _cpu.verify(
            buckets,
            components=self._params.clustering == "components",
            threshold_ppm=threshold_ppm,
            sets=sets,
            lanes=None if lanes is None else _cpu.Lanes([[lanes]], self._params.num_perm),
            documents=documents,
            leader=leader,
            prior=prior,
            workers=self.workers,
        )

    def undecided(self, buckets: Buckets, prior: Decision) -> U32:
        assert isinstance(buckets, _cpu.Buckets)
        assert isinstance(prior, _cpu.Decision)
        return _cpu.undecided_documents(buckets, prior)

    def stream(self, *, memory_bytes: int, directory: str) -> _cpu.Stream:
        params = self._params
        return _cpu.Stream(
            bands=params.banding.bands,
            rows=params.banding.rows,
            num_perm=params.num_perm,
            window=params.bucket_window,
            threshold_ppm=params.threshold_ppm,
            verify=params.verify,
            across=params.across is not None,
            memory_bytes=memory_bytes,
            directory=directory,
        )


def _shingles(hashes: U32 | None, offsets: I64 | None) -> HostShingles | None:
    return None if hashes is None or offsets is None else HostShingles(hashes, offsets)
