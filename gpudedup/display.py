"""Text for a terminal: corpus text made harmless, summaries, similar documents side by side, word diffs.

Corpus text is hostile until shown otherwise. It reaches a terminal through `visible` only, and as `rich.text.Text`, in
which no markup is interpreted.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gpudedup.engines.status import Status
    from gpudedup.planning import Plan
    from gpudedup.stages.sample import Estimate
    from gpudedup.summary import Summary

SIDE_BY_SIDE_COLUMNS = 72
"""A narrower terminal shows two texts one below the other."""

MAX_DIFF_WORDS = 3000
"""Longer differences are shown as removed and added as a whole: the time of a word diff grows with their product."""

DIFF_CHARACTERS, DIFF_LINES = 1 << 18, 5000
"""Of a longer text, a diff shows this much from the first difference on."""

SEARCHED_CHARACTERS = 1 << 22
"""How far into the texts the first difference is looked for."""

_FIRST_WINDOW, _LAST_WINDOW = 1 << 12, 1 << 18

REMOVED_STYLE, KEEPER_STYLE = "red", "green"

# Control, format (bidirectional, zero-width, tags), surrogate, private, unassigned; line and paragraph separator.
_HIDDEN_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_SINGLES = (
    r"\u2E80-\u2FDF\u3005-\u3007\u3021-\u30FF\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0003FFFD"
)
_MARKS = r"\u0300-\u036F\u00AD\u200B-\u200D"
_WORD = re.compile(
    # Kana and Han one by one, other runs of letters, marks and digits whole, each with what separates it from the next.
    rf"(?:[{_SINGLES}]|(?:[^\W{_SINGLES}]|[{_MARKS}])+)[^\w{_MARKS}]*|[^\w{_MARKS}]+"
)

Key = Callable[[Sequence[str]], Sequence[Hashable]]
"""Gives each word (or paragraph) what it is compared by."""


def console(file: TextIO) -> Console:
    """A console that interprets nothing in what it prints; colours only on a terminal and without NO_COLOR."""
    return Console(file=file, markup=False, highlight=False, emoji=False, soft_wrap=False)


def visible(text: str) -> str:
    """``text`` with every character that could steer a terminal or hide in it written out, as in ``<U+202E>``.

    Line feeds stay, CR LF becomes LF, a tab one blank.
    """
    text = text.replace("\r\n", "\n").replace("\t", " ")
    if text.isascii() and text.replace("\n", " ").isprintable():
        return text
    return "".join(character if _is_plain(character) else f"<U+{ord(character):04X}>" for character in text)


def _is_plain(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in _HIDDEN_CATEGORIES


def one_line(text: str) -> str:
    """``text`` made visible, on one line."""
    return " ".join(visible(text).split())


def words(text: str) -> list[str]:
    """``text`` cut into words, each with the blanks and punctuation after it; nothing is lost."""
    return _WORD.findall(text)


def as_written(items: Sequence[str]) -> Sequence[Hashable]:
    """The key under which every difference shows."""
    return items


def first_difference(left: str, right: str, key: Key = as_written) -> tuple[int, int]:
    """Where two texts begin to differ as words: (offset in left, offset in right); (0, 0) if they never do.

    Looks at ``SEARCHED_CHARACTERS`` of either, window by window, and says (0, 0) too if it finds nothing there.
    """
    left_at = right_at = 0
    window = _FIRST_WINDOW
    while left_at < len(left) and right_at < len(right):
        if max(left_at, right_at) >= SEARCHED_CHARACTERS:
            return 0, 0
        left_words, right_words = _words_from(left, left_at, window), _words_from(right, right_at, window)
        count = min(len(left_words), len(right_words))
        left_words, right_words = left_words[:count], right_words[:count]
        keys = zip(key(left_words), key(right_words), strict=True)
        for left_word, right_word, (left_key, right_key) in zip(left_words, right_words, keys, strict=True):
            if left_key != right_key:
                return left_at, right_at
            left_at += len(left_word)
            right_at += len(right_word)
        window = min(4 * window, _LAST_WINDOW)
    if left_at < len(left) or right_at < len(right):
        return left_at, right_at
    return 0, 0


def _words_from(text: str, at: int, window: int) -> list[str]:
    """The words that are whole in the next ``window`` characters; of a word longer than that, a piece."""
    found = words(text[at : at + window])
    return found[:-1] if at + window < len(text) and len(found) > 1 else found


def excerpt(text: str, center: int, length: int) -> str:
    """At most ``length`` characters of ``text`` around ``center``, cut at words, with ``...`` where it was cut."""
    first = max(0, center - length // 3)
    last = min(len(text), first + length)
    if first > 0:
        blank = text.find(" ", first, min(first + 20, center))
        first = blank + 1 if blank >= 0 else first
    if last < len(text):
        blank = text.rfind(" ", max(first, last - 20), last)
        last = blank if blank > 0 else last
    return ("... " if first else "") + text[first:last].strip() + (" ..." if last < len(text) else "")


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch of a word diff: equal on both sides (as far as the key tells), or not."""

    equal: bool
    removed: str
    keeper: str


def word_diff(removed: str, keeper: str, key: Key = as_written) -> list[Change]:
    """Stretches that turn one text into the other: by paragraphs, then by words in paragraphs that differ."""
    changes: list[Change] = []
    removed_lines, keeper_lines = (re.findall(r"[^\n]*\n+|[^\n]+", text) for text in (removed, keeper))
    for equal, left, right in _aligned(removed_lines, keeper_lines, key):
        left_words, right_words = words("".join(left)), words("".join(right))
        if equal or max(len(left_words), len(right_words)) > MAX_DIFF_WORDS:
            changes.append(Change(equal, "".join(left), "".join(right)))
        else:
            changes += [Change(same, "".join(a), "".join(b)) for same, a, b in _aligned(left_words, right_words, key)]
    return changes


def bounded_diff(removed: str, keeper: str, key: Key = as_written) -> tuple[list[Change], str | None]:
    """`word_diff` of as much as can be compared quickly, and what of longer texts was left out (None: nothing)."""
    parts = (_beginning(removed, 0), _beginning(keeper, 0))
    if parts == (removed, keeper):
        return word_diff(removed, keeper, key), None
    left_at, right_at = first_difference(removed, keeper, key)
    parts = (_beginning(removed, left_at), _beginning(keeper, right_at))
    changes = word_diff(*parts, key)
    if len(changes) > 1 and not changes[-1].equal:  # the texts were cut there, not at equal places
        changes.pop()
    note = f"the texts are long: compared are {DIFF_CHARACTERS:,} characters or {DIFF_LINES:,} lines of either, "
    if left_at or right_at:
        before = Change(True, *(text[max(0, at - 500) : at] for text, at in ((removed, left_at), (keeper, right_at))))
        return [before, *changes], note + f"from the first difference on (at character {left_at:,})"
    if all(change.equal for change in changes):
        return changes, f"the texts are long, and their first {SEARCHED_CHARACTERS:,} characters show no difference"
    return changes, note + "from the beginning"


def _beginning(text: str, at: int) -> str:
    text = text[at : at + DIFF_CHARACTERS]
    lines = text.split("\n", DIFF_LINES)
    return text[: len(text) - len(lines[-1])] if len(lines) > DIFF_LINES else text


def _aligned(
    left: Sequence[str], right: Sequence[str], key: Key
) -> Iterator[tuple[bool, Sequence[str], Sequence[str]]]:
    matcher = difflib.SequenceMatcher(None, key(left), key(right))
    for tag, a, b, c, d in matcher.get_opcodes():
        yield tag == "equal", left[a:b], right[c:d]


def diff_text(changes: Sequence[Change], *, context: int = 60, most: int = 40) -> Text:
    """A word diff in one text: ``[-only in the removed one-]``, ``{+only in the keeper+}``, and around them ``context``
    characters of what both have; after ``most`` differences it says how many more there are."""
    out = Text()
    shown = 0
    for number, change in enumerate(changes):
        if change.equal:
            out.append(_shared(visible(change.removed), context, number == 0, number == len(changes) - 1))
            continue
        shown += 1
        if shown > most:
            rest = sum(not later.equal for later in changes[number:])
            out.append(f"\n... and {rest} more differences", style="bold")
            break
        if change.removed:
            out.append(f"[-{_long(visible(change.removed))}-]", style=REMOVED_STYLE)
        if change.keeper:
            out.append(f"{{+{_long(visible(change.keeper))}+}}", style=KEEPER_STYLE)
    return out


def _shared(text: str, context: int, first: bool, last: bool) -> str:
    if len(text) <= 2 * context + 5:
        return text
    head = "" if first else text[:context]
    tail = "" if last else text[-context:]
    return f"{head} ... {tail}"


def _long(text: str, most: int = 1200) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most} more characters)"


def side_by_side(
    left: str, right: str, *, width: int, titles: tuple[str, str], key: Key = as_written, lines: int = 6
) -> Table:
    """Two texts around their first difference, next to each other if ``width`` allows; differing words in colour."""
    narrow = width < SIDE_BY_SIDE_COLUMNS
    column = width - 4 if narrow else (width - 7) // 2
    left_at, right_at = first_difference(left, right, key)
    cells = []
    for text, at in ((left, left_at), (right, right_at)):
        # Wide characters take two columns: Chinese gets half as many.
        around = text[max(0, at - 200) : at + 200]
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in around) > len(around) // 3
        cells.append(one_line(excerpt(text, at, column * lines // (2 if wide else 1))))
    shown = (Text(), Text())
    for equal, a, b in _aligned(words(cells[0]), words(cells[1]), key):
        shown[0].append("".join(a), style="" if equal else REMOVED_STYLE)
        shown[1].append("".join(b), style="" if equal else KEEPER_STYLE)
    table = Table(expand=False, show_lines=narrow)
    if narrow:
        table.add_column(width=column, overflow="fold", header=Text(titles[0] + ", below it: " + titles[1]))
        table.add_row(shown[0])
        table.add_row(shown[1])
    else:
        for title in titles:
            table.add_column(width=column, overflow="fold", header=Text(title))
        table.add_row(*shown)
    return table


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values in two columns without lines."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def gpu_rows(gpu: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `backends.cuda.detect` found (its fields by name), as names and values."""
    rows = [
        (
            f"GPU {one['index']}",
            f"{one['name']}, compute capability {one['capability']}, {one['memory_bytes'] / 1e9:.1f} GB",
        )
        for one in gpu["gpus"]
    ]
    if gpu["reason"] is not None:
        rows.append(("GPU", f"none can be used: {gpu['reason']}"))
    versions = (
        ("driver", gpu["driver"]),
        ("driver's CUDA", gpu["driver_cuda"]),
        ("CuPy", gpu["cupy"]),
        ("CuPy's CUDA", gpu["cupy_cuda"]),
        ("NVRTC", gpu["nvrtc"]),
    )
    known = ", ".join(f"{name} {version}" for name, version in versions if version is not None)
    return [*rows, ("CUDA", known)] if known else rows


def s_curve_line(s_curve: Sequence[tuple[float, float]]) -> str:
    """``0.60:0.400  0.65:0.595 ...``: similarity and the chance to be compared."""
    return "  ".join(f"{similarity:.2f}:{chance:.3f}" for similarity, chance in s_curve)


def status_rows(status: Status) -> list[tuple[str, str]]:
    """How far a run is."""
    rows = [("run", one_line(status.run)), ("state", status.state), ("input", f"{status.files:,} files")]
    for stage in status.stages:
        of = "?" if stage.tasks is None else f"{stage.tasks:,}"
        size = f", {stage.artefact_bytes / 1e6:,.1f} MB" if stage.artefact_bytes else ""
        rows.append((stage.name, f"{stage.done:,} of {of} tasks{size}, {stage.seconds:,.1f} s"))
    if status.owner is not None:
        rows.append(("driven by", one_line(f"{status.owner.host}, process {status.owner.pid}")))
    return rows


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """A run's summary as names and values."""
    total = sum(summary.seconds.values())
    megabytes = summary.text_bytes / 1e6
    share = f" ({summary.removed / summary.documents:.1%})" if summary.documents else ""
    compared = {"exact": "shingle sets", "signature": "signatures", "none": "nothing"}[summary.parameters.verify]
    rows = [
        ("documents", f"{summary.documents:,} ({megabytes:,.1f} MB of text)"),
        ("kept", f"{summary.kept:,}"),
        ("removed", f"{summary.removed:,}{share}, for {summary.clusters:,} keepers"),
        ("  exact", f"{summary.exact:,} (the same words in the same order)"),
        ("  near", f"{summary.near:,} (similarity >= {summary.threshold:g}, compared by {compared})"),
    ]
    if summary.parameters.against:
        rows.append(("  for earlier runs", f"{summary.removed_for_earlier:,}"))
    if summary.parameters.drop_empty:
        rows.append(("  empty", f"{summary.removed_empty:,}"))
    elif summary.empty:
        rows.append(("  empty, kept", f"{summary.empty:,}"))
    if summary.removed_shares:
        shares = [
            f"{'null' if one.value is None else one_line(one.value)}: {one.removed:,} of {one.documents:,} "
            f"({one.share:.1%})"
            for one in summary.removed_shares
        ]
        rows.append((f"  by {one_line(summary.parameters.guard_column or '')}", "\n".join(shares)))
    if summary.skipped or summary.skipped_files:
        files = f", and {summary.skipped_files:,} whole files" if summary.skipped_files else ""
        rows.append(("skipped", f"{summary.skipped:,} rows that could not be read{files}"))
    bounded = "none"
    if summary.bounded_buckets:
        bounded = (
            f"{summary.bounded_buckets:,} with {summary.bounded_documents:,} documents, the longest "
            f"{summary.longest_bucket:,}; in them not all pairs were compared (bucket_window)"
        )
    rows += [
        ("bands x rows", f"{summary.bands} x {summary.rows} of {summary.parameters.num_perm} lanes"),
        ("chance to compare", s_curve_line(summary.s_curve)),
        ("pairs compared", f"{summary.compared_pairs:,}"),
        ("bounded buckets", bounded),
        # Why, without the way out, which `gpudedup info` tells: a CPU is nothing to be mended.
        ("device", f"{summary.device}, {summary.workers} workers; {summary.device_reason.partition('; ')[0]}"),
        ("seconds", "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in summary.seconds.items())),
        ("in all", f"{total:.2f} s" + (f", {megabytes / total:,.1f} MB/s" if total > 0 else "")),
    ]
    return rows


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """A plan as names and values."""

    def size(count: float) -> str:
        return f"{count / 1e6:,.1f} MB"

    def total(estimate: Estimate, unit: Callable[[float], str]) -> str:
        if estimate.counted:
            return f"{unit(estimate.value)}, counted"
        spread = "of unknown spread" if estimate.spread is None else f"give or take {unit(estimate.spread)}"
        return f"about {unit(estimate.value)}, {spread}"

    params = plan.parameters
    found = f"{plan.sample_exact:,} exact and {plan.sample_near:,} near copies removed, {plan.sample_compared:,} pairs"
    low, high = (sum(times[place] for times in plan.seconds.values()) for place in (0, 1))
    stages = [f"{name} {_span(*times)}" for name, times in plan.seconds.items()]
    return [
        ("input", f"{plan.files:,} files, {size(plan.stored_bytes)} {plan.format}"),
        ("documents", total(plan.documents, "{:,.0f}".format)),
        ("text", total(plan.text_bytes, size)),
        ("sample", f"{plan.sample}: {plan.sample_documents:,} documents, {size(plan.sample_text_bytes)}"),
        ("  in it", f"{plan.sample_sharing:,} share a bucket; {found} compared"),
        ("bands x rows", f"{plan.bands} x {plan.rows} of {params.num_perm} lanes"),
        ("chance to compare", s_curve_line(plan.s_curve)),
        (
            "memory",
            f"{size(plan.memory_bytes)} (memory) and {size(plan.held_bytes)} for documents, of "
            f"{size(plan.available_memory_bytes)} that are free",
        ),
        (
            "signatures",
            f"and what else a run is continued from: about {size(plan.working_bytes)}, of "
            f"{size(plan.output_free_bytes)} that are free",
        ),
        ("output", f"at most {size(plan.output_bytes)}, of {size(plan.output_free_bytes)} that are free"),
        ("tmp", f"at most {size(plan.spill_bytes)}, of {size(plan.spill_free_bytes)} that are free"),
        ("device", plan.device),
        ("seconds", "  ".join(stages)),
        ("in all", f"{_span(low, high)} s, by the rates of the sample on this machine"),
    ]


def _span(low: float, high: float) -> str:
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def harmless_streams() -> None:
    """Let stdout and stderr write any character, and be written to where they were closed.

    What their encoding lacks is written as an escape.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
