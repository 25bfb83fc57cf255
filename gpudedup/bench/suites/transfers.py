"""What bounds all else: how fast memory is copied, Parquet decoded and encoded, a disk written, a GPU fed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gpudedup import _cpu
from gpudedup.bench.devices import Device
from gpudedup.bench.inputs import inputs, text_bytes, texts
from gpudedup.bench.measure import Measured, Work, measure
from gpudedup.bench.record import Record
from gpudedup.bench.suites import Order, recorded
from gpudedup.errors import BenchmarkError

MOST_BYTES = 256_000_000
HERE = "gpudedup.bench.suites.transfers:"
SAME = "the bytes that came are those that were sent; the same in every repeat"
COUNTED = "as many documents and bytes as are known to be there; the same in every repeat"


def suite(order: Order) -> Iterator[Record]:
    text = inputs(order)
    size = min(order.text_bytes, MOST_BYTES)
    host = Device("cpu", next((one.tier for one in order.devices if one.device == "cpu"), None))
    from_files: dict[str, Any] = {"files": text.files, "text_column": text.text_column}
    decoded = {**from_files, "documents": text.documents, "size": text.text_bytes}
    named = f"{text.name}: files to text in memory, as the job reads them"
    cases: list[tuple[str, Device, str, dict[str, Any], str, str]] = []
    for workers in sorted({1, order.workers}):
        copy = {"size": MOST_BYTES, "workers": workers}
        cores = "1 core" if workers == 1 else f"{workers} cores"
        cases.append((f"host memory, {cores}", host, "copying", copy, "one array to another", SAME))
    cases.append(("decode", host, "decoding", decoded, named, COUNTED))
    to_encode = {**from_files, "size": size}
    cases.append(("encode", host, "encoding", to_encode, f"{text.name}: text to Parquet (zstd) in memory", SAME))
    to_write = {"size": size, "folder": str(order.folder)}
    cases.append(("disk", host, "writing", to_write, "write and fsync of a new file where temporary files go", SAME))
    for device in order.devices:
        for way in ("upload", "download") if device.device != "cpu" else ():
            given = {"size": size, "device": device.device, "way": way}
            cases.append(
                (f"pinned {way}", device, "pinned", given, f"{way} of pinned host memory until it is there", SAME)
            )
    for case, device, function, arguments, clock, checked in cases:
        order.tell(f"transfers: {case}, {device}")
        found = measure(HERE + function, arguments, repeat=order.repeat, environment=device.environment)
        figures = {}
        if isinstance(found, Measured):
            figures = {"megabytes_per_second": found.figures["bytes"] / found.seconds.median / 1e6}
        corpus = text.text if "files" in arguments else None
        parameters = {name: value for name, value in arguments.items() if name in ("size", "workers")}
        about: dict[str, Any] = {"corpus": corpus, "parameters": parameters, "clock": clock, "checked": checked}
        yield recorded("transfers", case, order, device, found, figures=figures, **about)


def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, size, np.uint8)


def _hash(data: Any) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def copying(size: int, workers: int) -> Work:
    source, target = _noise(size), np.zeros(size, np.uint8)

    def run() -> np.ndarray:
        _cpu.copy_values(target, source, workers=workers)
        return target

    return _moving(run, source, target)


def pinned(size: int, device: str, way: str) -> Work:
    """Copies between pinned host memory and a GPU."""
    from gpudedup.backends.cuda.cupy_device import CupyDevice
    from gpudedup.backends.cuda.device import fetched

    gpu = CupyDevice(int(device.partition(":")[2]))
    stream, host, on_it = gpu.stream(), gpu.alloc_host(size, np.uint8), gpu.alloc(size, np.uint8)
    source = _noise(size)
    if way == "upload":
        host[:] = source
    else:
        gpu.upload(source, on_it, stream)
        stream.synchronize()

    def run() -> np.ndarray:
        if way == "upload":
            gpu.upload(host, on_it, stream)
        else:
            gpu.download(on_it, host, stream)
        stream.synchronize()
        return host

    def fingerprint(result: np.ndarray) -> str:
        return _hash(fetched(gpu, on_it, stream) if way == "upload" else result)

    def check(result: np.ndarray) -> None:
        if fingerprint(result) != _hash(source):
            raise BenchmarkError(f"other bytes arrived by {way} than were sent")

    return Work(run, fingerprint, check, lambda _: {"bytes": size})


def _moving(run: Callable[[], np.ndarray], source: np.ndarray, target: np.ndarray) -> Work:
    def check(result: np.ndarray) -> None:
        if not np.array_equal(result, source):
            raise BenchmarkError("other bytes arrived than were sent")

    return Work(run, _hash, check, lambda _: {"bytes": source.nbytes}, lambda: target.fill(0))


def decoding(files: Sequence[str], text_column: str, documents: int, size: int) -> Work:
    """Reads files as the sign stage does, and lets the text go."""

    def run() -> tuple[int, int]:
        found = [(len(text), text_bytes(text)) for text in texts(files, text_column)]
        return sum(count for count, _ in found), sum(each for _, each in found)

    def check(found: tuple[int, int]) -> None:
        if found != (documents, size):
            raise BenchmarkError(f"{found} documents and bytes were read, and {(documents, size)} are there")

    return Work(run, str, check, lambda found: {"documents": found[0], "bytes": found[1]})


def encoding(files: Sequence[str], text_column: str, size: int) -> Work:
    """Parquet of text in memory, as kept documents are written."""
    found, held = [], 0
    for text in texts(files, text_column):
        found.append(text)
        held += text_bytes(text)
        if held >= size:
            break
    table = pa.table({"text": pa.chunked_array(found)})

    def run() -> pa.Buffer:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False)
        return sink.getvalue()

    def check(result: pa.Buffer) -> None:
        if not pq.read_table(pa.BufferReader(result)).equals(table):
            raise BenchmarkError("Parquet that was written is read as another text")

    return Work(run, _hash, check, lambda _: {"bytes": held})


def writing(size: int, folder: str) -> Work:
    """A file written and flushed to the disk."""
    source = _noise(size)
    place = Path(tempfile.mkdtemp(dir=folder)) / "file"

    def run() -> Path:
        with open(place, "wb") as file:
            file.write(source.data)
            file.flush()
            os.fsync(file.fileno())
        return place

    def fingerprint(result: Path) -> str:
        return _hash(result.read_bytes())

    def check(result: Path) -> None:
        if fingerprint(result) != _hash(source):
            raise BenchmarkError("a file that was written holds other bytes")

    return Work(run, fingerprint, check, lambda _: {"bytes": size}, lambda: place.unlink(missing_ok=True))
