"""docs/performance.md from benchmarks/results/*.json and benchmarks/notes.md: python benchmarks/report.py

The newest result of each suite and machine counts. Nothing here measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpudedup.bench.record import Record, read_records
from gpudedup.bench.summary import about, host_line, sections_markdown

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "performance.md"
Result = dict[str, Any]

HEAD = """# Performance

Made by `python benchmarks/report.py` from the files in `benchmarks/results/`; do not edit. `gpudedup bench --out DIR`
makes a `results.jsonl`, kept there as `MACHINE-DATE.jsonl`; `python benchmarks/run.py` makes the figures of growth and
start-up. MB is 10^6 bytes of UTF-8 text. Every result was checked before its time counted. `load` is how many processes
wanted a core in the minute before; where it is above the cores that a case uses, its wall times are too long, and
CPU-seconds tell more.
"""

SIGN_BARS = {
    ("english", "avx512"): 400,
    ("english", "avx2"): 250,
    ("english", "baseline"): 60,
    ("chinese law", "avx512"): 200,
}
"""MB/s, of lanes alone; signing that also keeps hashes has no bar of its own."""
SHORT_BAR = 4_000_000
"""70-byte texts a second and core."""


def newest(results: Iterable[Result], suite: str) -> list[Result]:
    """Of each machine (and mix) the last result of a suite."""
    found: dict[tuple[str, int, str], Result] = {}
    for result in sorted((r for r in results if r["suite"] == suite), key=lambda result: result["date"]):
        mix = result.get("corpus", {}).get("mix", "")
        found[result["machine"]["cpu"], result["machine"]["cores"], mix] = result
    return list(found.values())


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    names = head.split("|")
    align = "|".join(" --- " if number == 0 else " ---: " for number in range(len(names)))
    lines = [f"| {' | '.join(name.strip() for name in names)} |", f"|{align}|"]
    lines += [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def where(result: Result) -> str:
    m = result["machine"]
    loads = [case["load"] for case in result["cases"] if "load" in case]
    load = f"; load {min(loads)} to {max(loads)}" if loads else ""
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gigabytes']} GB; Python {m['python']}, pyarrow {m['pyarrow']}; "
        f"commit {m['commit']}, {result['date']}{load}.\n"
    )


def verdict(good: bool) -> str:
    return "holds" if good else "**misses**"


def sign(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        bar = None if case["keep_shingles"] else SIGN_BARS.get((case["text"], case["tier"]))
        rate, judged = case["megabytes_per_second"], None
        if bar is not None:
            judged = f"{bar} MB/s: {verdict(rate >= bar)}"
        elif case["text"] == "70-byte" and case["tier"] == "avx512" and not case["keep_shingles"]:
            judged = f"4 M documents/s: {verdict(case['documents_per_second'] >= SHORT_BAR)}"
        rows.append(
            [
                case["text"] + (", hashes kept" if case["keep_shingles"] else ""),
                case["tier"],
                case["bytes_per_unit"],
                f"{rate:.0f}",
                f"{case['megabytes_per_cpu_second']:.0f}",
                f"{case['million_units_per_second']:.1f}",
                f"{case['documents_per_second'] / 1e6:.2f}",
                judged,
            ]
        )
    return (
        where(result)
        + "\n"
        + table("text | tier | bytes a unit | MB/s | MB per CPU-second | M units/s | M documents/s | bar", rows)
    )


def job(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        stages = case["stages"]
        bar = 200 if case["output"] == "mask" else 100
        rows.append(
            [
                f"{case['mix']}, {case['output']}, memory {case['memory']}",
                f"{case['text_bytes'] / 1e6:.0f}",
                case["seconds"],
                f"**{case['megabytes_per_second']:.0f}**",
                case["start_seconds"],
                case["decode_alone_seconds"],
                *(stages.get(name) for name in ("sign", "match", "verify", "decide", "apply")),
                case["cpu_seconds"],
                case["peak_megabytes"],
                f"{bar} MB/s: {verdict(case['megabytes_per_second'] >= bar)}",
            ]
        )
    head = "job | MB | s | MB/s | start | decode alone | sign (with decode) | match | verify (with second read)"
    text = "Seconds of wall time, files to finished run directory, all cores; CPU-seconds without start-up.\n\n"
    return f"{where(result)}\n{text}" + table(head + " | decide | apply | CPU s | peak MB | bar", rows)


def match(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        stages, peak = case["stages"], max(case["peak_megabytes"].values())
        seconds = sum(stages.values())
        good = verdict(seconds <= 60 and peak <= 4000)
        rows.append(
            [
                f"{case['documents'] / 1e6:g} M, memory {case['memory']}",
                *(stages[name] for name in ("load", "match", "verify", "decide")),
                f"**{seconds:.1f}**",
                case["cpu_seconds"],
                peak,
                round(sum(case["disk_megabytes"].values())),
                f"{case['compared_pairs'] / 1e6:.1f} M",
                f"60 s, 4000 MB: {good}",
            ]
        )
    head = (
        "documents | load | match | verify by signature | decide | s | CPU s | peak MB | disk MB | pairs compared | bar"
    )
    text = "Generated signatures of 128 lanes in a run directory, a tenth of the documents in clusters.\n\n"
    return f"{where(result)}\n{text}" + table(head, rows)


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


def memory(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        if "peak_over_text" in case:
            good = verdict(case["peak_over_text"] <= 3)
            rows.append(
                [
                    "one document of 1 GB",
                    case["peak_megabytes"],
                    f"{case['peak_over_text']} times its text",
                    f"3: {good}",
                ]
            )
            continue
        if "stream_peak_megabytes" in case:
            for number, peak in case["stream_peak_megabytes"].items():
                rows.append([f'Deduplicator, memory="{case["memory"]}", {number} documents', peak, None, None])
            more = case["bytes_per_document"]
            judged = f"400: {verdict(more <= 400)}"
            rows.append(["growth of a Deduplicator at 18 bands", None, f"{more} bytes a document", judged])
            continue
        for size, peak in case["peak_megabytes"].items():
            what = f'{int(size) / 1000:.0f} GB of text, memory="{case["memory"]}", {case["documents"][size]} documents'
            rows.append([what, peak, None, f"1 GB: {verdict(peak <= 1000)}"])
        more = case["bytes_per_document"]
        if more is not None:
            rows.append(["growth", None, f"{more} bytes a document", f"600: {verdict(more <= 600)}"])
    return (
        where(result)
        + "\nThe largest RssAnon + RssShmem of the process, looked at every 2 ms.\n\n"
        + table("case | peak MB | | bar", rows)
    )


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


def peers(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        if "error" in case:
            rows.append([f"{case['case']} {case.get('version', '')}", *[None] * 7, f"did not run: {case['error']}"])
            continue
        rows.append(
            [
                f"{case['case']} {case['version']}",
                f"{case['text_bytes'] / 1e6:.0f}",
                case["seconds"],
                f"**{case['megabytes_per_second']:.1f}**",
                f"{case['text_bytes'] / case['cpu_seconds'] / 1e6:.1f}",
                case["precision"],
                case["recall"],
                case["f1"],
                case["settings"],
            ]
        )
    rates = {case["case"]: case["megabytes_per_second"] for case in result["cases"] if "megabytes_per_second" in case}
    ours = rates.pop("gpudedup", None)
    corpus = result["corpus"]
    text = (
        f"{where(result)}\nCorpus: {corpus['mix']}, {corpus['documents']} documents. Same text, word 5-shingles, "
        "K = 128, t = 0.8, all cores, from Parquet to the ids that stay, start-up included; slow peers get a part. "
        f"Quality on {result['quality_documents']} documents, of which an exact decision removes "
        f"{result['exact_removals']}.\n\n"
    )
    text += table("peer | MB | s | MB/s | MB per CPU-second | precision | recall | F1 | how", rows)
    if ours and rates:
        best = max(rates, key=lambda name: rates[name])
        bar = 10 if result["corpus"]["mix"] == "mixed" else 8
        ratio = ours / rates[best]
        text += f"\n{ratio:.1f} times the fastest peer here, {best} (bar {bar}: {verdict(ratio >= bar)}).\n"
    return text


SECTIONS = {
    "sign": ("Signing, one core", sign),
    "job": ("The whole job", job),
    "match": ("From signatures to decisions", match),
    "peers": ("Peers", peers),
    "growth": ("Growth", growth),
    "memory": ("Memory", memory),
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
        for name, what in (("slope", "1x to 64x"), ("upper_slope", "8x to 64x")):
            if name in record.figures:
                slope = record.figures[name]
                yield f"slope of log CPU time over log text, {what}", f"{slope:.3f}", "<= 1.03", slope <= 1.03
        if record.suite == "memory" and record.peak_bytes and record.corpus and record.corpus.text_bytes >= 1.9e9:
            peak = record.peak_bytes / 1e6
            yield (
                f"peak memory at {record.corpus.text_bytes / 1e9:.1f} GB of text",
                f"{peak:.0f} MB",
                "1 GB",
                peak <= 1000,
            )
    for record in records:
        for over, bar in ("fastest", 10), ("fastest_of_same_shingles", 10), ("rensa", 20):
            if (ratio := record.figures.get(f"speed_over_{over}_ratio")) is not None:
                what = f"{record.case}: speed over {over.replace('_', ' ')}, {record.parameters[over]}"
                yield what, f"{ratio:.1f}", f"{bar}", ratio >= bar
        if (ratio := record.figures.get("memory_over_leanest_ratio")) is not None:
            what = f"{record.case}: memory over the leanest, {record.parameters['leanest']}"
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
    for suite, (title, show) in SECTIONS.items():
        if found := newest(results, suite):
            parts.append(f"## {title}\n\n" + "\n".join(show(result) for result in found))
    return "\n".join([*parts, notes.strip() + "\n"])


def main() -> None:
    OUT.write_text(render(HERE / "results", (HERE / "notes.md").read_text()))


if __name__ == "__main__":
    main()
