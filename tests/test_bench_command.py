"""`gpudedup bench` as a user calls it; comparisons, summaries; and that its checks find what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import gpudedup
from gpudedup.backends.cpu import CpuBackend
from gpudedup.bench import command as command_module
from gpudedup.bench.compare import compare
from gpudedup.bench.devices import Device, present_devices
from gpudedup.bench.inputs import Inputs, made
from gpudedup.bench.measure import Measured
from gpudedup.bench.record import Host, Record, Spread, Text, new_record, read_records, write_records
from gpudedup.bench.suites import Order, end_to_end, match, scaling, signatures, transfers
from gpudedup.bench.suites.end_to_end import check_planted
from gpudedup.bench.summary import Table, markdown, sections, write_pictures
from gpudedup.errors import BenchmarkError, DeviceError, ParameterError
from gpudedup.params import make_params

MAIN = [sys.executable, "-c", "from gpudedup.cli import main; main()", "bench"]
one_bench = pytest.mark.xdist_group("one bench")  # that of the fixture `quick`
SUITES = ("transfers", "signatures", "short-texts", "match", "end-to-end", "scaling", "memory")


def called(folder: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with ``folder`` for temporary files."""
    environment = {**os.environ, "TMPDIR": str(folder), "GPUDEDUP_DISABLE_GPU": "1"}
    command = [*MAIN, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record], str]:
    """(--out, its records, stdout) of a bench over next to nothing."""
    tmp, out = tmp_path_factory.mktemp("tmp"), tmp_path_factory.mktemp("out") / "made" / "here"
    suites = [part for name in SUITES for part in ("--suite", name)]
    done = called(tmp, "--quick", "--size", "1MB", "--repeat", 2, "--json", "--out", out, *suites)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp) == []
    return out, read_records(out / "results.jsonl"), done.stdout


@one_bench
def test_every_suite_measures_and_says_how(quick: tuple[Path, list[Record], str]) -> None:
    _, records, _ = quick
    assert list(dict.fromkeys(record.suite for record in records)) == list(SUITES)
    for record in records:
        assert record.cannot is None
        assert record.seconds is not None
        assert record.clock
        assert record.checked
        assert record.repeats in (1, 2)
        assert record.peak_bytes is not None
        assert record.cpu_seconds is not None
        assert record.host.cores >= 1
    tiers = {record.device for record in records if record.suite == "signatures"}
    assert tiers == {str(device) for device in present_devices(["cpu"])[0]}


@one_bench
def test_json_is_what_is_written(quick: tuple[Path, list[Record], str]) -> None:
    out, records, stdout = quick
    assert stdout == (out / "results.jsonl").read_text()
    assert [json.loads(line)["case"] for line in stdout.splitlines()] == [record.case for record in records]


@one_bench
def test_figures_agree(quick: tuple[Path, list[Record], str]) -> None:
    """Rates are bytes over medians, bytes are those of the corpus, and stages are within the whole."""
    for record in quick[1]:
        assert record.seconds is not None
        if "text_megabytes_per_second" in record.figures and record.corpus:
            rate = record.corpus.text_bytes / record.seconds.median / 1e6
            assert record.figures["text_megabytes_per_second"] == pytest.approx(rate)
        if record.suite == "end-to-end":
            stages = sum(record.figures[f"{name}_seconds"] for name in ("sign", "match", "verify", "decide", "apply"))
            assert stages < record.seconds.most
            assert record.corpus is not None
            assert record.corpus.text_bytes == record.figures["text_bytes"]


@one_bench
def test_a_summary_is_written(quick: tuple[Path, list[Record], str]) -> None:
    page = (quick[0] / "summary.md").read_text()
    for name in SUITES:
        assert f"## {name}" in page
    assert "inside the clock" in page
    assert "checked" in page


@one_bench
def test_a_result_compares_with_itself(quick: tuple[Path, list[Record], str], tmp_path: Path) -> None:
    before = quick[0] / "results.jsonl"
    done = called(tmp_path, "--quick", "--size", "1MB", "--repeat", 2, "--suite", "match", "--compare", before)
    assert done.returncode == 0, done.stderr
    assert "now / before" in done.stdout
    assert "1,000 signatures" in done.stdout
    assert done.stderr == ""  # progress is for terminals


@pytest.mark.parametrize("as_json", [False, True])
def test_progress_is_for_the_terminal_and_results_are_not(as_json: bool, tmp_path: Path) -> None:
    """stderr is a terminal, stdout a file: each gets its own."""
    terminal, side = os.openpty()
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "TERM": "xterm", "GPUDEDUP_DISABLE_GPU": "1"}
    command = [*MAIN, "--suite", "match", "--size", "1MB", "--repeat", "1", *(["--json"] if as_json else [])]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the process is
        while part := os.read(terminal, 4096):
            seen += part
    os.close(terminal)
    out = process.communicate()[0].decode()
    assert process.returncode == 0
    assert b"match: 1,000 documents" in seen
    assert b"inside the clock" not in seen
    assert "\x1b" not in out
    assert ('"suite": "match"' if as_json else "inside the clock") in out


def test_files_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    texts = [f"row {number} says " + " ".join(f"w{number}x{i}" for i in range(80)) for number in range(50)] * 2
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    given = ("--quick", "--repeat", 1, "--json", "--device", "cpu", "--suite", "signatures", "--suite", "end-to-end")
    done = called(tmp_path / "tmp", *given, "--input", tmp_path / "a.jsonl", "--text-column", "body")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    size = sum(map(len, texts))
    assert {(one["corpus"]["name"], one["corpus"]["documents"], one["corpus"]["text_bytes"]) for one in found} == {
        ("input", 100, size)
    }
    assert [one["figures"]["removed"] for one in found if one["suite"] == "end-to-end"] == [50, 50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "speed"], "there is no suite 'speed'"),
        (["--mix", "latin"], "there is no mix 'latin'"),
        (["--size", "much"], "--size must be bytes or text"),
        (["--size", "10"], "--size must be at least 1 MB"),
        (["--device", "tpu"], "--device must be"),
        (["--peers", "/nowhere"], "--peers /nowhere is not a directory"),
    ],
)
def test_mistakes_are_one_line(command: Any, arguments: list[str], message: str) -> None:
    done = command("bench", *arguments, code=2)
    assert message in done.err
    assert done.err.count("\n") == 1


def test_wrong_files_are_one_line(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    pq.write_table(pa.table({"text": pa.array([None, ""], pa.string())}), tmp_path / "empty.parquet")
    for arguments, code, message in (
        (["--compare", tmp_path / "none.jsonl"], 3, "cannot read"),
        (["--compare", tmp_path / "file"], 3, "is no result of gpudedup bench"),
        (["--out", tmp_path / "file" / "below"], 1, "cannot be made"),
        (["--input", tmp_path / "none.parquet", "--suite", "match"], 3, "none.parquet"),  # which takes no files
        (["--input", tmp_path / "empty.parquet", "--text-column", "body"], 3, "there is no column 'body'"),
        (["--input", tmp_path / "empty.parquet", "--suite", "signatures"], 3, "there is no text in"),
        (["--device", "cuda:7", "--suite", "match"], 5, "cuda:7 is not available"),
    ):
        done = command("bench", *arguments, code=code)
        assert message in done.err
        assert done.err.count("\n") == 1


def test_no_room_is_one_line(tmp_path: Path) -> None:
    done = called(tmp_path, "--suite", "transfers", "--size", "9000TB")
    assert done.returncode == 1
    assert "are free in" in done.stderr
    assert done.stderr.count("\n") == 1

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = called(tmp_path, "--suite", "transfers", "--size", "4MB", preexec_fn=little)
    assert done.returncode == 1
    assert "cannot make a corpus" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_bench_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*MAIN, "--suite", "transfers", "--size", "300MB"], env=environment, stderr=subprocess.PIPE, text=True
    )
    family = wait_for(lambda: descendants(process.pid))
    wait_for(lambda: list(tmp_path.rglob("part-*.parquet")))
    family |= descendants(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == f"gpudedup: stopped by {number.name}; what was unfinished has been removed\n"
    assert os.listdir(tmp_path) == []
    assert not [pid for pid in family if alive(pid)]


def test_a_stopped_bench_keeps_what_it_measured_and_spares_what_is_there(tmp_path: Path) -> None:
    tmp, out = tmp_path / "tmp", tmp_path / "out"
    for folder in (tmp, out):
        folder.mkdir()
    (out / "results.jsonl").write_text("an earlier result")
    command = [*MAIN, "--suite", "transfers", "--size", "300MB", "--repeat", "1", "--out", str(out)]
    with subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(tmp)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        wait_for((out / "results.unfinished.jsonl").exists)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=30)
    measured = read_records(out / "results.unfinished.jsonl")
    assert measured
    assert all(record.case in shown for record in measured)
    assert (out / "results.jsonl").read_text() == "an earlier result"
    assert not (out / "summary.md").exists()


def wait_for(look: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.05)
    raise TimeoutError


def descendants(pid: int) -> set[int]:
    found, queue = set(), [pid]
    for parent in queue:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except OSError:
                continue
            queue += children
            found.update(children)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -------------------------------------------------------------------------------------------------------------- devices


def test_devices_are_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUDEDUP_DISABLE_GPU", "1")
    devices, reason = present_devices([])
    assert devices[-1] == Device("cpu", "baseline")
    assert reason is not None
    assert "GPUDEDUP_DISABLE_GPU" in reason
    monkeypatch.setenv("GPUDEDUP_CPU", "baseline")
    assert present_devices(["cpu"]) == ((Device("cpu", "baseline"),), None)
    with pytest.raises(DeviceError, match="cuda:0 is not available"):
        present_devices(["cuda"])
    with pytest.raises(ParameterError, match="--device must be"):
        present_devices(["cpu", "gpu"])


def test_a_gpu_takes_the_same_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing and pinned copies, on the emulated device."""
    from emulated_device import EmulatedDevice

    from gpudedup.backends.cuda import cupy_device
    from gpudedup.backends.cuda.backend import CudaBackend

    texts = [" ".join(f"w{number}x{i}" for i in range(40)) for number in range(20)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    given = {"files": [str(tmp_path / "a.parquet")], "text_column": "text", "most_bytes": 10_000}
    on_cpu = signatures.signing(device="cpu", **given)
    monkeypatch.setattr(signatures, "select_backend", lambda params: CudaBackend(params, EmulatedDevice(), "as asked"))
    on_gpu = signatures.signing(device="cuda:0", **given)
    result = on_gpu.run()
    assert on_gpu.fingerprint(result) == on_cpu.fingerprint(on_cpu.run())
    assert on_gpu.figures(result)["documents"] == 20

    monkeypatch.setattr(cupy_device, "CupyDevice", lambda index: EmulatedDevice())
    for way in ("upload", "download"):
        work = transfers.pinned(10_000, "cuda:0", way)
        work.check(work.run())
        assert work.fingerprint(work.run()) == transfers._hash(transfers._noise(10_000))


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpudedup.backends.cuda import detect

    def found(index: int = 0) -> detect.Detection:
        gpus = tuple(detect.Gpu(index=n, name=f"GPU {n}", capability="9.0", memory_bytes=1) for n in range(2))
        return detect.Detection(reason="no room" if index == 1 else None, gpus=gpus)

    monkeypatch.setattr(detect, "detect", found)
    devices, reason = present_devices([])
    assert (str(devices[0]), devices[1].device, reason) == ("cuda:0 (GPU 0)", "cpu", None)
    assert [str(device) for device in present_devices(["cuda"])[0]] == ["cuda:0 (GPU 0)"]
    with pytest.raises(DeviceError, match="cuda:1 is not available: there are cuda:0"):
        present_devices(["cuda:1"])


# --------------------------------------------------------------------------------------------------------------- checks


def order_in(folder: Path, **options: Any) -> Order:
    own: dict[str, Any] = {"devices": present_devices(["cpu"])[0], "text_bytes": 1_000_000, "repeat": 1, "quick": True}
    return Order(folder, **{**own, **options})


def test_wrong_signatures_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: str, arguments: Any, *, environment: dict[str, str], **options: Any) -> Measured:
        wrong = environment["GPUDEDUP_CPU"] != "baseline"
        counts = {"documents": 1.0, "text_bytes": 1.0, "units": 1.0}
        return Measured(1, Spread.of([1.0]), 1.0, 1, counts, "wrong" if wrong else "right")

    monkeypatch.setattr(signatures, "measure", measured)
    text = Inputs("own", ("a",), "text", 1, 1)
    order = order_in(tmp_path, devices=(Device("cpu", "avx2"), Device("cpu", "baseline")))
    with pytest.raises(BenchmarkError, match=r"cpu \(avx2\) are not those of the CPU's baseline tier"):
        list(signatures.signed("signatures", order, text, {}, "clock"))
    only = order_in(tmp_path, devices=(Device("cpu", "avx2"),))
    with pytest.raises(BenchmarkError, match="not those of"):
        list(signatures.signed("signatures", only, text, {}, "clock"))


def test_one_wrong_lane_is_another_fingerprint() -> None:
    backend = CpuBackend(make_params({"workers": 1}), "")
    (batch,) = backend.sign([signatures.ToSign(pa.array(["one two three four five six"]), lanes=True)])
    before = signatures.fingerprint([batch])
    batch.lanes[0, 100] ^= 1
    assert signatures.fingerprint([batch]) != before


def test_wrong_decisions_are_found(tmp_path: Path) -> None:
    documents, options = 20_000, {"verify": "signature"}
    match.signed_run(str(tmp_path / "run"), documents, 1, options).run()
    work = match.decided(str(tmp_path / "run"), documents, 1, {**options, "device": "cpu"})
    work.check(work.run())
    file = tmp_path / "run" / "decide" / "removed.arrow"
    table = pa.ipc.open_file(pa.BufferReader(file.read_bytes())).read_all()
    generated = match.Generated(documents)
    cluster = np.concatenate([generated.block(number).cluster for number in range(generated.blocks)])
    stranger, own = int(np.flatnonzero(cluster < 0)[0]), table["document"].to_pylist()
    faults = (
        ("document", lambda values: [stranger, *values[1:]], "is like no other"),
        ("keeper", lambda values: [own[-1], *values[1:]], "is like no other|by the definition"),
        ("similarity", lambda values: [value / 2 for value in values], "by the definition"),
    )
    for name, change, message in faults:
        column = table.schema.get_field_index(name)
        values = pa.array(change(table[name].to_pylist()), table[name].type)
        changed = table.set_column(column, table.schema.field(name), values)
        with pa.ipc.new_file(str(file), table.schema) as out:
            out.write_table(changed)
        with pytest.raises(BenchmarkError, match=message):
            match.check_decision(tmp_path / "run", generated, make_params(options))
    with pa.ipc.new_file(str(file), table.schema) as out:
        out.write_table(table.slice(0, 0))
    with pytest.raises(BenchmarkError, match="by the definition"):
        match.check_decision(tmp_path / "run", generated, make_params(options))


@pytest.mark.parametrize("output", ["kept", "mask"])
def test_wrong_outputs_are_found(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either kind: what a job left is exchanged for the other documents."""
    whole = end_to_end.run_jobs

    def damaged(text: Inputs, work: Path, *arguments: Any, **options: Any) -> Any:
        done = whole(text, work, *arguments, **options)
        if options["output"] == output:
            for file in work.glob("*/kept/*" if output == "kept" else "*/keep_mask/*"):
                table = pq.read_table(file)
                pq.write_table(table.slice(1) if output == "kept" else inverted(table), file)
        return done

    def inverted(mask: pa.Table) -> pa.Table:
        return mask.set_column(0, mask.schema.field(0), pc.invert(mask.column(0)))

    monkeypatch.setattr(end_to_end, "run_jobs", damaged)
    with pytest.raises(BenchmarkError, match="audit"):
        list(end_to_end.suite(order_in(tmp_path)))


def test_removals_of_a_made_corpus_are_held_to_what_was_planted(tmp_path: Path) -> None:
    text = made(order_in(tmp_path))
    removed = gpudedup.run(list(text.files), tmp_path / "run", output="none").removed
    check_planted(removed, text)
    exact = removed["reason"].to_pylist().index("exact")
    with pytest.raises(BenchmarkError, match="exact copy"):
        check_planted(removed.filter(pa.array(np.arange(len(removed)) != exact)).slice(0, 0), text)
    rows = removed["keeper_row"].to_pylist()
    stray = removed.set_column(
        removed.schema.get_field_index("keeper_row"),
        "keeper_row",
        pa.array([1 - min(row, 1) for row in rows], pa.int64()),
    )
    with pytest.raises(BenchmarkError, match="was not made from"):
        check_planted(stray, text)


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_slope_is_that_of_the_growth(power: float, tmp_path: Path) -> None:
    def sizes(least: int, constant: float = 0.0) -> list[tuple[Inputs, Measured]]:
        return [
            (
                Inputs("mixed", (), "text", 1, least * step),
                Measured(1, Spread.of([1.0]), constant + 2e-8 * (least * step) ** power, 1, {}, ""),
            )
            for step in scaling.STEPS
        ]

    order, device = order_in(tmp_path), Device("cpu", "avx2")
    record = scaling._slope(order, sizes(20_000_000), device)
    assert record.figures["slope"] == pytest.approx(power)
    assert record.figures["upper_slope"] == pytest.approx(power)
    assert record.curves["text_bytes"] == [2e7 * step for step in (1, 2, 4, 8, 16, 32, 64)]
    record = scaling._slope(order, sizes(20_000_000, constant=1.0), device)
    assert record.figures["slope"] < record.figures["upper_slope"] < power
    small = scaling._slope(order, sizes(100_000), device)
    assert small.cannot is not None
    assert "use --size 960MB" in small.cannot


def test_text_of_a_corpus_is_counted(tmp_path: Path) -> None:
    text = made(order_in(tmp_path))
    tables = [pq.read_table(file)["text"].to_pylist() for file in text.files]
    assert text.documents == sum(map(len, tables))
    assert text.text_bytes == sum(len(one.encode()) for table in tables for one in table)
    assert made(order_in(tmp_path)) == text


# ---------------------------------------------------------------------------------------------------------- comparisons


def timed(*seconds: float, **fields: Any) -> Record:
    own: dict[str, Any] = {"suite": "signatures", "case": "english", "device": "cpu (avx2)", "seed": 1, "load": 0.1}
    spread = Spread.of(seconds)
    return new_record(**{**own, "seconds": spread, "repeats": len(seconds), **fields})


@pytest.mark.parametrize(
    ("now", "before", "verdict", "ratio"),
    [
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), "faster", 1.1 / 2.1),
        ((2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "slower", 2.1 / 1.1),
        ((1.0, 1.5, 2.0), (1.2, 1.6, 2.1), "within noise", 1.5 / 1.6),
        ((1.0, 1.0, 1.0), (1.09, 1.09, 1.09), "within noise", 1 / 1.09),  # below what processes differ by
        ((1.0,), (2.0,), "one repeat tells nothing", 0.5),
        ((0.0, 0.0), (0.0, 0.0), "within noise", 1.0),
    ],
)
def test_verdicts(now: tuple[float, ...], before: tuple[float, ...], verdict: str, ratio: float) -> None:
    ((one,), left_out) = compare([timed(*now)], [timed(*before)])
    assert (one.verdict, left_out) == (verdict, [])
    assert one.ratio == pytest.approx(ratio)
    if max(before) > 0:
        assert one.least == pytest.approx(min(now) / max(before))
        assert one.most == pytest.approx(max(now) / min(before))


def test_no_verdict_of_a_busy_machine() -> None:
    busy = 3.0 * new_record("signatures", "a", device="cpu", seed=1, figures={"x": 1.0}).host.cores
    for now, before in ((0.1, busy), (busy, 0.1)):
        ((one,), _) = compare([timed(2, 2, load=now, cpu_seconds=3.0)], [timed(1, 1, load=before, cpu_seconds=2.0)])
        assert (one.verdict, one.cpu_ratio) == ("the machine was busy", 1.5)


@pytest.mark.parametrize(("now", "verdict"), [(0.995, "same F1"), (0.1, "worse F1"), (0.999, "better F1")])
def test_quality_is_compared(now: float, verdict: str) -> None:
    def judged(f1: float) -> Record:
        return new_record("quality", "all sets", device="cpu", seed=1, figures={"f1_share": f1})

    ((one,), left_out) = compare([judged(now)], [judged(0.995)])
    assert (one.verdict, left_out) == (verdict, [])


def test_programs_are_told_apart() -> None:
    found, _ = compare(*([timed(1.0, suite="peers", program=name) for name in ("gpudedup", "b")] for _ in range(2)))
    assert [one.case for one in found] == ["english", "b: english"]


def test_only_like_is_compared_with_like() -> None:
    text, other = (Text(name="mixed", documents=1, text_bytes=size) for size in (10, 11))
    before = [timed(1.0, corpus=text), timed(1.0, case="b", seed=1), timed(1.0, case="gone")]
    now = [timed(1.0, corpus=other), timed(1.0, case="b", seed=2), timed(1.0, case="new")]
    found, left_out = compare(now, before)
    assert found == []
    assert len(left_out) == 4
    assert sum("other text, parameters or seed" in line for line in left_out) == 2


def test_other_circumstances_are_said() -> None:
    host = Host(system="", cpu="another", cores=1, memory_bytes=1, gpus=(), python="3", pyarrow="1", numpy="1")
    ((one,), _) = compare([timed(1.0)], [timed(1.0, host=host, clock="more")])
    assert one.differs == ("machine", "Python or libraries", "what is inside the clock")


# ------------------------------------------------------------------------------------------------------------ summaries


def test_hostile_results_are_harmless(tmp_path: Path, command: Any) -> None:
    """Whatever stands in a file of results reaches neither a terminal nor Markdown as a command."""
    hostile = "\x1b[31m|[x](y)<img src=z>\u202e`\n# head"
    record = timed(1.0, case=hostile, clock=hostile, checked=hostile, suite=hostile)
    page = markdown([record])
    assert "<img" not in page.replace("\\<", "")
    assert "\n# head" not in page
    assert "](y)" not in page.replace("\\]", "")
    write_records(tmp_path / "a.jsonl", [record])
    done = command("bench", "--suite", "match", "--size", "1MB", "--repeat", 1, "--compare", tmp_path / "a.jsonl")
    assert "\x1b[31m" not in done.out
    assert "\u202e" not in done.out


def test_no_digit_is_lost_in_a_narrow_terminal() -> None:
    cells = ("a case with a name that is long", "cpu (avx512)", "0.1234", "123,456 to 234,567", "1.0000")
    shown = Console(width=40, file=io.StringIO())
    command_module._show_table(shown, Table(("case", "device", "s", "least to most", "F1"), [cells]))
    assert isinstance(shown.file, io.StringIO)
    for number in cells[2:]:
        assert number in shown.file.getvalue()


def test_what_could_not_be_measured_stands_in_the_table() -> None:
    (one,) = sections([timed(1.0), new_record("signatures", "b", device="cuda:0", seed=1, cannot="no such GPU")])
    assert "not measured: b, cuda:0: no such GPU" in one.notes
    assert any("cannot" in row for row in one.table.rows)


@one_bench
def test_pictures(quick: tuple[Path, list[Record], str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = {"similarity": [0.5, 0.9], "recall": [0.2, 1.0], "theory": [0.3, 0.99]}
    quality = new_record("quality", "all sets", device="cpu", seed=1, curves=curve, figures={"f1_share": 0.99})
    speed = {"lenient_f1_share": 0.99, "text_megabytes_per_second": 5.0}
    peer = timed(1.0, suite="peers", program="a peer", version="1", figures=speed)
    slope = timed(
        1.0, suite="scaling", curves={"text_bytes": [1.0, 2.0], "cpu_seconds": [1.0, 2.1]}, figures={"slope": 1.0}
    )
    names = write_pictures(tmp_path, [*quick[1], quality, peer, slope])
    assert names == ["stages.svg", "scaling.svg", "quality.svg", "s-curve.svg"]
    for name in names:
        assert (tmp_path / name).read_text().startswith("<?xml")
        assert (tmp_path / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "scaling.svg").read_bytes()
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    write_pictures(tmp_path, [*quick[1], quality, peer, slope])
    assert (tmp_path / "scaling.svg").read_bytes() == first
