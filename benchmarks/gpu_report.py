"""What results of bench_gpu.py say, and how they stand to the bars: python benchmarks/gpu_report.py [FOLDER]"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PREDICTED = HERE / "gpu_model.json"
NOT_MEASURED = "not measured"

Result = dict[str, Any]
Case = dict[str, Any]
Suites = dict[str, Result]
"""Of one GPU the newest result by suite, without "gpu-"."""
Model = dict[str, Any]
"""What gpu_model.py reckoned."""


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    names = head.split("|")
    align = "|".join(" --- " if number == 0 else " ---: " for number in range(len(names)))
    lines = [f"| {' | '.join(name.strip() for name in names)} |", f"|{align}|"]
    lines += [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def verdict(good: bool) -> str:
    return "holds" if good else "**misses**"


# ------------------------------------------------------------------------------------------------------------ bars


@dataclass(frozen=True)
class Bar:
    """What one H200 is to reach."""

    what: str
    suite: str
    case: str
    """How the name of the case begins."""
    figure: str
    bar: float
    aim: float | None
    show: Callable[[float], str]
    least: tuple[str, float] = ("", 0.0)
    """A field of the case and what it must reach, else the case is too small to count."""
    reckon: Callable[[Model], float] | None = None
    falling: bool = False
    """Less is better."""

    def cells(self, suites: Suites, model: Model) -> list[str | None]:
        aim = "" if self.aim is None else self.show(self.aim)
        reckoned = None if self.reckon is None else self.show(self.reckon(model))
        return [self.what, self.show(self.bar), aim, self.measured(suites), reckoned]

    def measured(self, suites: Suites) -> str:
        result = suites.get(self.suite, {"cases": []})
        for case in result["cases"]:
            if case["case"].startswith(self.case) and self.figure in case:
                field, least = self.least
                value = case[self.figure]
                if result["emulated"]:
                    return f"{self.show(value)}, rehearsed"
                if field and case[field] < least:
                    return f"{self.show(value)}, but of {case[field]:.3g} {field.replace('_', ' ')} only"
                good = value <= self.bar if self.falling else value >= self.bar
                doubt = "" if case.get("as_documented", True) else ", of signatures that are not as documented"
                return f"{self.show(value)}: {verdict(good)}{doubt}"
        return NOT_MEASURED


def rate(value: float) -> str:
    return f"{value:,.3g} GB/s"


def share(value: float) -> str:
    return f"{value:.0%}"


def seconds(value: float) -> str:
    return f"{value:.3g} s"


def times(value: float) -> str:
    return f"{value:.3g} times"


def millions(value: float) -> str:
    return f"{value / 1e6:,.0f} M documents/s"


def pairs(value: float) -> str:
    return f"{value / 1e6:,.0f} M pairs/s"


def text_rate(kind: str) -> Callable[[Model], float]:
    return lambda model: 1e-9 / model["seconds_per_byte"][kind]["all"]


ALL = "text on the device to signatures there"
RATE = "gigabytes_of_text_per_second"
CORPUS = ("text_bytes", 19.5e9)
BARS = (
    *(
        Bar(
            f"sign kernels, text on the device, word:5, 128 lanes, {kind}",
            *("kernels", f"{kind}: {ALL}", RATE, bar, 3 * bar, rate),
            reckon=text_rate(kind),
        )
        for kind, bar in (("english, 2 kB", 100.0), ("chinese, 2 kB", 50.0))
    ),
    Bar(
        "the same, english, 70 bytes",
        *("kernels", f"english, 70 bytes: {ALL}", "documents_per_second", 3e8, 1e9, millions),
        reckon=lambda model: 1 / 70 / model["seconds_per_byte"]["english, 70 bytes"]["all"],
    ),
    Bar(
        "Arrow in pinned memory to lanes on the host, over the pinned copy",
        *("kernels", "english, 2 kB: pinned host memory to lanes", "share_of_pinned_copy", 0.7, 0.9, share),
    ),
    Bar(
        "Arrow in memory to mask, verify exact, 20 GB",
        *("job", "Arrow in memory to mask, cuda", RATE, 8.0, 20.0, rate, CORPUS),
    ),
    Bar(
        "Parquet (zstd) to removals and mask, verify exact, 20 GB",
        *("job", "Parquet to mask, cuda", RATE, 2.0, 4.0, rate, CORPUS),
    ),
    Bar(
        "the same, over two readings by the readers alone",
        *("job", "Parquet to mask, cuda", "two_readings_share", 0.8, None, share, CORPUS),
    ),
    Bar(
        "with kept rows, over the writers alone",
        *("job", "Parquet to kept, cuda", "writing_share", 0.8, None, share, CORPUS),
    ),
    Bar(
        "match, verify by signature and decide of 10^8 signatures",
        *("match", "match, verify by signature and decide 1e+08 documents, cuda", "median_seconds", 10.0, 2.0, seconds),
        least=("documents", 1e8),
        falling=True,
    ),
    Bar(
        "speed over libcudf's nvtext.minhash, char:24, 260 lanes",
        *("nvtext", "english, 2 kB, char:24, 260 lanes: libcudf", "our_speed_over_it", 5.0, 20.0, times),
    ),
    Bar(
        "verify exact, pairs of 600-shingle sets",
        *("kernels", "verify exact, sets of 600 values, cuda", "pairs_per_second", 1e7, 1e8, pairs),
        reckon=lambda model: 1 / model["seconds_per_comparison"]["advance_sets"],
    ),
)  # fmt: skip


def bars(suites: Suites, model: Model) -> str:
    head = "what one H200 is to reach | bar | aim | measured | at most, by arithmetic"
    return table(head, (bar.cells(suites, model) for bar in BARS))


# --------------------------------------------------------------------------------------------------------- figures


def milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value * 1e3:.4g}"


def figures(value: float | None) -> str | None:
    return None if value is None else f"{value:,.3g}"


def cases_of(result: Result) -> str:
    """All cases: measured, predicted, floor, and what is left between."""
    head = "case | ms | predicted | floor | floor reached | queueing | GB/s of text | workers"
    rows = [
        [
            case["case"],
            milliseconds(case["median_seconds"]),
            milliseconds(case.get("predicted_seconds")),
            milliseconds(case["floor_seconds"]),
            None if case["share_of_floor"] is None else share(case["share_of_floor"]),
            milliseconds(case.get("queueing_seconds")),
            figures(case.get(RATE, case.get("gigabytes_per_second"))),
            case.get("workers"),
        ]
        for case in result["cases"]
    ]
    parts = [table(head, rows)]
    for case in result["cases"]:
        if "stages" in case:
            stages = ", ".join(f"{stage} {took:.3g} s" for stage, took in case["stages"].items())
            parts.append(f"- {case['case']}: {stages}")
        if "as_documented" in case:
            are = "are" if case["as_documented"] else "**are not**"
            parts.append(f"- signatures of libcudf {case['version']} {are} as it documents them")
    if any(case.get("files_in_memory") for case in result["cases"]):
        parts.append("- the files lay in memory (/dev/shm)")
    return "\n".join([*parts, ""])


def sweeps(result: Result) -> str:
    """GPU and CPU beside each other, by what was varied."""
    found: dict[tuple[str, Any], dict[str, Case]] = {}
    for case in result["cases"]:
        found.setdefault((case["axis"], case.get("value")), {})[case["device"]] = case
    rows = []
    for (axis, value), both in found.items():
        if axis != "start" and len(both) == 2:
            gpu, cpu = both["cuda"], both["cpu"]
            signing = [each["signing_gigabytes_per_second"] for each in (gpu, cpu)]
            rows.append(
                [
                    *(axis, f"{value:,}" if isinstance(value, int) else value),
                    *(milliseconds(gpu["median_seconds"]), milliseconds(cpu["median_seconds"])),
                    *(f"{cpu['median_seconds'] / gpu['median_seconds']:.3g}", *map(figures, signing)),
                ]
            )
    head = "varied | value | job, GPU ms | job, CPU ms | times | signing, GPU GB/s | signing, CPU GB/s"
    return "\n".join([table(head, rows), *worth(found)])


def worth(found: dict[tuple[str, Any], dict[str, Case]]) -> Iterator[str]:
    """From which size of input on a process is done sooner with the GPU."""
    start = found.get(("start", None), {})
    sizes = [both for (axis, _), both in found.items() if axis == "text" and len(both) == 2]
    if len(start) < 2 or not sizes:
        return
    extra = start["cuda"]["median_seconds"] - start["cpu"]["median_seconds"]
    largest = max(sizes, key=lambda both: both["cpu"]["text_bytes"])
    gpu, cpu = (largest[device]["median_seconds"] / largest[device]["text_bytes"] for device in ("cuda", "cpu"))
    more = "more" if extra > 0 else "less"
    text = f"The first job of a process takes {abs(extra):.3g} s {more} on the GPU than on the CPU"
    if extra <= 0:
        yield f"{text}, and of the largest text the GPU is the {'quicker' if gpu < cpu else 'slower'} one.\n"
        return
    if gpu >= cpu:
        yield f"{text}, and of the largest text the GPU is the slower one: it is worth it nowhere.\n"
        return
    size, workers = extra / (cpu - gpu), largest["cpu"]["workers"]
    yield f"{text}; at the rates of the largest text it is worth that from {size / 1e6:,.0f} MB on,\n" + (
        f"{size / workers / 1e6:,.0f} MB for each of {workers} workers of the CPU.\n"
    )


SECTIONS = {
    "ceilings": ("Ceilings", cases_of),
    "kernels": ("Kernels", cases_of),
    "job": ("Whole jobs", cases_of),
    "match": ("Signatures to decisions", cases_of),
    "nvtext": ("Beside libcudf", cases_of),
    "sweep": ("Where the CPU is the better choice", sweeps),
}


def newest(folder: Path) -> dict[str, Suites]:
    """By GPU."""
    found: dict[str, Suites] = {}
    results: list[Result] = [json.loads(path.read_text()) for path in sorted(folder.glob("*-gpu-*.json"))]
    for result in sorted(results, key=lambda result: result["date"]):
        found.setdefault(result["machine"]["gpu"], {})[result["suite"].removeprefix("gpu-")] = result
    return found


def where(gpu: str, result: Result) -> str:
    m = result["machine"]
    rehearsed = "**Of a rehearsal: these are no figures of a GPU.** " if result["emulated"] else ""
    scaled = "" if result["scale"] == 1 else f"; {result['scale']:g} of the full work"
    return (
        f"{rehearsed}{gpu}, {m['gpu_memory_gigabytes']} GB, driver {m['driver']}, CuPy {m['cupy']}, Numba "
        f"{m['numba_cuda']}; {m['cpu']}, {m['cores']} cores, {m['memory_gigabytes']} GB; commit {m['commit']}, kernels "
        f"{m['kernels']}, seed {result['seed']}, {result['date']}{scaled}.\n"
    )


def render(folder: Path, model: Model) -> str:
    """The bars, and all that was measured, GPU by GPU."""
    found = newest(folder)
    if not found:
        return f"**Nothing of this was measured: no GPU was at hand.**\n\n{bars({}, model)}"
    parts = []
    for gpu, suites in found.items():
        parts.append(f"{gpu}; of which machine and commit a figure is, its table below says.\n\n{bars(suites, model)}")
        for suite, (title, tables) in SECTIONS.items():
            if suite in suites:
                parts.append(f"### {title}\n\n{where(gpu, suites[suite])}\n{tables(suites[suite])}")
    return "\n".join(parts)


def main() -> None:
    model = json.loads(PREDICTED.read_text())
    found = newest(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results")
    for suites in found.values():
        print(bars(suites, model))
    if not found:
        print(bars({}, model))


if __name__ == "__main__":
    main()
