"""Whole runs on the CUDA backend, on the emulated device: the answers of the reference and the CPU, or clear errors."""

from __future__ import annotations

import errno
import random
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from corpora import EDGES, text_array
from emulated_device import EmulatedDevice, Faults
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cuda_match import expected_decision, reference_pairs
from test_deduplicate import (
    assert_random_run_equals_reference,
    assert_several_blocks_equal_reference,
    random_corpus,
    rows_of,
)

import gpudedup
from gpudedup.backends import select
from gpudedup.backends.base import NO_KEEPER, HostShingles, ToSign
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import cupy_device, detect
from gpudedup.backends.cuda import verify as rounds
from gpudedup.backends.cuda.backend import CudaBackend, try_out
from gpudedup.errors import DeviceError, DeviceMemoryError, OutputError
from gpudedup.params import Params

pytest.importorskip("numba", reason="the emulated device runs loop bodies by Numba")

Made = Callable[[], EmulatedDevice]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Made], list[EmulatedDevice]]:
    """use(make): runs go to devices that make() gives, which are listed."""

    def choose(make: Made) -> list[EmulatedDevice]:
        devices: list[EmulatedDevice] = []

        def choice(params: Params, input_bytes: int | None = None) -> CudaBackend:
            devices.append(make())
            return CudaBackend(params, devices[-1], "as asked")

        for module in ("engines.local", "streaming"):
            monkeypatch.setattr(f"gpudedup.{module}.select_backend", choice)
        return devices

    return choose


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "FIRST_BLOCK", 7)
    monkeypatch.setattr(rounds, "LARGEST_BLOCK", 300)
    monkeypatch.setattr(rounds, "MEASURE_BLOCKS", 2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_random_runs_equal_reference(use: Any, seed: int) -> None:
    order = ("forward", "reverse", "random")[seed % 3]
    devices = use(lambda: EmulatedDevice(order=order, timing="random", seed=seed))  # type: ignore[arg-type]
    assert_random_run_equals_reference(seed)
    for device in devices:
        device.check()


@pytest.mark.parametrize("across", [False, True])
def test_several_blocks_equal_reference(use: Any, across: bool) -> None:
    use(EmulatedDevice)
    assert_several_blocks_equal_reference(2, across)


def corpus() -> pa.Table:
    rng = random.Random(11)
    texts = [*random_corpus(rng, 150), *(" ".join(f"w{rng.randrange(60)}" for _ in range(3000)) for _ in range(3))]
    return pa.table({"text": texts, "k": [rng.randrange(5) for _ in texts]})


OPTIONS: dict[str, Any] = {"threshold": 0.6, "num_perm": 64, "keep_sets": True, "within": "k"}


def answer(data: Any, **options: Any) -> tuple[Any, ...]:
    result = gpudedup.deduplicate(data, **options)
    return rows_of(result.removed), rows_of(result.at(0.8).removed), result.summary().compared_pairs


@pytest.mark.parametrize(("verify", "brought"), [("exact", "sets"), ("signature", "lanes")])
def test_the_same_work_as_the_cpu(use: Any, verify: str, brought: str) -> None:
    """Equal removals at both thresholds, and equal numbers of comparisons: neither backend looks at more pairs."""
    table, options = corpus(), {**OPTIONS, "verify": verify}
    on_cpu = answer(table, **options)
    assert on_cpu[0]
    devices = use(EmulatedDevice)
    assert answer(table, **options) == on_cpu
    assert devices[0].counters.launches > 10
    assert set(devices[0].ranges) == {"sign", "signed", "match", brought, "verify"}


@pytest.mark.parametrize("verify", ["exact", "signature", "none"])
def test_no_room_at_any_allocation(use: Any, verify: str) -> None:
    """Out of memory at each allocation in turn, on the device or of pinned memory: the same answer."""
    table, options = corpus().slice(100), {**OPTIONS, "verify": verify}
    expected = answer(table, **options)
    baseline = use(EmulatedDevice)
    assert answer(table, **options)[:2] == expected[:2]
    counters = baseline[0].counters
    constants = 5  # the parameters' own memory: without it there is no backend
    for number in range(constants + 1, counters.allocations + 1, 7):
        use(lambda n=number: EmulatedDevice(faults=Faults(allocation=n)))
        assert answer(table, **options)[:2] == expected[:2], number
    for number in range(1, counters.host_allocations + 1):
        use(lambda n=number: EmulatedDevice(faults=Faults(host_allocation=n)))
        assert answer(table, **options)[:2] == expected[:2], number


def test_signatures_that_have_room_nowhere(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where they are compared nor, when the device gives them back, in memory or in tmp."""

    def no_memory(*_: Any) -> None:
        raise DeviceMemoryError("no room")

    def no_disk(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    use(EmulatedDevice)
    monkeypatch.setattr(rounds.Keepers, "run", no_memory)
    monkeypatch.setattr("gpudedup.backends.cuda.lanes.lanes_room", no_disk)
    with pytest.raises(OutputError, match=r"no room for what is compared \(No space left on device\); give another"):
        gpudedup.deduplicate(corpus(), **{**OPTIONS, "verify": "signature"})


def test_a_lost_device_is_an_error_and_never_a_wrong_answer(use: Any) -> None:
    table = corpus().slice(100)
    expected = answer(table, **OPTIONS)
    devices = use(EmulatedDevice)
    assert answer(table, **OPTIONS)[:2] == expected[:2]
    calls = devices[0].counters.calls
    for number in range(1, calls, max(1, calls // 30)):
        use(lambda n=number: EmulatedDevice(faults=Faults(lost=n)))
        with pytest.raises(DeviceError, match="lost"):
            answer(table, **OPTIONS)
    launches = devices[0].counters.launches
    for number in range(1, launches + 1, 3):
        use(lambda n=number: EmulatedDevice(faults=Faults(launch=n)))
        with pytest.raises(DeviceError, match="refused"):
            answer(table, **OPTIONS)


def test_a_small_device(use: Any) -> None:
    """Memory for a few documents at a time, and for no more: pieces get smaller, the rest is done by the CPU."""
    table = corpus()
    expected = answer(table, **OPTIONS)
    for kilobytes in (900, 1200, 2000, 5000):
        devices = use(lambda k=kilobytes: EmulatedDevice(memory_bytes=k << 10))
        assert answer(table, **OPTIONS)[:2] == expected[:2]
        assert devices[0].counters.peak_bytes <= kilobytes << 10


def test_match_and_verify_have_the_memory_of_sign() -> None:
    device = EmulatedDevice()
    backend = CudaBackend(Params(num_perm=32, bands=4, rows=8, verify="none"), device, "as asked")
    texts = pa.array([f"some words of text number {i // 2}" for i in range(500)])
    constants = device.used_bytes
    [signed] = backend.sign([ToSign(texts, band_keys=True)])
    assert device.used_bytes > constants + 500 * 32 * 4
    assert signed.band_keys is not None
    documents, memory = np.arange(500, dtype=np.uint32), 1 << 20
    bands = [backend.band(keys, documents, memory_bytes=memory) for keys in signed.band_keys]
    assert device.used_bytes <= constants + documents.nbytes + 512
    buckets = backend.buckets(bands, 500, None, None, memory_bytes=memory, directory="/")
    used = device.used_bytes
    list(backend.shingles([texts]))
    assert device.used_bytes > used
    of_pairs: Any = {"sets": None, "lanes": None, "leader": None, "prior": None}
    decision = backend.verify(buckets, threshold_ppm=800_000, documents=documents, **of_pairs)
    assert device.used_bytes <= used
    assert [keeper != NO_KEEPER for keeper in decision.arrays()[0].tolist()] == [False, True] * 250


@pytest.mark.parametrize(
    ("memory", "mode", "pieces"), [("64 MB", "none", 2), ("64 MB", "exact", 3), ("4 GB", "exact", 1)]
)
def test_pieces_take_a_part_of_memory(memory: str, mode: str, pieces: int) -> None:
    """Of 64 MB a sixteenth, or a half of that where hashes may come down; for three batches of 2 MB."""
    device = EmulatedDevice(memory_bytes=8 << 30)
    backend = CudaBackend(Params(num_perm=8, bands=2, rows=4, memory=memory, verify=mode), device, "as asked")
    text = ToSign(pa.array(["w " * 1_000_000]))
    launches = []
    for batches in ([text], [text, text, text]):
        before = device.counters.launches
        list(backend.sign(batches))
        launches.append(device.counters.launches - before)
    assert launches[1] == launches[0] * pieces


def test_pinned_arrays_stay_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of characters come down, and a piece has about as many documents as it takes."""
    device, pinned, most = EmulatedDevice(memory_bytes=8 << 30), 0, 0
    alloc_host = device.alloc_host

    def counted(size: int, dtype: Any) -> Any:
        nonlocal pinned, most
        array = alloc_host(size, dtype)
        pinned += array.nbytes
        most = max(most, pinned)
        weakref.finalize(array, dropped, array.nbytes)
        return array

    def dropped(nbytes: int) -> None:
        nonlocal pinned
        pinned -= nbytes

    monkeypatch.setattr(device, "alloc_host", counted)
    params = Params(shingle="char:5", num_perm=8, bands=2, rows=4, memory="64 MB", clustering="components")
    backend = CudaBackend(params, device, "as asked")
    text = pa.array(["a b " * (24 + i % 3) for i in range(20_000)])
    for signed in backend.sign([ToSign(text, band_keys=True, lanes=True, shingles=True)] * 6):
        assert isinstance(signed.shingles, HostShingles)
    assert 30_000_000 < most <= 64_000_000


def test_streams_equal_one_batch(use: Any) -> None:
    table = corpus().drop_columns(["k"])
    expected = gpudedup.deduplicate(table, threshold=0.6, num_perm=64).keep_mask.to_pylist()
    use(lambda: EmulatedDevice(timing="random"))
    stream = gpudedup.Deduplicator(threshold=0.6, num_perm=64)
    masks = [stream.filter(table.slice(first, 40)).to_pylist() for first in range(0, len(table), 40)]
    assert [keep for mask in masks for keep in mask] == expected


def test_a_device_is_tried_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes wrongly or not at all is not taken: auto says why and goes on without it."""

    class Wrong(EmulatedDevice):
        def scan(self, values: Any, sums: Any, stream: Any) -> None:
            self.fill(sums, 0, stream)

    try_out(EmulatedDevice(timing="random"))
    monkeypatch.setattr(select, "BYTES_A_WORKER", 0)
    monkeypatch.setattr(detect, "detect", lambda index: detect.Detection(reason=None))
    broken: dict[str, Made] = {
        "computes wrongly": Wrong,
        "refused to launch": lambda: EmulatedDevice(faults=Faults(launch=1)),
    }
    for reason, make in broken.items():
        monkeypatch.setattr(cupy_device, "CupyDevice", lambda index, make=make: make())
        summary = gpudedup.deduplicate(["text"], device="auto").summary()
        assert summary.device.startswith("cpu (")
        assert reason in summary.device_reason
        with pytest.raises(DeviceError, match=reason):
            gpudedup.deduplicate(["text"], device="cuda")
    monkeypatch.setattr(cupy_device, "CupyDevice", lambda index: EmulatedDevice())
    summary = gpudedup.deduplicate(["text", "text"], device="auto").summary()
    assert (summary.device, summary.removed) == ("cuda (emulated device)", 1)
    assert summary.device_reason == "a GPU was found; auto leaves less than 0 MB of input to the CPU"


@pytest.mark.parametrize("stored", ["table", "stream", "run"])
def test_auto_leaves_small_inputs_to_the_cpu(stored: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With as many bytes for each worker as are too few, and with one byte more; who asks for the GPU gets it."""
    table = corpus()
    parquet = tmp_path / "corpus.parquet"
    pq.write_table(table, parquet)
    size = {"table": table.nbytes, "run": parquet.stat().st_size}
    monkeypatch.setattr(detect, "detect", lambda index: detect.Detection(reason=None))
    monkeypatch.setattr(select, "ruled_out", lambda: None)
    made: list[EmulatedDevice] = []

    def open_device(index: int) -> EmulatedDevice:
        made.append(EmulatedDevice())
        return made[-1]

    monkeypatch.setattr(cupy_device, "CupyDevice", open_device)

    def summary(device: str) -> gpudedup.Summary:
        if stored == "run":
            out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
            return gpudedup.run(parquet, out=out, device=device, workers=2).summary()
        data: Any = table if stored == "table" else pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
        return gpudedup.deduplicate(data, device=device, workers=2).summary()

    bound = size.get(stored, 10**6) // 2
    monkeypatch.setattr(select, "BYTES_A_WORKER", bound + 1)
    small = summary("auto")
    assert small.device.startswith("cpu (")
    assert re.fullmatch(r"auto: \d+\.\d MB is less work than starting a GPU", small.device_reason)
    assert made == []
    asked = summary("cuda")
    assert (asked.device, asked.device_reason) == ("cuda (emulated device)", "as asked")
    monkeypatch.setattr(select, "BYTES_A_WORKER", bound if stored != "stream" else 1)
    large = summary("auto")
    assert large.device == "cuda (emulated device)"
    assert large.device_reason.startswith("a GPU was found; auto leaves less than ")
    assert small.removed == asked.removed == large.removed > 0


def test_auto_takes_the_gpu_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how long one will be."""
    monkeypatch.setattr(detect, "detect", lambda index: detect.Detection(reason=None))
    made: list[EmulatedDevice] = []
    monkeypatch.setattr(cupy_device, "CupyDevice", lambda index: made.append(EmulatedDevice()) or made[-1])
    gpudedup.Deduplicator().filter(["text"])
    assert len(made) == 1


def test_batches_of_every_kind_in_a_row() -> None:
    """Huge, tiny, empty and broken documents in turn, with all outputs, against the CPU backend."""
    params = Params(num_perm=32, bands=4, rows=8)
    batches = [text_array(texts * 3, pa.large_binary()) for texts in EDGES.values()]
    batches += [text_array(["z"] * 3000, pa.binary()), pa.array([None, None], pa.string())]
    device = EmulatedDevice(timing="random", order="random")
    wanted = [ToSign(batch, None, True, True, True) for batch in batches]
    made = list(CudaBackend(params, device, "as asked").sign(iter(wanted)))
    for ours, theirs in zip(made, CpuBackend(params, "as asked").sign(wanted), strict=True):
        np.testing.assert_array_equal(ours.content, theirs.content)
        np.testing.assert_array_equal(ours.unit_count, theirs.unit_count)
        np.testing.assert_array_equal(ours.band_keys, theirs.band_keys)
        np.testing.assert_array_equal(ours.lanes, theirs.lanes)
        assert ours.shingles is not None
        assert theirs.shingles is not None
        np.testing.assert_array_equal(ours.shingles.offsets, theirs.shingles.offsets)
        np.testing.assert_array_equal(ours.shingles.hashes, theirs.shingles.hashes)
    device.check()


@pytest.mark.parametrize("fixed", [0, 40, 150])
@pytest.mark.parametrize("room", [1 << 26, 60_000, 30_000, 20_000, 8_000, 0])
def test_signatures_in_groups_of_lanes(fixed: int, room: int) -> None:
    """From columns of lanes to removals, by the words of the specification; also where the device has little room."""
    count, num_perm, window = 150, 20, 3
    params = Params(verify="signature", threshold=0.7, num_perm=num_perm, bands=4, rows=5, bucket_window=window)
    draw = np.random.default_rng(fixed)
    families = draw.integers(0, 2**32, (20, num_perm), dtype=np.uint32)
    own = draw.integers(0, 2**32, (count, num_perm), dtype=np.uint32)
    lanes = np.where(draw.random((count, num_perm)) < 0.85, families[draw.integers(0, 20, count)], own)
    batches = [[part[:, low : low + 8].copy() for low in (0, 8, 16)] for part in (lanes[:70], lanes[70:])]
    documents = draw.permutation(count).astype(np.uint32)
    device = EmulatedDevice(timing="random")
    backend = CudaBackend(params, device, "as asked")
    device.memory_bytes = device.used_bytes + room
    bands = []
    for band in range(4):
        keys = backend.band_keys(batches, band, None)
        assert keys.tolist() == [reference.band_keys(row, 4, 5, 0)[band] for row in lanes.tolist()]
        bands.append(backend.band(keys, documents, memory_bytes=1 << 20))
    buckets = backend.buckets(bands, count, None, None, fixed=fixed, memory_bytes=1 << 20, directory="/")
    numbers = np.arange(count, dtype=np.uint32)
    gathered = backend.gather_lanes(iter(batches), numbers, memory_bytes=1 << 20, directory="/")
    decision = backend.verify(
        buckets, threshold_ppm=700_000, sets=None, lanes=gathered, documents=documents, leader=None, prior=None
    )
    ranked = lanes[documents]
    of_band = [[tuple(row[5 * band : 5 * band + 5]) for row in ranked.tolist()] for band in range(4)]
    candidates = reference_pairs(of_band, window, lambda a, b: True)
    expected = expected_decision(
        candidates, count, lambda a, b: (int((ranked[a] == ranked[b]).sum()), num_perm), 700_000, fixed
    )
    assert [array.tolist() for array in decision.arrays()] == list(expected)
    assert (sum(keeper != NO_KEEPER for keeper in expected[0]) > 20) == (fixed < count)
    device.check()
