"""docs/performance.md from benchmarks/results/*.json and benchmarks/notes.md: python benchmarks/report.py

The newest result of each suite and machine counts. Nothing here measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_report
from gpu_report import PREDICTED, Result, table, verdict

from gpudedup.bench.record import Record, read_records
from gpudedup.bench.summary import about, has_matplotlib, host_line, sections_markdown, write_pictures

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "performance.md"

HEAD = """# Performance

Made by `python benchmarks/report.py` from the files in `benchmarks/results/`; do not edit. `gpudedup bench --out DIR`
makes a `results.jsonl`, kept there as `MACHINE-DATE.jsonl`; `python benchmarks/run.py` makes the figures of growth and
start-up. MB is 10^6 bytes of UTF-8 text. Every result was checked before its time counted. `load` is how many processes
wanted a core in the minute before; where it is above the cores that a case uses, its wall times are too long, and
CPU-seconds tell more.
"""

PICTURES = OUT.parent / "pictures"
"""Of the results of `gpudedup bench`, drawn from the same records."""

WHOLE_JOB_BARS = {"mask": 200, "kept": 100}
"""MB/s of whole jobs on two cores of a current server."""


def newest(results: Iterable[Result], suite: str) -> list[Result]:
    """Of each machine (and mix) the last result of a suite."""
    found: dict[tuple[str, int, str], Result] = {}
    for result in sorted((r for r in results if r["suite"] == suite), key=lambda result: result["date"]):
        mix = result.get("corpus", {}).get("mix", "")
        found[result["machine"]["cpu"], result["machine"]["cores"], mix] = result
    return list(found.values())


def where(result: Result) -> str:
    m = result["machine"]
    loads = [case["load"] for case in result["cases"] if "load" in case]
    load = f"; load {min(loads)} to {max(loads)}" if loads else ""
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gigabytes']} GB; Python {m['python']}, pyarrow {m['pyarrow']}; "
        f"commit {m['commit']}, {result['date']}{load}.\n"
    )


GROWTH = {
    "bench_cluster_of_near_copies": ("10^4 near-copies of one document / 10^4 unrelated ones", 3.0),
    "bench_just_below_threshold": ("10^4 documents of mutual J = 0.75 at t = 0.8 / 10^4 unrelated ones", 30.0),
    "bench_bucket_of_a_million": ("1.3 M documents of mutual J = 0.93 / 0.13 M (linear: 10)", 11.0),
    "bench_bucket_of_a_million_below_threshold": ("1 M documents of mutual J = 0.67 / 0.1 M (linear: 10)", 11.0),
}


def growth(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        if "text_ratio" in case:
            name, bar, base, high = "8 times the text / once", 8.6, case["cpu_seconds"]["1"], case["cpu_seconds"]["8"]
        else:
            name, bar = GROWTH[case["case"]]
            base, high = case["base_cpu_seconds"], case["cpu_seconds"]
        longest = case.get("hard", {}).get("longest_bucket")
        rows.append([name, high, base, longest, case["cpu_ratio"], f"{bar:g}: {verdict(case['cpu_ratio'] <= bar)}"])
    text = "CPU-seconds of a whole job (mask) without start-up; median.\n\n"
    return f"{where(result)}\n{text}" + table("case | CPU s | base CPU s | longest bucket | ratio | bar", rows)


def start(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        if "added_seconds" in case:
            value, bar, what = case["added_seconds"], 0.08, "`import gpudedup` adds to pyarrow and pyarrow.parquet"
        else:
            value, bar, what = case["seconds"], 0.3, "`gpudedup --version`"
        least = case.get("added_seconds_least", case.get("least"))
        rows.append([what, value, least, f"{bar} s: {verdict(value <= bar)}"])
    return where(result) + "\n" + table("what | median s | least s | bar", rows)


def predicted(found: dict[str, Any]) -> str:
    """What `gpu_model.py` made of the kernels' machine code."""
    texts = found["seconds_per_byte"]
    kernels = list(dict.fromkeys(kernel for seconds in texts.values() for kernel in seconds))
    kernels.sort(key="all".__eq__)
    rows = [
        [
            "all, one after another" if kernel == "all" else f"`{kernel}`",
            *(f"{seconds[kernel] * 1e12:.2f}" if kernel in seconds else "" for seconds in texts.values()),
        ]
        for kernel in kernels
    ]
    rows.append(["at most, GB/s", *(f"**{1e-9 / seconds['all']:.0f}**" for seconds in texts.values())])
    text = (
        "**Nothing of this was measured: no GPU was at hand.** Picoseconds a byte of text that each kernel takes at\n"
        "least, by the instructions that its machine code for sm_90 executes on samples, and an H200's rates,\n"
        "without stalls, cache misses and launches (`benchmarks/gpu_model.py`; [gpu.md](gpu.md) says how).\n\n"
    )
    hashes, comparisons = found["seconds_per_hash"], found["seconds_per_comparison"]
    others = [[f"`{kernel}`", "a shingle hash", f"{seconds * 1e12:.1f}"] for kernel, seconds in hashes.items()]
    others += [[f"`{kernel}`", "a comparison", f"{seconds * 1e12:,.0f}"] for kernel, seconds in comparisons.items()]
    pairs = (
        f"So 10^7 pairs of 600-value sets would take at least **{comparisons['intersect_pairs'] * 1e10:.0f} ms**, and\n"
        f"10^8 comparisons of signatures {comparisons['advance_lanes'] * 1e11:.0f} ms.\n"
    )
    parts = [text, table(" | ".join(["kernel", *texts]), rows), "\nThose of verify:\n\n"]
    return "".join([*parts, table("kernel | of | ps", others), "\n", pairs])


SECTIONS = {
    "growth": ("Growth", growth),
    "import": ("Start-up", start),
}


def newest_bench(folder: Path) -> Iterator[list[Record]]:
    """Of each machine the records of its last results.jsonl."""
    found: dict[tuple[str, int], list[Record]] = {}
    for records in sorted(map(read_records, sorted(folder.glob("*.jsonl"))), key=lambda records: records[0].date):
        found[records[0].host.cpu, records[0].host.cores] = records
    yield from found.values()


def bench(records: Sequence[Record]) -> str:
    """A whole result, suite by suite, and how it stands to the bars."""
    loads = [record.load for record in records if record.load is not None]
    load = f"; load {min(loads)} to {max(loads)}" if loads else ""
    rows = [[what, figure, f"{bar}: {verdict(good)}"] for what, figure, bar, good in bars(records)]
    parts = [f"{host_line(records[0].host)}; {about(records[0])}{load}."]
    parts += [table("what | figure | bar", rows)] if rows else []
    return "\n\n".join(parts).rstrip() + "\n\n" + "\n".join(sections_markdown(records, level=3))


def bars(records: Sequence[Record]) -> Iterator[tuple[str, str, str, bool]]:
    """(what, its figure, the bar, whether it holds) of what was measured."""
    for record in records:
        if record.suite == "end-to-end" and (rate := record.figures.get("text_megabytes_per_second")) is not None:
            bar = WHOLE_JOB_BARS[str(record.parameters["output"])]
            yield f"whole job, {record.case}", f"{rate:.0f} MB/s", f"{bar} MB/s", rate >= bar
        for name, what in (("slope", "1x to 64x"), ("upper_slope", "8x to 64x")):
            if name in record.figures:
                slope = record.figures[name]
                yield f"slope of log CPU time over log text, {what}", f"{slope:.3f}", "<= 1.03", slope <= 1.03
        if record.suite == "memory" and record.peak_bytes and record.corpus and record.corpus.text_bytes >= 1.9e9:
            peak = record.peak_bytes / 1e6
            given = f", memory={memory!r}" if (memory := record.parameters.get("memory")) else ""
            what = f"peak memory at {record.corpus.text_bytes / 1e9:.1f} GB of text{given}"
            yield what, f"{peak:.0f} MB", "1 GB", peak <= 1000
    for record in records:
        for over, bar in ("fastest", 10), ("fastest_of_same_shingles", 10), ("rensa", 20):
            if (ratio := record.figures.get(f"speed_over_{over}_ratio")) is not None:
                what = f"{record.case}: speed over {over.replace('_', ' ')}, {record.parameters[over]}"
                yield what, f"{ratio:.1f}", f"{bar}", ratio >= bar
        if (ratio := record.figures.get("memory_over_leanest_ratio")) is not None:
            what = f"{record.case}: memory, of 64 MB given, over the leanest, {record.parameters['leanest']}"
            yield what, f"{ratio:.2f}", "<= 0.25 at 2 GB", ratio <= 0.25
    for record in records:
        if record.suite == "quality" and "all sets" in record.case and "f1_share" in record.figures:
            f1 = record.figures["f1_share"]
            yield f"F1, {record.case}", f"{f1:.4f}", "0.995", f1 >= 0.995
            if "least_f1_share" in record.figures:
                least = record.figures["least_f1_share"]
                yield f"least F1 of a set, {record.case}", f"{least:.4f}", "0.99", least >= 0.99
            names = ("candidates_recall_share", "promised_recall_share")
            if set(names) <= set(record.figures):
                found, promised = (record.figures[name] for name in names)
                yield f"recall of candidates, {record.case}", f"{found:.4f}", f"{promised}", found >= promised


def render(folder: Path, notes: str) -> str:
    results: list[Result] = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [HEAD, *(f"## gpudedup bench\n\n{bench(records)}" for records in newest_bench(folder))]
    parts += [f"![{path.stem}](pictures/{path.name})\n" for path in sorted(PICTURES.glob("*.svg"))]
    for suite, (title, show) in SECTIONS.items():
        if found := newest(results, suite):
            parts.append(f"## {title}\n\n" + "\n".join(show(result) for result in found))
    model = json.loads(PREDICTED.read_text())
    parts.append(f"## On a GPU\n\n{gpu_report.render(folder, model)}")
    parts.append(f"## On an H200, by arithmetic\n\n{predicted(model)}")
    return "\n".join([*parts, notes.strip() + "\n"])


def main() -> None:
    if has_matplotlib():
        PICTURES.mkdir(exist_ok=True)
        for records in newest_bench(HERE / "results"):
            write_pictures(PICTURES, records, kinds=("svg",))
    OUT.write_text(render(HERE / "results", (HERE / "notes.md").read_text()))


if __name__ == "__main__":
    main()
