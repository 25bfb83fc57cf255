"""`gpudedup bench`: options, progress, tables. What is slow to import is imported when a bench begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpudedup.bench.peers.command import peers as install_peers

if TYPE_CHECKING:
    from rich.console import Console

    from gpudedup.bench.record import Record
    from gpudedup.bench.suites import Order
    from gpudedup.bench.summary import Section, Table

DEFAULT_BYTES = 1_000_000_000
QUICK_BYTES = 32_000_000
LEAST_BYTES = 1_000_000
FILE_COLUMNS = 160
"""Width of tables that go to no terminal."""
NAME_COLUMNS = 16
"""So narrow a column of names may be."""
RESULTS = "results.jsonl"
UNFINISHED = "results.unfinished.jsonl"
"""What is measured so far; an earlier result stays until a bench has come to its end."""

app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


app.command("peers")(install_peers)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="transfers, signatures, short-texts, match, end-to-end, scaling, memory or quality; may be given "
            "several times.",
            show_default="all",
            metavar="NAME",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Text of a made corpus, e.g. 1GB.", show_default="1GB; 32MB with --quick", metavar="SIZE"),
    ] = None,
    mix: Annotated[str, typer.Option(help="Languages of a made corpus.", metavar="english|chinese|mixed")] = "mixed",
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="Measure on these files instead of a made corpus (where sizes must vary, one is made all the same): "
            "paths or globs, as for gpudedup run; may be given several times.",
            show_default="a made corpus",
            metavar="FILE",
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the files' text.", metavar="COL")] = "text",
    repeat: Annotated[int, typer.Option(help="Timed repeats of a case.", metavar="N", min=1, max=1000)] = 3,
    seed: Annotated[int, typer.Option(help="Of all that is made.", metavar="N", min=0, max=2**31 - 1)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="All suites, small, within a minute on two cores.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout instead of tables.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write results.jsonl, summary.md and, with matplotlib (pip install gpudedup\\[report]), pictures.",
            show_default="nothing is written",
            metavar="DIR",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Say of each case whether it is faster or slower than in an earlier results.jsonl.",
            show_default="none",
            metavar="FILE",
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            help="Where gpudedup bench peers --install made other tools' environments: they get the same text.",
            show_default="none",
            metavar="DIR",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure this device alone; may be given several times.",
            show_default="every GPU and every CPU tier",
            metavar="cpu|cuda:N",
        ),
    ] = None,
) -> None:
    """Measure this machine: signing, matching, whole jobs, scaling, memory, quality; every result checked first."""
    if context.invoked_subcommand is not None:
        return
    from gpudedup.bench.devices import present_devices
    from gpudedup.bench.inputs import check_given
    from gpudedup.bench.record import read_records
    from gpudedup.bench.suites import SUITES, Order
    from gpudedup.bench.words import MIXES
    from gpudedup.errors import ParameterError
    from gpudedup.machine import worker_count
    from gpudedup.params import parse_bytes
    from gpudedup.store.scratch import ScratchDirectory

    for name in suite or ():
        if name not in SUITES:
            raise ParameterError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    if mix not in MIXES:
        raise ParameterError(f"there is no mix {mix!r}; there are {', '.join(sorted(MIXES))}")
    if peers is not None and suite and "quality" not in suite:
        raise ParameterError(f"--peers {peers} is for the suite quality, which --suite leaves out; add --suite quality")
    if inputs is None and text_column != "text":
        raise ParameterError(f"--text-column {text_column} is of files; name them with --input, or leave it out")
    if not os.access(tmp := os.environ.get("TMPDIR") or ".", os.W_OK | os.X_OK):
        raise ParameterError(f"TMPDIR is {tmp}, where nothing can be written; name another directory, or unset it")
    if peers is not None and not peers.is_dir():
        raise ParameterError(f"--peers {peers} is not a directory; gpudedup bench peers --install {peers} makes it")
    if inputs:
        check_given(inputs, text_column)
    default = QUICK_BYTES if quick else DEFAULT_BYTES
    text_bytes = default if size is None else parse_bytes("--size", size, LEAST_BYTES)
    devices, no_gpu = present_devices(device or [])
    before = read_records(compare) if compare else []
    if out is not None:
        _make_folder(out)
    progress = _Progress()
    with ScratchDirectory("gpudedup-bench-", None) as scratch:
        order = Order(
            folder=scratch.path,
            devices=devices,
            text_bytes=text_bytes,
            mix=mix,
            inputs=tuple(inputs or ()),
            text_column=text_column,
            seed=seed,
            repeat=repeat,
            quick=quick,
            workers=worker_count(),
            peers=peers,
            tell=progress.tell,
        )
        _run(order, [name for name in SUITES if not suite or name in suite], before, as_json, out, no_gpu, progress)


def _run(
    order: Order,
    suites: Sequence[str],
    before: Sequence[Record],
    as_json: bool,
    out: Path | None,
    no_gpu: str | None,
    progress: _Progress,
) -> None:
    from rich.text import Text

    from gpudedup.bench.compare import compare
    from gpudedup.bench.record import host, to_line, write_records
    from gpudedup.bench.suites import run_suite
    from gpudedup.bench.summary import (
        HOW_TO_GET_PICTURES,
        LEGEND,
        Compared,
        comparison_table,
        has_matplotlib,
        host_line,
        sections,
        write_summary,
    )
    from gpudedup.display import console, one_line

    shown = console(sys.stderr if as_json else sys.stdout)
    if not shown.is_terminal:
        shown.width = FILE_COLUMNS
    records: list[Record] = []
    if not as_json:
        shown.print(Text(one_line(host_line(host()))), soft_wrap=True)
        if no_gpu:
            shown.print(Text(f"no GPU: {one_line(no_gpu)}"), soft_wrap=True)
        shown.print(Text(LEGEND), soft_wrap=True)
    for name in suites:
        own: list[Record] = []
        try:
            with progress.shown():
                for record in run_suite(name, order):
                    own.append(record)
                    records.append(record)
                    if out is not None:
                        write_records(out / UNFINISHED, records)
                    if as_json:
                        with progress.aside():
                            print(to_line(record), flush=True)
        finally:  # what is stopped shows what it has measured
            if not as_json:
                for one in sections(own):
                    _show_section(shown, one)
    compared = Compared(before[0], *compare(records, before)) if before else None
    if compared:
        shown.print()
        _show_table(shown, comparison_table(compared.cases))
        for line in compared.notes:
            shown.print(Text(one_line(line)), soft_wrap=True)
    if out is not None:
        os.replace(out / UNFINISHED, out / RESULTS)
        written = write_summary(out, records, compared)
        shown.print()
        shown.print(Text(f"written to {one_line(str(out))}: {RESULTS}, {', '.join(written)}"), soft_wrap=True)
        if not has_matplotlib():
            shown.print(Text(HOW_TO_GET_PICTURES), soft_wrap=True)


def _make_folder(out: Path) -> None:
    from gpudedup.errors import OutputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out} cannot be made: {error.strerror}; choose another directory") from None


class _Progress:
    """A line on stderr that says what goes on, while that is a terminal; else nothing."""

    def __init__(self) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from gpudedup.display import console

        columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Progress(
            *columns,
            console=console(sys.stderr),
            transient=True,
            redirect_stdout=False,  # tables and JSON may go elsewhere
            redirect_stderr=False,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("starting", total=None)

    def tell(self, what: str) -> None:
        from gpudedup.display import one_line

        self._bar.update(self._task, description=one_line(what))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While the block goes on, but for what is in `aside`."""
        with self._bar:
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Not there while the block prints."""
        self._bar.stop()
        yield
        self._bar.start()


def _show_section(shown: Console, one: Section) -> None:
    from rich.text import Text

    from gpudedup.display import one_line

    shown.print()
    shown.print(Text(one.title, style="bold"))
    _show_table(shown, one.table)
    for note in one.notes:
        shown.print(Text(one_line(note)), soft_wrap=True)


def _show_table(shown: Console, table: Table) -> None:
    """Names and headings fold where the terminal is narrow. Numbers do not: then lines are longer than the terminal."""
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    from gpudedup.display import one_line

    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    least = 0
    for number, name in enumerate(table.names):
        left, widest = number < table.left, max((len(row[number]) for row in table.rows), default=0)
        width = max(min(widest, NAME_COLUMNS) if left else widest, *map(len, name.split()))
        drawn.add_column(Text(name), justify="left" if left else "right", overflow="fold", min_width=width)
        least += width + 1
    for row in table.rows:
        drawn.add_row(*(Text(one_line(cell)) for cell in row))
    shown.print(drawn, width=max(least, shown.width), crop=False)
