"""What a result says, for people: tables, Markdown, and pictures where matplotlib is installed (extra ``report``)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpudedup.bench.compare import Comparison
from gpudedup.bench.record import Host, Record
from gpudedup.bench.suites import SUITES
from gpudedup.store.atomic import atomic_file

HOW_TO_GET_PICTURES = "No pictures: matplotlib is not installed; pip install 'gpudedup[report]' brings it."
NOTHING_TO_DRAW = "No pictures: the suites end-to-end, scaling and quality have figures to draw."
STAGES = ("sign", "match", "verify", "decide", "apply")

# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """Rows of text under names; the first ``left`` columns are words, the others numbers."""

    names: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int = 2


@dataclass(frozen=True)
class Section:
    """A suite: a table, and what stands under it."""

    title: str
    table: Table
    notes: list[str]


def _number(value: float) -> str:
    """Three digits that tell something."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _share(value: float) -> str:
    """Cut off, so that only what is all is 1.0000."""
    return f"{math.floor(value * 1e4 + 1e-9) / 1e4:.4f}"


Column = tuple[str, str, Callable[[float], str]]
RATE: tuple[Column, ...] = (("MB/s", "text_megabytes_per_second", _number),)
PER_CPU: Column = ("MB per CPU s", "text_megabytes_per_cpu_second", _number)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "transfers": (("MB/s", "megabytes_per_second", _number),),
    "signatures": (*RATE, ("M units/s", "million_units_per_second", _number)),
    "short-texts": (("documents/s", "documents_per_second", _number), *RATE),
    "match": (
        ("M documents/s", "million_documents_per_second", _number),
        ("pairs compared", "compared_pairs", _number),
    ),
    "end-to-end": (*RATE, PER_CPU),
    "scaling": (*RATE, PER_CPU, ("slope", "slope", _number), ("slope from x 8", "upper_slope", _number)),
    "memory": (
        ("documents", "documents", _number),
        ("peak/text", "peak_over_text", _number),
        ("bytes a document", "bytes_per_document", _number),
    ),
    "quality": (
        ("precision", "precision_share", _share),
        ("recall", "recall_share", _share),
        ("F1", "f1_share", _share),
        ("candidates", "candidates_recall_share", _share),
        ("removed", "removed_count", _number),
        ("to remove", "exact_removed_count", _number),
        ("false", "false_removals_count", _number),
        ("sources lost", "sources_lost_count", _number),
        ("label F1", "label_f1_share", _share),
        ("Rand", "adjusted_rand_index", _share),
    ),
    "peers": (
        *RATE,
        PER_CPU,
        ("precision", "lenient_precision_share", _share),  # whichever of two copies stays
        ("recall", "lenient_recall_share", _share),
        ("F1", "lenient_f1_share", _share),
        ("F1, first stays", "f1_share", _share),
        ("false", "false_removals_count", _number),
    ),
}
"""Of each suite: heading, figure, and how it is written. A column without any figure is left out."""


def sections(records: Sequence[Record]) -> Iterator[Section]:
    """A section for each suite that has records, in the order of the suites."""
    for suite in (*SUITES, *sorted({record.suite for record in records} - set(SUITES))):
        own = [record for record in records if record.suite == suite]
        if own:
            yield section(suite, own)


def section(suite: str, records: Sequence[Record]) -> Section:
    columns = [column for column in COLUMNS.get(suite, ()) if any(column[1] in record.figures for record in records)]
    peers = any(record.program != "gpudedup" for record in records)
    names = (
        *(("program",) if peers else ()),
        "case",
        "device",
        *(("MB",) if peers else ()),
        "s",
        "least to most",
        *(name for name, _, _ in columns),
        "CPU s",
        "peak MB",
    )
    rows = [
        (
            *((f"{record.program} {record.version}".rstrip(),) if peers else ()),
            record.case,
            record.device,
            *((_number(record.corpus.text_bytes / 1e6) if record.corpus and record.seconds else "",) if peers else ()),
            *_times(record),
            *(write(record.figures[figure]) if figure in record.figures else "" for _, figure, write in columns),
            "" if record.cpu_seconds is None else _number(record.cpu_seconds),
            "" if record.peak_bytes is None else _number(record.peak_bytes / 1e6),
        )
        for record in records
        if not _ratios(record)
    ]
    notes = [f"{record.case}: {text}" for record in records if (text := _ratios(record))]
    notes += [f"{what}: {text}" for what, text in _said("inside the clock", lambda record: record.clock, records)]
    notes += [f"{what}: {text}" for what, text in _said("checked", lambda record: record.checked, records)]
    notes += [f"{what}: {text}" for what, text in _said("repeats", _repeats, records)]
    notes += [
        f"seconds of stages: {record.case}, {record.device}: {text}" for record in records if (text := _stages(record))
    ]
    notes += [f"{record.program}: {record.parameters['how']}" for record in records if "how" in record.parameters]
    for record in records:
        if record.cannot:
            program = f"{record.program}, " if peers else ""
            notes.append(f"not measured: {program}{record.case}, {record.device}: {record.cannot}")
    return Section(suite, _without_empty(Table(names, rows, 2 + peers)), notes)


def _without_empty(table: Table) -> Table:
    """Without columns that say nothing in any row."""
    there = [place for place in range(len(table.names)) if place < table.left or any(row[place] for row in table.rows)]
    return Table(
        tuple(table.names[place] for place in there),
        [tuple(row[place] for place in there) for row in table.rows],
        table.left,
    )


def _times(record: Record) -> tuple[str, str]:
    if record.seconds is None:
        return "", "cannot" if record.cannot else ""
    return _number(record.seconds.median), f"{_number(record.seconds.least)} to {_number(record.seconds.most)}"


def _ratios(record: Record) -> str:
    """Of a record that compares others: each ratio, and what it is over."""
    found = {name.removesuffix("_ratio"): ratio for name, ratio in record.figures.items() if name.endswith("_ratio")}
    over = {name: record.parameters.get(name.partition("_over_")[2], "") for name in found}
    return ", ".join(
        f"{name.replace('_', ' ')}{f' ({over[name]})' if over[name] else ''} {_number(ratio)}"
        for name, ratio in found.items()
    )


def _repeats(record: Record) -> str:
    return f"{record.repeats}" if record.repeats else ""


def _stages(record: Record) -> str:
    """Of a whole job."""
    if record.suite != "end-to-end":
        return ""
    found = {stage: record.figures.get(f"{stage}_seconds") for stage in STAGES}
    return ", ".join(f"{stage} {_number(seconds)}" for stage, seconds in found.items() if seconds is not None)


def _said(what: str, say: Callable[[Record], str], records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """What records say of themselves, each text once; with the cases where they do not all say the same."""
    texts: dict[str, list[str]] = {}
    for record in records:
        if (text := say(record)) and record.cannot is None:
            cases = texts.setdefault(text, [])
            if record.case not in cases:
                cases.append(record.case)
    for text, cases in texts.items():
        yield what if len(texts) == 1 else f"{what} ({'; '.join(cases[:4])}{' ...' if len(cases) > 4 else ''})", text


def comparison_table(found: Sequence[Comparison]) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            one.suite,
            one.case,
            one.device,
            one.verdict,
            f"{one.ratio:.3f}",
            f"{one.least:.3f} to {one.most:.3f}" if one.repeats else "",
            f"{one.cpu_ratio:.3f}" if one.cpu_ratio is not None else "",
            "other " + " and ".join(one.differs) if one.differs else "",
        )
        for one in found
    ]
    names = ("suite", "case", "device", "verdict", "now / before", "bounds", "CPU s, now / before", "beware")
    return _without_empty(Table(names, rows, 4))


def host_line(host: Host) -> str:
    gpus = f"; GPUs: {', '.join(host.gpus)}" if host.gpus else ""
    return (
        f"{host.cpu}, {host.cores} cores, {host.memory_bytes / 1e9:.0f} GB{gpus}; {host.system}; Python {host.python}, "
        f"pyarrow {host.pyarrow}, numpy {host.numpy}"
    )


def about(record: Record) -> str:
    """Of which program a result is, in one line."""
    commit = f", commit {record.commit}" if record.commit else ""
    version = f" {record.version}" if record.program == "gpudedup" else ""
    return f"gpudedup{version}{commit}, {record.date}, seed {record.seed}"


LEGEND = (
    "s: median wall seconds; CPU s: median, all threads and children; peak MB: RssAnon + RssShmem. "
    "MB is 10^6 bytes of UTF-8 text."
)

# ------------------------------------------------------------------------------------------------------------- Markdown


@dataclass(frozen=True)
class Compared:
    """Two results side by side."""

    before: Record
    """One of the earlier result."""
    cases: Sequence[Comparison]
    left_out: Sequence[str]

    @property
    def notes(self) -> list[str]:
        return [f"before: {about(self.before)}", *(f"not compared: {line}" for line in self.left_out)]


def markdown(records: Sequence[Record], pictures: Sequence[str] = (), compared: Compared | None = None) -> str:
    """The whole page; ``pictures`` are names of files beside it."""
    lines = ["# gpudedup bench", ""]
    for host in dict.fromkeys(record.host for record in records):
        first = next(record for record in records if record.host == host)
        lines += [f"{_plain(about(first))}. {_plain(host_line(host))}.", ""]
    lines += [LEGEND, "", *sections_markdown(records)]
    if compared:
        lines += ["## Compared with an earlier result", "", *_markdown_table(comparison_table(compared.cases)), ""]
        lines += [*(f"- {_plain(note)}" for note in compared.notes), ""]
    missing = NOTHING_TO_DRAW if has_matplotlib() else HOW_TO_GET_PICTURES
    lines += [f"![{Path(name).stem}]({name})" for name in pictures] or [missing]
    return "\n".join(lines).rstrip() + "\n"


def sections_markdown(records: Sequence[Record], level: int = 2) -> Iterator[str]:
    """The lines of all suites, under headings of a level."""
    for one in sections(records):
        yield from (f"{'#' * level} {_plain(one.title)}", "", *_markdown_table(one.table), "")
        yield from (f"- {_plain(note)}" for note in one.notes)
        yield ""


def _markdown_table(table: Table) -> list[str]:
    align = [" --- " if number < table.left else " ---: " for number in range(len(table.names))]
    rows = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in (table.names, *table.rows)]
    return [rows[0], f"|{'|'.join(align)}|", *rows[1:]]


def _plain(text: str) -> str:
    """What a record says, as text of Markdown: on one line, with nothing that would be taken as a mark or a tag."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------------------- pictures


def has_matplotlib() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


KINDS: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
"""Of pictures, and how each is written."""


def write_pictures(folder: Path, records: Sequence[Record], kinds: Sequence[str] = tuple(KINDS)) -> list[str]:
    """SVG and PNG of all that the records have figures for; the names of the SVG files. Raises OutputError."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "gpudedup", "figure.constrained_layout.use": True})
    from matplotlib.figure import Figure

    drawings: dict[str, Callable[[Any, Sequence[Record]], bool]] = {
        "stages": _draw_stages,
        "scaling": _draw_scaling,
        "quality": _draw_quality,
        "s-curve": _draw_s_curve,
    }
    names = []
    for name, draw in drawings.items():
        figure = Figure(figsize=(7, 4.2))
        if not draw(figure.add_subplot(), records):
            continue
        for kind in kinds:
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, **KINDS[kind])
            with atomic_file(folder / f"{name}.{kind}") as file:
                file.write_bytes(drawn.getvalue())
        names.append(f"{name}.svg")
    return names


def _draw_stages(axes: Any, records: Sequence[Record]) -> bool:
    """Throughput of each stage of whole jobs, and of the jobs; dots, since the axis is logarithmic."""
    names = [*STAGES, "whole job"]
    found = False
    for record in records:
        if record.suite == "end-to-end" and record.corpus and record.seconds:
            # A mask is written without a look at the text.
            read = STAGES if record.parameters.get("output") == "kept" else STAGES[:-1]
            seconds = {stage: record.figures.get(f"{stage}_seconds", 0.0) for stage in read}
            seconds["whole job"] = record.seconds.median
            shown = [name for name in names if seconds.get(name, 0) > 0]
            points = [(record.corpus.text_bytes / seconds[name] / 1e6, name) for name in shown]
            axes.plot(*zip(*points, strict=True), "o", label=_drawn(f"{record.case}, {record.device}"))
            found = True
    axes.set(xscale="log", xlabel="MB of text a second", title="Throughput by stage")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    if found:
        axes.legend(fontsize="x-small")
    return found


def _draw_scaling(axes: Any, records: Sequence[Record]) -> bool:
    """CPU time over text, and a straight line through its first point."""
    found = False
    for record in records:
        size, cpu = (record.curves.get(name, []) for name in ("text_bytes", "cpu_seconds"))
        if record.suite == "scaling" and min([*size, *cpu], default=0) > 0:
            slopes = [f"{record.figures[name]:.3f}" for name in ("slope", "upper_slope") if name in record.figures]
            label = f"{record.device}: slope {', from x 8 on '.join(slopes)}"
            axes.plot([each / 1e6 for each in size], cpu, "o-", label=_drawn(label))
            axes.plot([each / 1e6 for each in size], [cpu[0] * each / size[0] for each in size], ":", label="linear")
            found = True
    axes.set(xscale="log", yscale="log", xlabel="MB of text", ylabel="CPU seconds", title="CPU time over text")
    if found:
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.legend()
    return found


def _draw_quality(axes: Any, records: Sequence[Record]) -> bool:
    """F1 over speed of gpudedup and of every peer."""
    found = False
    for record in records:
        if record.suite == "peers" and {"lenient_f1_share", "text_megabytes_per_second"} <= set(record.figures):
            speed, f1 = record.figures["text_megabytes_per_second"], record.figures["lenient_f1_share"]
            axes.plot([speed], [f1], "o", label=_drawn(f"{record.program} {record.version}"))
            found = True
    axes.set(xscale="log", xlabel="MB of text a second, whole job", ylabel="F1 of removals", title="Quality and speed")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    if found:
        axes.legend(fontsize="x-small")
    return found


def _draw_s_curve(axes: Any, records: Sequence[Record]) -> bool:
    """Recall of pairs over their similarity, and the curve of theory."""
    found = False
    curves = [record for record in records if {"similarity", "recall", "theory"} <= set(record.curves)]
    pooled = [record for record in curves if "all sets" in record.case]
    for record in pooled or curves:
        if record.curves["similarity"]:
            (line,) = axes.plot(
                record.curves["similarity"], record.curves["recall"], "o", markersize=3, label=_drawn(record.case)
            )
            axes.plot(record.curves["similarity"], record.curves["theory"], "-", color=line.get_color(), linewidth=0.8)
            found = True
    axes.set(xlabel="Jaccard similarity", ylabel="share of pairs compared", title="S-curve: dots measured, line theory")
    if found:
        axes.legend(fontsize="x-small")
    return found


def _drawn(text: str) -> str:
    """As a label that matplotlib does not take as a formula."""
    return text.replace("$", r"\$")


def write_summary(folder: Path, records: Sequence[Record], compared: Compared | None = None) -> list[str]:
    """summary.md and, with matplotlib, pictures; the names of the files. Raises OutputError."""
    pictures = write_pictures(folder, records) if has_matplotlib() else []
    with atomic_file(folder / "summary.md") as file:
        file.write_text(markdown(records, pictures, compared), encoding="utf-8")
    return ["summary.md", *pictures]
