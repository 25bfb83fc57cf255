"""Shingle hashes that stay on the emulated device between sign and verify, against the reference."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import reference
from emulated_device import EmulatedDevice

from gpudedup import _cpu
from gpudedup.backends.base import SetStore, Shingles, ToSign
from gpudedup.backends.cuda import backend as cuda
from gpudedup.backends.cuda import device as memory
from gpudedup.backends.cuda.backend import CudaBackend
from gpudedup.backends.cuda.device import DeviceArray
from gpudedup.backends.cuda.sets import DeviceSets
from gpudedup.backends.cuda.shingles import DeviceShingles
from gpudedup.params import Params

pytest.importorskip("numba", reason="the emulated device runs loop bodies by Numba")

PARAMS = Params(num_perm=8, bands=2, rows=4, shingle="word:2")


def documents(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(40)}" for _ in range(draw.choice([0, 1, 2, 30, 90]))) for _ in range(count)]


def shingles_of(backend: CudaBackend, texts: list[str]) -> Shingles:
    [signed] = backend.sign([ToSign(pa.array(texts), shingles=True)])
    assert signed.shingles is not None
    return signed.shingles


def hashes_of(text: str) -> list[int]:
    return reference.shingle_list(reference.units(text, "word:2", "full"), 2)


def expected_hashes(texts: list[str]) -> list[int]:
    return [value for text in texts for value in hashes_of(text)]


def sets_of(backend: CudaBackend, count: int, directory: Path) -> DeviceSets:
    store: SetStore = backend.set_store(count, memory_bytes=1 << 20, directory=str(directory))
    assert isinstance(store, DeviceSets)
    return store


def test_hashes_cross_the_bus_in_neither_direction(tmp_path: Path) -> None:
    """Up goes what names rows and documents, and nothing comes down."""
    device = EmulatedDevice()
    backend = CudaBackend(PARAMS, device, "as asked")
    texts = documents(50, 1)
    down = device.counters.bytes_down
    shingles = shingles_of(backend, texts)
    assert isinstance(shingles, DeviceShingles)
    assert device.counters.bytes_down - down == 50 * 16 + 51 * 4 + 8  # content, first units, what was needed
    assert shingles.bytes_in_memory == 51 * 8
    assert shingles.hashes.tolist() == expected_hashes(texts)

    sets = sets_of(backend, 50, tmp_path)
    rows = np.array([3, 7, 8, 21, 49], np.uint32)
    up, down = device.counters.bytes_up, device.counters.bytes_down
    shingles.add_to(sets, rows[::-1].copy(), rows, workers=1)
    assert device.counters.bytes_up - up == 5 * 8 + 6 * 8 + 5 * 4
    assert device.counters.bytes_down == down
    assert sets.missing(np.arange(50, dtype=np.uint32)).tolist() == [i for i in range(50) if i not in rows.tolist()]
    assert sets.on_device
    made = sets.on_host()  # comes down from there
    for number, row in zip(rows[::-1].tolist(), rows.tolist(), strict=True):
        assert made.get(number).tolist() == sorted(set(hashes_of(texts[row])))
    device.check()


@pytest.mark.parametrize(("part", "blocks"), [(1 << 60, 10), (128, 0)])
def test_in_steady_state_a_piece_takes_its_own_memory_and_no_wait_more(
    part: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of three batches, whose hashes are a block each, or in one from the first to the last. For each block it
    is asked how much is free."""
    monkeypatch.setattr(memory, "BLOCK_PART", part)
    monkeypatch.setattr(cuda, "PIECE_BYTES", 0)  # the least: 64 KiB
    device = EmulatedDevice()
    backend = CudaBackend(PARAMS, device, "as asked")
    texts = documents(200, 2)
    taken = 200 * (48 + 8 * 2 + 4 * 8)  # two bands, eight lanes
    assert sum(map(len, texts)) < taken
    assert 3 < 65_536 / taken < 4
    wanted = ToSign(pa.array(texts), shingles=True)
    held = list(backend.sign([wanted] * 9))

    def asked() -> tuple[int, ...]:
        now = device.counters
        return now.allocations, now.host_allocations, now.memory_questions, now.synchronisations

    before, used = asked(), device.used_bytes
    held += backend.sign([wanted] * 30)
    assert [after - was for after, was in zip(asked(), before, strict=True)] == [blocks, 0, blocks, 10 + 4]
    size = 3 * 4 * len(expected_hashes(texts))
    assert device.used_bytes - used == blocks * -(-size // 512) * 512
    held.clear()
    backend._signer.release()
    assert device.used_bytes < used  # and gives it back


def test_hashes_become_sets_while_the_next_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when texts are read again: nothing waits for the copy of a piece's hashes but what reads them."""
    monkeypatch.setattr(cuda, "PIECE_BYTES", 0)
    for seed in range(5):
        device = EmulatedDevice(timing="random", seed=seed)
        backend = CudaBackend(PARAMS, device, "as asked")
        batches = [documents(100, 10 + number) for number in range(12)]
        sets = sets_of(backend, 1200, tmp_path)
        for number, shingles in enumerate(backend.shingles(pa.array(texts) for texts in batches)):
            assert isinstance(shingles, DeviceShingles)
            rows = np.arange(100, dtype=np.uint32)
            shingles.add_to(sets, rows + np.uint32(100 * number), rows, workers=1)
        assert sets.on_device
        on_host = sets.on_host()
        for number in range(0, 1200, 7):
            text = batches[number // 100][number % 100]
            assert on_host.get(number).tolist() == sorted(set(hashes_of(text)))
        device.check()


@pytest.mark.parametrize("timing", ["late", "early", "random"])
@pytest.mark.parametrize("pieces_kept", [0, 1, 3, 100])
def test_parts_on_the_device_and_on_the_host(
    timing: Any, pieces_kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch in pieces, of which the first few have room on the device: equal sets, on the device and on the host."""
    monkeypatch.setattr(cuda, "PIECE_BYTES", 0)  # the least: 64 KiB
    device = EmulatedDevice(timing=timing, seed=pieces_kept)
    backend = CudaBackend(PARAMS, device, "as asked")
    texts = documents(60, 3) + [" ".join(f"v{i}" for i in range(11_000)), ""] * 5 + documents(60, 4)
    kept = 0
    signer = backend._signer
    keep = signer._keep_packed

    def keep_some(packed: DeviceArray) -> DeviceArray | None:
        nonlocal kept
        kept += packed.size > 0
        return keep(packed) if kept <= pieces_kept else None

    monkeypatch.setattr(signer, "_keep_packed", keep_some)
    shingles = shingles_of(backend, texts)
    assert kept > 4
    if isinstance(shingles, DeviceShingles):
        parts = [isinstance(part, DeviceArray) for part in shingles.parts if part.size]
        assert parts == sorted(parts, reverse=True)
        assert sum(parts) == min(len(parts), pieces_kept)
    assert isinstance(shingles, DeviceShingles) == (pieces_kept > 0)
    assert shingles.hashes.tolist() == expected_hashes(texts)
    chosen = np.array([0, 5, 59, 60, 61, 64, 66, 70, 100, len(texts) - 1], np.uint32)
    sets = sets_of(backend, len(chosen), tmp_path)
    shingles.add_to(sets, np.arange(len(chosen), dtype=np.uint32), chosen, workers=1)
    expected = [sorted(set(hashes_of(texts[row]))) for row in chosen.tolist()]
    assert sets.on_device
    on_host = sets.on_host()
    assert [on_host.get(number).tolist() for number in range(len(chosen))] == expected
    late = np.array([1, 62], np.uint32)  # the sets have moved: what follows goes to the host too
    again = sets_of(backend, 2, tmp_path)
    assert isinstance(again.on_host(), _cpu.SetStore)
    shingles.add_to(again, np.arange(2, dtype=np.uint32), late, workers=1)
    assert [again.on_host().get(i).tolist() for i in range(2)] == [
        sorted(set(hashes_of(texts[row]))) for row in late.tolist()
    ]
    device.check()


def test_half_of_the_device_stays_free_for_other_work() -> None:
    device = EmulatedDevice(memory_bytes=8 << 20)
    backend = CudaBackend(PARAMS, device, "as asked")
    wanted = ToSign(pa.array([" ".join(f"w{i}" for i in range(8000))] * 4), shingles=True)
    size = 4 * 4 * 7999
    held = [signed.shingles for signed in backend.sign([wanted] * 60)]
    on_device = [isinstance(shingles, DeviceShingles) and shingles.bytes_in_memory < size for shingles in held]
    assert on_device[0]
    assert not on_device[-1]
    assert device.free_bytes() >= 4 << 20


@pytest.mark.parametrize("options", [{"verify": "signature"}, {"clustering": "components"}])
def test_hashes_that_the_device_does_not_compare_come_to_the_host(options: dict[str, Any]) -> None:
    backend = CudaBackend(Params(num_perm=8, bands=2, rows=4, **options), EmulatedDevice(), "as asked")
    assert not isinstance(shingles_of(backend, documents(9, 5)), DeviceShingles)
