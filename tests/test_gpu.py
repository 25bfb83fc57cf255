"""On a GPU: what the reference and the CPU backend give, bit for bit, or an error that says what is wrong.

GPUDEDUP_REHEARSE=1 runs these tests on the emulated device, on less data: so that they work when they meet a GPU.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import EDGES, text_array
from test_deduplicate import (
    GOLDEN,
    WORDS,
    assert_random_run_equals_reference,
    golden_table,
    random_corpus,
    rows_of,
)

import gpudedup
from gpudedup.backends import Backend, select, select_backend
from gpudedup.backends.base import NO_KEEPER, SignedBatch, ToSign
from gpudedup.backends.cuda import cupy_device, program
from gpudedup.backends.cuda.backend import CudaBackend
from gpudedup.errors import DeviceError
from gpudedup.kernels import BODIES
from gpudedup.params import make_params

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_target  # noqa: E402

if gpu_target.REHEARSAL:
    gpu_target.rehearse()
else:
    pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def _one_device() -> Iterator[None]:
    """All tests share one: a new device compiles its loops anew, for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_device, "CupyDevice", cache(cupy_device.CupyDevice))
        yield


@pytest.fixture
def own_device(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Runs of the test get new devices, of classes that it may patch."""
    monkeypatch.setattr(cupy_device, "CupyDevice", cupy_device.CupyDevice.__wrapped__)  # type: ignore[attr-defined]
    return monkeypatch


def scaled(number: int, rehearsed: int) -> int:
    return rehearsed if gpu_target.REHEARSAL else number


def backends(**options: Any) -> tuple[Backend, Backend]:
    """The GPU's and the CPU's."""
    return select_backend(make_params({"device": "cuda", **options})), select_backend(
        make_params({"device": "cpu", **options})
    )


def assert_equal_batches(ours: SignedBatch, theirs: SignedBatch) -> None:
    for name in ("content", "unit_count", "band_keys", "lanes"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    assert (ours.shingles is None) == (theirs.shingles is None)
    if ours.shingles is not None and theirs.shingles is not None:
        np.testing.assert_array_equal(ours.shingles.offsets, theirs.shingles.offsets)
        np.testing.assert_array_equal(ours.shingles.hashes, theirs.shingles.hashes)


def assert_signs_like_the_cpu(batches: list[pa.Array], **options: Any) -> None:
    """Everything that sign can be asked for, of batches one after another."""
    wanted = [ToSign(batch, band_keys=True, lanes=True, shingles=True) for batch in batches]
    gpu, cpu = backends(**options)
    for ours, theirs in zip(gpu.sign(iter(wanted)), cpu.sign(iter(wanted)), strict=True):
        assert_equal_batches(ours, theirs)


def assert_runs_like_the_cpu(data: Any, **options: Any) -> gpudedup.Result:
    ours, theirs = (gpudedup.deduplicate(data, device=device, **options) for device in ("cuda", "cpu"))
    assert rows_of(ours.removed) == rows_of(theirs.removed)
    assert ours.keep_mask.equals(theirs.keep_mask)
    assert ours.summary().device.startswith("cuda")
    return ours


# ------------------------------------------------------------------------------------------------------- the oracle


def test_golden_texts() -> None:
    cases = defaultdict(list)
    for case in GOLDEN["texts"]:
        fold = {} if "tokens" in case else {"fold": case["fold"]}
        for seed, lanes in case["lanes"].items():
            options = {"shingle": case["shingle"], "seed": int(seed), "num_perm": len(lanes), **fold}
            cases[json.dumps(options)].append((case, lanes))
    assert len(cases) > 5
    for options, members in cases.items():
        documents = [case.get("tokens", bytes.fromhex(case["bytes"]) if "bytes" in case else case.get("text"))
                     for case, _ in members]  # fmt: skip
        tokens = "tokens" in options
        array = pa.array(documents, pa.list_(pa.int64())) if tokens else text_array(documents, pa.large_binary())
        gpu, _ = backends(threshold=1.0, bands=1, rows=1, **json.loads(options))
        [signed] = gpu.sign([ToSign(array, lanes=True, shingles=True)])
        assert signed.lanes is not None
        assert signed.shingles is not None
        all_hashes = signed.shingles.hashes
        for row, (case, lanes) in enumerate(members):
            hashes = all_hashes[signed.shingles.offsets[row] : signed.shingles.offsets[row + 1]]
            assert signed.lanes[row].tolist() == lanes
            assert [f"{value:016x}" for value in signed.content[row].tolist()] == case["content"]
            assert signed.unit_count[row] == len(case["units"])
            assert sorted(set(hashes.tolist())) == sorted(set(case["shingle_hashes"]))


def test_golden_decisions() -> None:
    for case in GOLDEN["decisions"][:: scaled(1, 10)]:
        result = gpudedup.deduplicate(golden_table(case["corpus"]), device="cuda", **case["parameters"])
        assert rows_of(result.removed) == [tuple(row) for row in case["removed"]]
        for threshold, removed in case["at"].items():
            assert rows_of(result.at(float(threshold)).removed) == [tuple(row) for row in removed]


@pytest.mark.parametrize("first", range(0, scaled(200, 4), scaled(50, 4)))
def test_random_runs_equal_reference(first: int) -> None:
    for seed in range(first, first + scaled(50, 4)):
        assert_random_run_equals_reference(7919 * seed, device="cuda")


# ---------------------------------------------------------------------------------------------- every kernel, on little


def small_corpus() -> pa.Table:
    """Near-copies; two documents whose sets are compared by the whole device; a bucket longer than the window."""
    rng = random.Random(5)
    long = [f"w{i}" for i in range(17000)]
    longer = [*long[:16900], *(f"x{i}" for i in range(100))]
    texts = [*random_corpus(rng, 60), " ".join(long), " ".join(longer), *(["the same five words here now"] * 8)]
    texts += [f"the same five words here now and {i}" for i in range(8)]
    return pa.table({"text": texts, "split": [rng.choice("ab") for _ in texts]})


@pytest.fixture
def _arrays_apart(own_device: pytest.MonkeyPatch) -> None:
    """Each array is an allocation of its own, so that checkers of memory see its borders, and what was not written."""
    if gpu_target.REHEARSAL:
        return  # it always is
    import cupy

    class Unpooled:
        def malloc(self, size: int) -> Any:
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)

        def free_bytes(self) -> int:
            return 0

    own_device.setattr(cupy.cuda, "MemoryPool", Unpooled)


@pytest.mark.usefixtures("_arrays_apart")
def test_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels and loops run, and the answers are the CPU's. Small enough to run under compute-sanitizer."""
    target = gpu_target.open_target()
    timed = gpu_target.Timed(target)
    table, seen = small_corpus(), set[str]()
    options = {"threshold": 0.5, "num_perm": 32, "bands": 16, "rows": 2, "shingle": "word:2", "bucket_window": 2}
    tokens = pa.table({"text": pa.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [], None], pa.list_(pa.int64()))})
    runs: list[tuple[pa.Table, dict[str, Any]]] = [
        *((table, {"verify": verify}) for verify in ("exact", "signature", "none")),
        (table, {"across": "split"}),
        (table.slice(0, 60), {"shingle": "char:3", "fold": "case"}),
        (tokens, {"shingle": "tokens:2"}),
    ]
    for data, more in runs:
        wanted = gpudedup.deduplicate(data, device="cpu", **{**options, **more})
        with monkeypatch.context() as patch:
            patch.setattr(select, "_cuda_backend", lambda params: CudaBackend(params, timed, "as asked"))  # type: ignore[arg-type]
            made = gpudedup.deduplicate(data, device="cuda", **{**options, **more})
        assert rows_of(made.removed) == rows_of(wanted.removed), more
        seen |= timed.take().keys()
    assert wanted.removed.num_rows
    assert program.signatures().keys() - seen == {"intersect_pairs"}  # which serves measuring only
    assert BODIES.keys() <= seen


@pytest.mark.parametrize("across", [False, True])
def test_bands_and_documents_of_earlier_runs(across: bool) -> None:
    """From signatures in columns to removals, a part of the documents fixed: each step as on the CPU."""
    count, num_perm = scaled(300_000, 200), 20
    draw = np.random.default_rng(count)
    families = draw.integers(0, 2**32, (count // 8, num_perm), dtype=np.uint32)
    own = draw.integers(0, 2**32, (count, num_perm), dtype=np.uint32)
    lanes = np.where(draw.random((count, num_perm)) < 0.85, families[draw.integers(0, count // 8, count)], own)
    batches = [[part[:, low : low + 8].copy() for low in (0, 8, 16)] for part in np.array_split(lanes, 3)]
    documents = draw.permutation(count).astype(np.uint32)
    values = draw.integers(0, 3, count).astype(np.int32) if across else None
    leader = None
    if across:  # some contents in several values
        leader = np.arange(count, dtype=np.uint32)
        leader[count // 2 :: 7] = draw.integers(0, count // 2, len(leader[count // 2 :: 7]))
        leader = leader[leader]
    answers = []
    for backend in backends(verify="signature", num_perm=num_perm, bands=4, rows=5, bucket_window=3):
        keys = [backend.band_keys(batches, band, None) for band in range(4)]
        bands = [backend.band(band, documents, memory_bytes=1 << 26) for band in keys]
        buckets = backend.buckets(bands, count, None, values, fixed=count // 3, memory_bytes=1 << 28, directory="/")
        everyone = np.arange(count, dtype=np.uint32)
        gathered = backend.gather_lanes(iter(batches), everyone, memory_bytes=1 << 28, directory="/")
        decision = backend.verify(
            buckets, threshold_ppm=700_000, sets=None, lanes=gathered, documents=documents, leader=leader, prior=None
        )
        counts = np.array([buckets.bounded_buckets, buckets.bounded_documents, buckets.longest, decision.compared])
        answers.append([*(part for band in bands for part in (band.members, band.lengths)), buckets.shared(), counts])
        answers[-1] += decision.arrays()
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (answers[0][-3] != NO_KEEPER).sum() > count // 10


def test_intersections() -> None:
    device = gpu_target.open_target().device
    stream, rng = device.stream(), np.random.default_rng(3)
    sets = [np.unique(rng.integers(0, 300, size).astype(np.uint32)) for size in (0, 1, 31, 32, 33, 90, 200, 700)]
    sets[5] = np.array([0, 7, 2**32 - 1], np.uint32)

    def sent(values: Any) -> Any:
        array = device.alloc(len(values), values.dtype)
        device.upload(values, array, stream)
        stream.synchronize()
        return array

    values = sent(np.concatenate(sets))
    ends = np.cumsum([0, *map(len, sets)])
    address = sent(np.uint64(values.address) + np.uint64(4) * ends[:-1].astype(np.uint64))
    sizes = sent(np.diff(ends).astype(np.uint32))
    left, right = (side.astype(np.uint32).reshape(-1) for side in np.meshgrid(range(len(sets)), range(len(sets))))
    common, found = device.alloc(len(left), np.uint32), np.empty(len(left), np.uint32)
    on_it = [sent(left), sent(right)]
    args = [*on_it, np.uint32(len(left)), address, sizes, common]
    device.launch("intersect_pairs", -(-len(left) // 8), 256, args, stream)
    device.download(common, found, stream)
    stream.synchronize()
    assert found.tolist() == [len(np.intersect1d(sets[a], sets[b])) for a, b in zip(left, right, strict=True)]


# -------------------------------------------------------------------------------------- many, tiny, empty, huge, ill


def mixed_documents(count: int) -> list[str]:
    rng = random.Random(9)
    base = [text for text in random_corpus(rng, 400) if text] + [str(t) for t in EDGES["no blanks"] + EDGES["hangul"]]
    base += [" ".join(rng.choice(WORDS) + str(rng.randrange(200)) for _ in range(300)) for _ in range(20)]
    return [f"{rng.choice(base)} {rng.choice(WORDS)}{rng.randrange(50)}" for _ in range(count)]


def test_mixed_documents() -> None:
    texts = mixed_documents(scaled(100_000, 150))
    array = text_array(texts, pa.large_binary())  # type: ignore[arg-type]
    assert_signs_like_the_cpu([array.slice(0, len(texts) // 2), array.slice(len(texts) // 2)])
    result = assert_runs_like_the_cpu(texts, threshold=0.7)
    assert 0 < result.summary().near < len(texts)
    removed = rows_of(result.at(0.9).removed)
    assert removed == rows_of(gpudedup.deduplicate(texts, threshold=0.7, device="cpu").at(0.9).removed)


@pytest.mark.parametrize("shingle", ["word:5", "char:4"])
def test_tiny_documents(shingle: str) -> None:
    count = scaled(1_000_000, 2000)
    numbers = np.arange(count)
    texts = pa.array([f"w{a} x{b}" if a % 5 else "é" for a, b in zip(numbers % 9973, numbers % 31, strict=True)])
    assert_signs_like_the_cpu([texts], shingle=shingle, num_perm=64)


def test_empty_documents() -> None:
    count = scaled(1_000_000, 3000)
    nothing = pa.array(["", None, " ", "\u200b"] * (count // 4), pa.string())
    assert_signs_like_the_cpu([nothing, pa.array([None] * 5, pa.string()), nothing.slice(0, 0)])
    among = pa.concat_arrays([pa.array(["first of all the words"]), nothing, pa.array(["last of all the words"])])
    assert_signs_like_the_cpu([among], shingle="word:2")


def test_a_huge_document() -> None:
    size = scaled(300_000_000, 100_000)
    rng = np.random.default_rng(4)
    text = rng.integers(ord("a"), ord("z") + 1, size, np.uint8)
    text[rng.integers(0, size, size // 6)] = ord(" ")
    array = pa.array([b"a small one", text.tobytes(), b"another small one"], pa.large_binary())
    assert_signs_like_the_cpu([array])


def test_bytes_that_are_no_text() -> None:
    rng = random.Random(6)
    texts: list[Any] = [rng.randbytes(rng.randrange(300)) for _ in range(scaled(20_000, 60))]
    texts += [bytes(rng.choices([0xC3, 0xE4, 0xB8, 0xF0, 0x9F, 0x80, 0xED, 0xA0, 0x61, 0x20], k=90)) for _ in texts]
    edges = [text for name, group in EDGES.items() if name != "longer than a tile" for text in group]
    batches = [text_array(part, pa.large_binary()) for part in (texts, edges, EDGES["longer than a tile"])]
    for fold in ("full", "none"):
        assert_signs_like_the_cpu(batches[: scaled(3, 2)], fold=fold, shingle="word:3")


def test_tokens() -> None:
    rng = np.random.default_rng(8)
    lengths = rng.integers(0, 400, scaled(20_000, 60))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = rng.integers(-(2**63), 2**63, int(offsets[-1]))
    assert_signs_like_the_cpu([pa.LargeListArray.from_arrays(offsets, values)], shingle="tokens:5")


def test_streams() -> None:
    texts = pa.table({"text": mixed_documents(scaled(5000, 120))})
    stream = gpudedup.Deduplicator(threshold=0.7, device="cuda")
    masks = [stream.filter(texts.slice(first, 50)).to_pylist() for first in range(0, len(texts), 50)]
    expected = gpudedup.deduplicate(texts, threshold=0.7, device="cpu").keep_mask.to_pylist()
    assert [keep for mask in masks for keep in mask] == expected


# ------------------------------------------------------------------------------------------------- when things go wrong


@pytest.fixture
def limit(own_device: pytest.MonkeyPatch) -> Callable[[int], None]:
    """limit(bytes): devices have no more memory than this from here on."""

    def on_emulated(size: int) -> None:
        import emulated_device

        whole = emulated_device.EmulatedDevice.__init__

        def made(self: Any, **options: Any) -> None:
            whole(self, **{**options, "memory_bytes": size})

        own_device.setattr(emulated_device.EmulatedDevice, "__init__", made)

    def on_gpu(size: int) -> None:
        import cupy

        pool_class = cupy.cuda.MemoryPool

        def pool() -> Any:
            limited = pool_class()
            limited.set_limit(size=size)
            return limited

        own_device.setattr(cupy.cuda, "MemoryPool", pool)

    return on_emulated if gpu_target.REHEARSAL else on_gpu


@pytest.mark.parametrize("share", [8, 40, 200])
@pytest.mark.parametrize("verify", ["exact", "signature"])
def test_out_of_device_memory(limit: Callable[[int], None], verify: str, share: int) -> None:
    """What has no room goes through in smaller pieces, or on the CPU: with the same answer."""
    texts = mixed_documents(scaled(30_000, 100))
    options: dict[str, Any] = {"threshold": 0.6, "num_perm": 64, "verify": verify}
    expected = gpudedup.deduplicate(texts, device="cpu", **options)
    limit(share * scaled(1 << 20, 1 << 14) + (1 << 20))
    assert rows_of(gpudedup.deduplicate(texts, device="cuda", **options).removed) == rows_of(expected.removed)


def test_a_gpu_that_is_not_there() -> None:
    texts = ["one two three four five six", "one two three four five SIX"]
    assert gpudedup.deduplicate(texts, device="cuda:0").summary().removed == 1
    with pytest.raises(DeviceError, match=r"cuda:99 was asked for, but visible (is|are) only cuda:0"):
        gpudedup.deduplicate(texts, device="cuda:99")


# ----------------------------------------------------------------------------------------------------- other processes

PREPARE = f"import sys; sys.path.append({str(BENCHMARKS)!r})\n" + (
    "import gpu_target; gpu_target.rehearse()\n" if gpu_target.REHEARSAL else ""
)
JOB = """
import gpudedup, pyarrow.parquet as pq
result = gpudedup.deduplicate(pq.read_table(sys.argv[1]), device="cuda", threshold=0.7)
assert result.summary().device.startswith("cuda"), result.summary().device
pq.write_table(result.removed, sys.argv[2])
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A Parquet file, and what the CPU removes of it."""
    path = tmp_path_factory.mktemp("job") / "texts.parquet"
    pq.write_table(pa.table({"text": mixed_documents(scaled(20_000, 100))}), path)
    removed = gpudedup.deduplicate(pq.read_table(path), device="cpu", threshold=0.7).removed
    assert removed.num_rows
    return path, removed


def start(code: str, *arguments: object, folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE + textwrap.dedent(code), *map(str, arguments)]
    own = {**os.environ, **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=own, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    return said


def test_two_processes_on_one_gpu(job: tuple[Path, pa.Table], tmp_path: Path) -> None:
    path, removed = job
    both = [start(JOB, path, tmp_path / f"{i}.parquet", folder=tmp_path) for i in range(2)]
    for i, process in enumerate(both):
        finish(process)
        assert pq.read_table(tmp_path / f"{i}.parquet").equals(removed)


def test_a_damaged_cache_of_kernels(job: tuple[Path, pa.Table], tmp_path: Path) -> None:
    path, removed = job
    cache = tmp_path / "cache"
    cache.mkdir()
    finish(start(JOB, path, tmp_path / "first.parquet", folder=tmp_path, CUPY_CACHE_DIR=str(cache)))
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert files or gpu_target.REHEARSAL
    for number, file in enumerate(files):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if number % 2 else os.urandom(len(content)))
    finish(start(JOB, path, tmp_path / "second.parquet", folder=tmp_path, CUPY_CACHE_DIR=str(cache)))
    assert pq.read_table(tmp_path / "second.parquet").equals(removed)


def test_a_home_that_cannot_be_written(job: tuple[Path, pa.Table], tmp_path: Path) -> None:
    path, removed = job
    finish(start(JOB, path, tmp_path / "out.parquet", folder=tmp_path, HOME="/proc/none", CUPY_CACHE_DIR=""))
    assert pq.read_table(tmp_path / "out.parquet").equals(removed)


@pytest.mark.skipif(gpu_target.REHEARSAL, reason="the emulated device has no context that a fork could break")
def test_use_after_a_fork(tmp_path: Path) -> None:
    said = finish(
        start(
            """
            import os, gpudedup
            texts = ["one two three four five six", "one two three four five SIX"]
            gpudedup.deduplicate(texts, device="cuda")
            child = os.fork()
            if child == 0:
                try:
                    gpudedup.deduplicate(texts, device="cuda")
                    print("no error", flush=True)
                except gpudedup.DeviceError as error:
                    print(f"said: {error}", flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            gpudedup.deduplicate(texts, device="cuda")
            """,
            folder=tmp_path,
        )
    )
    assert "said:" in said
    assert "spawn" in said


def test_the_command_line(job: tuple[Path, pa.Table], tmp_path: Path) -> None:
    path, _ = job
    cli = "from gpudedup.cli import main; main()"
    tables = []
    for device in ("cuda", "cpu"):
        out = tmp_path / device
        finish(start(cli, "run", path, "-o", out, "--device", device, "--threshold", "0.7", folder=tmp_path))
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["device"].startswith(device)
        tables.append(gpudedup.Run.open(out).removed)
    assert tables[0].num_rows
    assert tables[0].equals(tables[1])
