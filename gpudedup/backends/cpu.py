"""The CPU backend: csrc/cpu through the extension gpudedup._cpu."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpudedup import _cpu
from gpudedup.backends.base import I32, I64, U8, U32, U64, Shingles, SignedBatch
from gpudedup.errors import DeviceError, InputError
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

    def sign(self, text: pa.Array, *, keep_shingles: bool) -> SignedBatch:
        values, offsets = buffers(text)
        lanes, content, unit_count, hashes, bounds = self._signer.sign(
            values, offsets, keep_hashes=keep_shingles, workers=self.workers
        )
        shingles = Shingles(hashes, bounds) if hashes is not None and bounds is not None else None
        return SignedBatch(lanes, content, unit_count, shingles)

    def shingles(self, text: pa.Array) -> Shingles:
        values, offsets = buffers(text)
        _, _, _, hashes, bounds = self._shingler.sign(values, offsets, keep_hashes=True, workers=self.workers)
        assert hashes is not None
        assert bounds is not None
        return Shingles(hashes, bounds)

    def hash_values(self, values: pa.Array) -> U64:
        if is_text(values.type):
            return _cpu.hash_values(*buffers(values))
        return _cpu.hash_words(fixed_width_words(values))

    def group_content(self, order: U32, content: U64, within: I32 | None, across: I32 | None) -> U32:
        return _cpu.group_content(order, content, within=within, across=across, workers=self.workers)

    def lanes(self, batches: list[U32]) -> _cpu.Lanes:
        return _cpu.Lanes(batches, self._params.num_perm)

    def buckets(
        self,
        lanes: _cpu.Lanes,
        documents: U32,
        scope_keys: U64 | None,
        scopes: I32 | None,
        across: I32 | None,
    ) -> _cpu.Buckets:
        bands, rows = self._params.banding
        return _cpu.Buckets(
            lanes,
            documents,
            scope_keys=scope_keys,
            scopes=scopes,
            across=across,
            bands=bands,
            rows=rows,
            window=self._params.bucket_window,
            workers=self.workers,
        )

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
        return _cpu.verify(
            buckets,
            components=self._params.clustering == "components",
            threshold_ppm=threshold_ppm,
            sets=sets,
            lanes=lanes,
            documents=documents,
            leader=leader,
            prior=prior,
            workers=self.workers,
        )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text or bytes (dictionary: decoded first)."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_tokens(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of integers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_integer(kind.value_type))


def buffers(array: pa.Array) -> tuple[U8 | I64, I32 | I64]:
    """Values (uint8 or int64) and offsets (int32 or int64, [n + 1]) of a text or token column; null is empty."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if is_tokens(kind):
        return _token_buffers(array)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.large_binary())
        kind = array.type
    if array.null_count:
        array = pc.fill_null(array, b"" if "binary" in str(kind) else "")
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int32)
    values = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    rows = slice(array.offset, array.offset + len(array) + 1)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return values, np.frombuffer(offsets, np.int64)[rows]
    return values, np.frombuffer(offsets, np.int32)[rows]


def _token_buffers(array: pa.Array) -> tuple[I64, I64]:
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    values = array.flatten()  # without what nulls and slices leave out
    if values.null_count:
        raise InputError("a list of tokens holds a null element; every element must be an integer")
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    try:
        tokens = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"tokens must fit in 64-bit signed integers: {error}") from None
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return np.ascontiguousarray(tokens, np.int64), offsets


def fixed_width_words(values: pa.Array) -> U64:
    """Fixed-width values sign- or zero-extended to 64 bits, without nulls."""
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.uint8())
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    if pa.types.is_unsigned_integer(values.type):
        return np.ascontiguousarray(values.cast(pa.uint64()).to_numpy(zero_copy_only=False), np.uint64)
    return np.ascontiguousarray(values.cast(pa.int64()).to_numpy(zero_copy_only=False)).view(np.uint64)
