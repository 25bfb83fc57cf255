"""The command line. Messages on stderr, data and --json on stdout.

Whatever is slow to import is imported inside the commands. Exit codes: 0 done; 1 failed; 2 usage or bad parameters;
3 input; 4 artefacts; 5 device; 85 a run was stopped by a signal and can be continued; 130, 138 and 143 what cannot be
continued was stopped by SIGINT, SIGTERM, SIGHUP or SIGUSR1.
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gpudedup.bench.command import app as bench_app

if TYPE_CHECKING:
    from gpudedup.api import Run
    from gpudedup.audit import Audit
    from gpudedup.display import Change, Key
    from gpudedup.engines.status import Status
    from gpudedup.explain import Explanation
    from gpudedup.params import Params
    from gpudedup.planning import Plan

EXAMPLE_PAIRS = 3
"""Near-duplicates that `run` shows."""

SKIPS_LISTED = 10
REMOVALS_LISTED = 20
PROBLEMS_LISTED = 20

app = typer.Typer(
    help="Find near-copies in text corpora, remove them, and prove each removal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench_app, name="bench")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What stops a command; batch systems send SIGUSR1 ahead of a time limit, a terminal that is closed sends SIGHUP."""

RESUMABLE = 85
"""Exit code of a run that was stopped and can be continued."""


class Stopped(BaseException):
    """One of SIGNALS: unwinds the stack, so that everything unfinished is cleaned up.

    No KeyboardInterrupt, which typer would answer itself.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum


def main() -> NoReturn:
    """Entry point of the `gpudedup` command."""
    # NumPy's linear algebra, which nothing here uses, starts a thread a core as it is imported, and they spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with answering():
        from gpudedup.display import harmless_streams

        harmless_streams()
        app(prog_name="gpudedup")
    raise AssertionError("typer ends the process")  # pragma: no cover


def _stop(signum: int, frame: FrameType | None) -> None:
    if _over:
        return
    _ignore_signals()  # the clean-up that now begins is not to be stopped half-way
    raise Stopped(signum)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def answering() -> Iterator[None]:
    """Errors and signals become one line on stderr and an exit code."""
    from gpudedup.errors import GpudedupError

    global _over, _resumable
    _over = _resumable = False
    atexit.register(_ignore_signals)  # else the interpreter, as it ends, gives them back to the system
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
            _over = True
    except Stopped as stopped:
        name = signal.Signals(stopped.signum).name
        if _resumable:
            _say(f"stopped by {name}; what is finished stays, and the same command goes on from there")
            sys.exit(RESUMABLE)
        _say(f"stopped by {name}; what was unfinished has been removed")
        sys.exit(128 + stopped.signum)
    except GpudedupError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(1)
    except MemoryError:
        _say("out of memory; lower memory= or workers=")
        sys.exit(1)
    except OSError as error:
        _say(str(error))
        sys.exit(1)


_over = False
"""Whether all is done and said: nothing is left to stop."""

_resumable = False
"""Whether the command that is going on is one that can be continued."""


def _continuable() -> None:
    """From here on the same command can be given again, to the last line that it says."""
    global _resumable
    _resumable = True


def _say(message: str) -> None:
    from gpudedup.display import visible

    print(f"gpudedup: {visible(message)}", file=sys.stderr)


def _print_json(value: Any) -> None:
    """ASCII only: no character of the corpus reaches a terminal as it is, and any locale can carry it."""
    print(json.dumps(value, indent=2, default=str).replace("\x7f", "\\u007f"))


def _version(wanted: bool) -> None:
    if wanted:
        import gpudedup
        from gpudedup.params import SPEC

        print(f"gpudedup {gpudedup.__version__} (spec {SPEC})")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """The options before a command."""


DOCUMENTS, SIMILAR, STAY, OUTPUT, MACHINE = (
    "What is a document",
    "What is similar",
    "Who stays",
    "Input and output",
    "Machine",
)
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON (ASCII) on stdout instead of text.", rich_help_panel=OUTPUT)
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Documents at least this similar (Jaccard index of their shingles) are copies. 0.8 is a page with some "
        "sentences changed; 0.9 is careful; 0.6 takes templates and rewritten pages too.",
        show_default="0.8",
        metavar="T",
        rich_help_panel=SIMILAR,
    ),
]
Recall = Annotated[
    float | None,
    typer.Option(
        help="Share of the pairs at the threshold that must be compared; pairs above it are found more often. More "
        "costs time.",
        show_default="0.95",
        metavar="R",
        rich_help_panel=SIMILAR,
    ),
]
NumPerm = Annotated[
    int | None,
    typer.Option(
        help="Lanes of a signature. More allow a sharper choice of candidates, at 4 bytes a document each.",
        show_default="128",
        metavar="K",
        rich_help_panel=SIMILAR,
    ),
]
Bands = Annotated[
    int | None,
    typer.Option(
        help="Bands, given together with --rows instead of --recall.",
        show_default="from threshold and recall",
        metavar="B",
        rich_help_panel=SIMILAR,
    ),
]
Rows = Annotated[
    int | None,
    typer.Option(
        help="Lanes a band; more find fewer pairs.",
        show_default="from threshold and recall",
        metavar="R",
        rich_help_panel=SIMILAR,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads. They never change the result.",
        show_default="the cores that this process may use",
        metavar="N",
        rich_help_panel=MACHINE,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Bytes for shingle sets and readers, e.g. 4GB; more goes to --tmp. Signatures come on top.",
        show_default="half of what is free",
        metavar="SIZE",
        rich_help_panel=MACHINE,
    ),
]
Tmp = Annotated[
    str | None,
    typer.Option(
        help="Directory for what does not fit in memory.",
        show_default="the system's",
        metavar="DIR",
        rich_help_panel=MACHINE,
    ),
]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Parquet, Arrow IPC (Feather), JSONL, CSV, TSV or text files (the last four also .gz, .zst), "
        "directories, or globs. The order given is input order.",
        show_default=False,
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        metavar="RUN",
        help="Directory for the results; new, empty, or of this run, which is then continued.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
PlanOut = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="RUN",
        help="Where the results would go: how much is free there is looked at.",
        show_default="the working directory",
        rich_help_panel=OUTPUT,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        help="Besides the table of removals: the kept documents as files like the input, a mask (true: keep) for "
        "each file, or nothing.",
        show_default="kept",
        metavar="kept|mask|none",
        rich_help_panel=OUTPUT,
    ),
]
OnError = Annotated[
    str | None,
    typer.Option(
        help="What to do about input that cannot be read: stop, or leave it out, count it and list it.",
        show_default="fail",
        metavar="fail|skip",
        rich_help_panel=OUTPUT,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Parameters under the same names (with _), e.g. text_column = 'body'. Options given here win.",
        metavar="FILE.toml",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="The column with the documents.", show_default="text", metavar="COL", rich_help_panel=DOCUMENTS),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        help="A column to name documents by in the results; never decides anything.",
        show_default="none",
        metavar="COL",
        rich_help_panel=DOCUMENTS,
    ),
]
Fold = Annotated[
    str | None,
    typer.Option(
        help="What does not count as a difference: full (case, width, marks, compatibility forms, traditional "
        "against simplified Chinese), case, or none.",
        show_default="full",
        metavar="full|case|none",
        rich_help_panel=DOCUMENTS,
    ),
]
DropEmpty = Annotated[
    bool | None,
    typer.Option(
        "--drop-empty/--keep-empty",
        help="Remove documents without a single word (they match nothing and stay otherwise).",
        show_default="keep",
        rich_help_panel=DOCUMENTS,
    ),
]
Shingle = Annotated[
    str | None,
    typer.Option(
        help="What is compared: n consecutive words (a Chinese or Japanese character counts as one), characters, "
        "or tokens of a list<int> column. Smaller n for short texts; char:n for noisy ones.",
        show_default="word:5",
        metavar="KIND:N",
        rich_help_panel=SIMILAR,
    ),
]
Verify = Annotated[
    str | None,
    typer.Option(
        help="How candidates are compared: by their shingles (exact), by their signatures (an estimate, without a "
        "second read of the text), or not at all (every candidate counts as similar).",
        show_default="exact",
        metavar="exact|signature|none",
        rich_help_panel=SIMILAR,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Another seed draws other signatures; one seed always gives the same result.",
        show_default="0",
        metavar="N",
        rich_help_panel=SIMILAR,
    ),
]
BucketWindow = Annotated[
    int | None,
    typer.Option(
        help="In a bucket of more than 2W+1 documents each meets the first W and the W just before it. The summary "
        "counts such buckets; raise W if they matter.",
        show_default="64",
        metavar="W",
        rich_help_panel=SIMILAR,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="Which of two copies is better: first in the input, longest, max:COL or min:COL (a score, a date), or "
        "sources:COL=a,b,c (a before b before c before others).",
        show_default="first",
        metavar="RULE",
        rich_help_panel=STAY,
    ),
]
Within = Annotated[
    str | None,
    typer.Option(
        help="Compare only documents of equal value in this column, e.g. each crawl by itself.",
        show_default="none",
        metavar="COL",
        rich_help_panel=STAY,
    ),
]
Across = Annotated[
    str | None,
    typer.Option(
        help="Compare only documents of different value in this column, e.g. test against training.",
        show_default="none",
        metavar="COL",
        rich_help_panel=STAY,
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="The directory of an earlier run, whose kept documents rank first and stay: only what is new is kept. May "
        "be given several times.",
        show_default="none",
        metavar="RUN",
        rich_help_panel=STAY,
    ),
]
MaxRemoved = Annotated[
    float | None,
    typer.Option(
        help="Stop before anything is written if more than this share of all documents would be removed, or of the "
        "documents of one value of --guard-column.",
        show_default="none",
        metavar="SHARE",
        rich_help_panel=STAY,
    ),
]
GuardColumn = Annotated[
    str | None,
    typer.Option(
        help="A column, such as the source: the summary says what was removed of each value, and --max-removed "
        "holds for each, small ones too.",
        show_default="none",
        metavar="COL",
        rich_help_panel=STAY,
    ),
]
Clustering = Annotated[
    str | None,
    typer.Option(
        help="keepers: every removed document is similar to its keeper. components: chains of similar documents "
        "collapse to one, as in other tools.",
        show_default="keepers",
        metavar="keepers|components",
        rich_help_panel=STAY,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to compute, with the same results. auto takes a GPU that can be used; cuda:N is number N.",
        show_default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        rich_help_panel=MACHINE,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="What drives the stages: local is one process with native threads.",
        show_default="local",
        metavar="local",
        rich_help_panel=MACHINE,
    ),
]


@app.command(no_args_is_help=True)
def run(
    context: typer.Context,
    inputs: Inputs,
    out: Out,
    output: Output = None,
    on_error: OnError = None,
    config: Config = None,
    as_json: Json = False,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    fold: Fold = None,
    drop_empty: DropEmpty = None,
    threshold: Threshold = None,
    recall: Recall = None,
    shingle: Shingle = None,
    verify: Verify = None,
    num_perm: NumPerm = None,
    bands: Bands = None,
    rows: Rows = None,
    seed: Seed = None,
    bucket_window: BucketWindow = None,
    keep: Keep = None,
    within: Within = None,
    across: Across = None,
    against: Against = None,
    max_removed: MaxRemoved = None,
    guard_column: GuardColumn = None,
    clustering: Clustering = None,
    device: Device = None,
    engine: Engine = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Deduplicate INPUT: write the kept documents, the removals with their proofs, and a manifest to RUN.

    What is finished is committed as it goes. Stopped in whatever way, the same command goes on from there.
    """
    import gpudedup

    _continuable()
    with _progress() as progress:
        done = gpudedup.run(inputs, out, progress=progress, tell=_say, **_options(context, config))
    _tell_skipped(done)
    if as_json:
        _print_json({"run": done.name, **done.summary().asdict()})
    else:
        _show_run(done)


RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The directory of a run.", show_default=False)]


@app.command(no_args_is_help=True)
def sign(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...|RUN", help="As for run; or a run that was begun.", show_default=False),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            help="The directory of the run, with INPUT.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output: Output = None,
    on_error: OnError = None,
    config: Config = None,
    as_json: Json = False,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    fold: Fold = None,
    drop_empty: DropEmpty = None,
    threshold: Threshold = None,
    recall: Recall = None,
    shingle: Shingle = None,
    verify: Verify = None,
    num_perm: NumPerm = None,
    bands: Bands = None,
    rows: Rows = None,
    seed: Seed = None,
    bucket_window: BucketWindow = None,
    keep: Keep = None,
    within: Within = None,
    across: Across = None,
    against: Against = None,
    max_removed: MaxRemoved = None,
    guard_column: GuardColumn = None,
    clustering: Clustering = None,
    device: Device = None,
    engine: Engine = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Begin a run and do its first stage: read and sign every document. Or continue that stage of RUN."""
    import gpudedup
    from gpudedup.errors import ParameterError
    from gpudedup.io.remote import is_url
    from gpudedup.store.run_directory import holds_run

    options = _options(context, config)
    _continuable()
    with _progress() as progress:
        if out is not None:
            found = gpudedup.begin(inputs, out, progress=progress, tell=_say, **options)
        elif len(inputs) == 1 and (is_url(inputs[0]) or holds_run(Path(inputs[0]))):
            found = gpudedup.advance(inputs[0], "sign", progress=progress, tell=_say, **options)
        else:
            one = f"{inputs[0]} holds no run, and " if len(inputs) == 1 else ""
            raise ParameterError(f"{one}no directory for a new run was given; name it with --out")
    _show_status(found, as_json)


@app.command(no_args_is_help=True)
def match(
    context: typer.Context,
    path: RunPath,
    as_json: Json = False,
    id_column: IdColumn = None,
    keep: Keep = None,
    within: Within = None,
    across: Across = None,
    against: Against = None,
    bucket_window: BucketWindow = None,
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Find candidates of RUN; by another rule or scope if one is given: nothing is signed again."""
    _advance(context, path, "match", as_json)


@app.command(no_args_is_help=True)
def verify(
    context: typer.Context,
    path: RunPath,
    as_json: Json = False,
    threshold: Threshold = None,
    verify: Verify = None,
    clustering: Clustering = None,
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Compare the candidates of RUN; at a higher threshold if one is given: only what that leaves open is compared."""
    _advance(context, path, "verify", as_json)


@app.command(no_args_is_help=True)
def decide(
    context: typer.Context,
    path: RunPath,
    as_json: Json = False,
    threshold: Threshold = None,
    drop_empty: DropEmpty = None,
    max_removed: MaxRemoved = None,
    guard_column: GuardColumn = None,
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Decide who stays in RUN; at a higher threshold if one is given, as far as that takes no text."""
    _advance(context, path, "decide", as_json)


@app.command(no_args_is_help=True)
def apply(
    context: typer.Context,
    path: RunPath,
    as_json: Json = False,
    output: Output = None,
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Write the results of RUN: removals, kept documents or masks, and the manifest."""
    _advance(context, path, "apply", as_json)


@app.command(no_args_is_help=True)
def status(path: RunPath, as_json: Json = False) -> None:
    """Show how far RUN is, and which process is at it."""
    import gpudedup

    _show_status(gpudedup.status(path), as_json)


def _advance(context: typer.Context, path: str, stage: str, as_json: bool) -> None:
    import gpudedup

    options = _options(context, None)
    _continuable()
    with _progress() as progress:
        found = gpudedup.advance(path, stage, progress=progress, tell=_say, **options)
    _show_status(found, as_json)


def _show_status(found: Status, as_json: bool) -> None:
    from gpudedup.display import console, facts, status_rows

    if as_json:
        _print_json(found.asdict())
    else:
        console(sys.stdout).print(facts(status_rows(found)))


@app.command(no_args_is_help=True)
def plan(
    context: typer.Context,
    inputs: Inputs,
    out: PlanOut = None,
    output: Output = None,
    on_error: OnError = None,
    config: Config = None,
    as_json: Json = False,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    fold: Fold = None,
    drop_empty: DropEmpty = None,
    threshold: Threshold = None,
    recall: Recall = None,
    shingle: Shingle = None,
    verify: Verify = None,
    num_perm: NumPerm = None,
    bands: Bands = None,
    rows: Rows = None,
    seed: Seed = None,
    bucket_window: BucketWindow = None,
    keep: Keep = None,
    within: Within = None,
    across: Across = None,
    against: Against = None,
    max_removed: MaxRemoved = None,
    guard_column: GuardColumn = None,
    clustering: Clustering = None,
    device: Device = None,
    engine: Engine = None,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Sample INPUT and tell what a run with these options would be like: text, memory, disk, time. Writes nothing."""
    import gpudedup

    with _progress() as progress:
        found = gpudedup.plan(inputs, out, progress=progress, **_options(context, config))
    if as_json:
        _print_json(found.asdict())
    else:
        _show_plan(found)


def _show_plan(found: Plan) -> None:
    from rich.text import Text

    from gpudedup.display import console, facts, one_line, plan_rows

    out = console(sys.stdout)
    out.print(facts(plan_rows(found)))
    for unknown in found.unknown:
        out.print(Text(f"not known: {one_line(unknown)}"), soft_wrap=True)
    for warning in found.warnings:
        out.print(Text(f"warning: {one_line(warning)}", style="bold"), soft_wrap=True)


def _options(context: typer.Context, config: Path | None) -> dict[str, Any]:
    """The parameters from --config and the options given, which win; an empty value takes one back."""
    own = ("inputs", "path", "out", "config", "as_json")
    given = {name: value for name, value in context.params.items() if name not in own and value not in (None, [], ())}
    given |= {name: () if value != "" else None for name, value in given.items() if value in ("", [""], ("",))}
    return {**(_read_config(config) if config else {}), **given}


def _read_config(path: Path) -> dict[str, Any]:
    """Parameters from a TOML file. Raises ParameterError for what cannot be read and for unknown names."""
    import tomllib

    from gpudedup.errors import ParameterError
    from gpudedup.params import Params

    known = [name for name in (*Params.__struct_fields__, "engine", "output") if name != "keep_sets"]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"cannot read --config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, tables in tables in tables
        raise ParameterError(f"--config {path} is not TOML: {error}") from error
    for name in values:
        if name not in known:
            raise ParameterError(f"--config {path} has an unknown key {name!r}; known are {', '.join(known)}")
    return values


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A line on stderr while it is a terminal; else nothing."""
    if not sys.stderr.isatty():
        yield lambda stage, documents, text_bytes: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from gpudedup.display import console

    columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(stage: str, documents: int, text_bytes: int) -> None:
            size = f", {text_bytes / 1e6:,.0f} MB" if text_bytes else ""
            bar.update(task, description=f"{stage}: {documents:,} documents{size}")

        yield show


def _tell_skipped(done: Run) -> None:
    skipped = done.manifest.skipped
    for entry in skipped[:SKIPS_LISTED]:
        _say(f"skipped: {entry.reason}")
    if len(skipped) > SKIPS_LISTED:
        _say(f"skipped: {len(skipped) - SKIPS_LISTED} more places, listed in {done.name}/manifest.json")


def _show_run(done: Run) -> None:
    from rich.text import Text

    from gpudedup.display import console, facts, one_line, side_by_side, summary_rows
    from gpudedup.explain import example_pairs, unit_key

    out = console(sys.stdout)
    summary = done.summary()
    out.print(facts(summary_rows(summary)))
    pairs = example_pairs(done, EXAMPLE_PAIRS)
    if pairs:
        out.print(Text("\nSome near-copies, around their first difference:"))
    key = unit_key(summary.parameters)
    for pair in pairs:
        assert pair.keeper is not None
        left, right = pair.document, pair.keeper
        out.print(Text(f"\nsimilarity {pair.similarity:.3f}", style="bold"))
        out.print(facts([("removed", one_line(left.name)), ("keeper", one_line(right.name))]))
        titles = ("removed", "keeper")
        out.print(side_by_side(left.text or "", right.text or "", width=out.width, titles=titles, key=key))
    out.print()
    out.print(facts([(name, one_line(value)) for name, value in _outputs(done, pairs)]))


def _outputs(done: Run, pairs: list[Explanation]) -> Iterator[tuple[str, str]]:
    """What the run wrote and where; how to ask about one removal."""
    for kind, name in (("kept", "kept"), ("keep_mask", "mask")):
        sizes = [entry.size_bytes for entry in done.manifest.outputs if entry.kind == kind]
        if done.manifest.output == name:
            yield name, f"{done.name}/{kind}  ({len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB)"
    yield "removals", f"{done.name}/removed  (which row, which keeper, why, how similar)"
    yield "manifest", f"{done.name}/manifest.json"
    if pairs:
        words = [done.name, f"{pairs[0].document.shard}:{pairs[0].document.row}"]
        options = ["--"] if any(word.startswith("-") for word in words) else []
        yield "ask why", shlex.join(["gpudedup", "explain", *options, *words])


@app.command()
def info(
    as_json: Json = False,
    threshold: Threshold = None,
    recall: Recall = None,
    num_perm: NumPerm = None,
    bands: Bands = None,
    rows: Rows = None,
) -> None:
    """Show version, CPU tier, workers, memory, GPUs, and the bands that a threshold and a recall lead to."""
    import platform

    import msgspec
    import numpy
    import pyarrow

    import gpudedup
    from gpudedup import _cpu
    from gpudedup.backends import select_backend
    from gpudedup.backends.cuda.detect import detect
    from gpudedup.machine import default_memory_bytes
    from gpudedup.params import SPEC, make_params

    given = {"threshold": threshold, "recall": recall, "num_perm": num_perm, "bands": bands, "rows": rows}
    params = make_params({name: value for name, value in given.items() if value is not None})
    backend = select_backend(params)
    chosen = params.banding
    facts_of = {
        "version": gpudedup.__version__,
        "spec": SPEC,
        "device": backend.name,
        "device_reason": backend.reason,
        "cpu_tiers": _cpu.available_tiers().split(),
        "workers": backend.workers,
        "memory_bytes": default_memory_bytes(),
        "gpu": msgspec.to_builtins(detect()),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "threshold": params.threshold,
        "recall": params.recall,
        "num_perm": params.num_perm,
        "bands": chosen.bands,
        "rows": chosen.rows,
        "s_curve": chosen.s_curve(params.threshold),
    }
    if as_json:
        _print_json(facts_of)
    else:
        _show_info(facts_of, params)


def _show_info(facts_of: dict[str, Any], params: Params) -> None:
    from rich.table import Table
    from rich.text import Text

    from gpudedup.display import console, facts, gpu_rows

    given = params.bands is not None
    promise = "bands and rows as given" if given else f"for recall {params.recall:g} at threshold {params.threshold:g}"
    out = console(sys.stdout)
    out.print(
        facts(
            [
                ("gpudedup", f"{facts_of['version']}, spec {facts_of['spec']}"),
                ("device", f"{facts_of['device']}; {facts_of['device_reason']}"),
                ("CPU tiers", f"{' '.join(facts_of['cpu_tiers'])} (GPUDEDUP_CPU forces one)"),
                ("workers", f"{facts_of['workers']}"),
                ("memory", f"{facts_of['memory_bytes'] / 1e9:.1f} GB unless --memory says otherwise"),
                *gpu_rows(facts_of["gpu"]),
                ("python", f"{facts_of['python']}, numpy {facts_of['numpy']}, pyarrow {facts_of['pyarrow']}"),
                ("bands x rows", f"{facts_of['bands']} x {facts_of['rows']} of {params.num_perm} lanes, {promise}"),
            ]
        )
    )
    table = Table(title=None)
    table.add_column("similarity", justify="right")
    table.add_column("chance to be compared", justify="right")
    for similarity, chance in facts_of["s_curve"]:
        at = abs(similarity - params.threshold) < 1e-9
        table.add_row(Text(f"{similarity:.2f}"), Text(f"{chance:.4f}"), style="bold" if at else "")
    out.print(table)


@app.command(no_args_is_help=True)
def explain(
    path: RunPath,
    document: Annotated[
        str,
        typer.Argument(
            metavar="ROW|ID",
            help="SHARD:ROW, ROW alone if the run has one shard, or an id. row=N and id=X say which is meant.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Tell why a document was removed, for which keeper, and how the two differ; or for whom it was kept."""
    import gpudedup
    from gpudedup.explain import explain as explain_document
    from gpudedup.explain import unit_key

    run = gpudedup.Run.open(path)
    explanation = explain_document(run, document)
    if as_json:
        _print_json(explanation.asdict())
    else:
        _show_explanation(explanation, unit_key(run.summary().parameters))


def _show_explanation(explanation: Explanation, key: Key) -> None:
    from rich.table import Table
    from rich.text import Text

    from gpudedup.display import bounded_diff, console, diff_text, excerpt, facts, one_line, visible

    out = console(sys.stdout)
    document, keeper = explanation.document, explanation.keeper
    rows = [("document", one_line(document.name)), ("status", explanation.status)]
    if explanation.reason is not None:
        rows.append(("reason", explanation.reason))
    if keeper is not None:
        rows.append(("keeper", one_line(keeper.name)))
    if explanation.similarity is not None:
        rows.append(("similarity", f"{explanation.similarity:.6g} (threshold {explanation.threshold:g})"))
    rows.append(("because", visible(explanation.rule)))
    if explanation.note:
        rows.append(("note", one_line(explanation.note)))
    out.print(facts(rows))
    if explanation.removed_for_it:
        table = Table()
        for title in ("removed for it", "reason", "similarity"):
            table.add_column(title, overflow="fold")
        for removal in explanation.removed_for_it[:REMOVALS_LISTED]:
            similarity = "" if removal.similarity is None else f"{removal.similarity:.3f}"
            table.add_row(Text(one_line(removal.document.name)), Text(removal.reason), Text(similarity))
        out.print(table)
        rest = len(explanation.removed_for_it) - REMOVALS_LISTED
        if rest > 0:
            out.print(Text(f"... and {rest:,} more; --json lists all"))
    if document.text is None:
        return
    out.print()
    changes: list[Change] = []
    cut = None
    if keeper is not None and keeper.text is not None:
        changes, cut = bounded_diff(document.text, keeper.text, key)
    if cut:
        out.print(Text(f"({cut})"))
    if any(not change.equal for change in changes):
        out.print(Text("[-only in the removed document-] {+only in its keeper+}", style="bold"))
        out.print(diff_text(changes))
        return
    for title, one in (("removed", document), ("keeper", keeper)) if keeper else (("", document),):
        if one is not None and one.text is not None:
            out.print(Text(title, style="bold") if title else "")
            out.print(Text(visible(excerpt(one.text, 0, 600))))


@app.command(no_args_is_help=True)
def audit(
    path: RunPath,
    as_json: Json = False,
    workers: Workers = None,
    memory: Memory = None,
    tmp: Tmp = None,
) -> None:
    """Check a run again: its files, its input, every removal by both texts, and the rows that were kept.

    Exit code 4 if files of the run are damaged or do not agree, 3 if only the input was changed or cannot be read.
    """
    import gpudedup

    with _progress() as progress:
        found = gpudedup.Run.open(path).audit(workers=workers, memory=memory, tmp=tmp, progress=progress)
    if as_json:
        _print_json(found.asdict())
    else:
        _show_audit(found)
    raise typer.Exit(found.exit_code)


def _show_audit(found: Audit) -> None:
    from rich.text import Text

    from gpudedup.display import console, facts, one_line

    out = console(sys.stdout)
    out.print(facts([(check.name, f"{check.count:,} checked in {check.seconds:.2f} s") for check in found.checks]))
    for reason in found.not_checked:
        out.print(Text(f"not checked: {one_line(reason)}"), soft_wrap=True)
    for problem in found.problems[:PROBLEMS_LISTED]:
        out.print(Text(f"problem: {one_line(problem)}"), soft_wrap=True)
    rest = found.problem_count - len(found.problems[:PROBLEMS_LISTED])
    if rest > 0:
        out.print(Text(f"... and {rest:,} more problems; --json lists up to 100"))
    verdict = f"{found.problem_count:,} problems" if found.problem_count else "everything that was checked agrees"
    out.print(Text(verdict, style="bold"))
