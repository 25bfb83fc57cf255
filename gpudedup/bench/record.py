"""What is written down of a case: one line of JSON, with all that is needed to measure it again."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from gpudedup.errors import InputError
from gpudedup.store.atomic import atomic_file

FORMAT = 1
"""Of a record; another one is refused."""

LARGEST_FILE = 64 << 20
"""Bytes of a file of records; one record takes some 2 kB."""

Value = bool | int | float | str | None


class Spread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of the repeats of a case."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        return cls(median=median(seconds), least=min(seconds), most=max(seconds))

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.median <= self.most < math.inf:
            raise ValueError(f"seconds must be ordered and finite, got {self.least}, {self.median}, {self.most}")


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine and the software, without names or paths."""

    system: str
    cpu: str
    cores: int
    """That this process may use."""
    memory_bytes: int
    gpus: tuple[str, ...]
    python: str
    pyarrow: str
    numpy: str


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text of a case."""

    name: str
    documents: int
    text_bytes: int


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A case: measured, or why it could not be (``cannot``)."""

    suite: str
    case: str
    """Unique in its suite for a device; two results of equal suite, case and device can be compared."""
    date: str
    """UTC, ISO 8601."""
    version: str
    """Of the program measured: gpudedup, or the peer named in ``program``."""
    host: Host
    device: str
    """As in "cpu (avx512)" or "cuda:0 (NAME)"."""
    seed: int
    format: int = FORMAT
    program: str = "gpudedup"
    commit: str | None = None
    """Of gpudedup's source, where it is a checkout; with + if files differ from it."""
    parameters: dict[str, Value] = {}
    corpus: Text | None = None
    clock: str = ""
    """What is inside the clock, in words."""
    checked: str = ""
    """How the result was checked before it counted, in words."""
    repeats: int = 0
    seconds: Spread | None = None
    """Wall seconds of one repeat."""
    cpu_seconds: float | None = None
    """Median over the repeats; of all threads and of children."""
    peak_bytes: int | None = None
    """The largest RssAnon + RssShmem seen, of all processes of the case."""
    load: float | None = None
    """Processes that wanted a core, on average over the minute before. Other work beside the case shows here."""
    figures: dict[str, float] = {}
    """By name; the unit ends the name: text_megabytes_per_second, sign_seconds, recall_share."""
    curves: dict[str, list[float]] = {}
    """Lists of equal length that make curves, such as similarity and recall."""
    cannot: str | None = None
    """Why the case could not be run here; then nothing was measured."""

    def __post_init__(self) -> None:
        numbers = [*self.figures.values(), *(value for curve in self.curves.values() for value in curve)]
        numbers += [value for value in self.parameters.values() if isinstance(value, float)]
        numbers += [value for value in (self.cpu_seconds, self.load) if value is not None]
        if not all(math.isfinite(value) for value in numbers):
            raise ValueError(f"figures of {self.suite} {self.case} must be finite numbers")
        if len({len(curve) for curve in self.curves.values()}) > 1:
            raise ValueError(f"curves of {self.suite} {self.case} must be of equal length")
        if self.cannot is None and self.seconds is None and not self.figures:
            raise ValueError(f"{self.suite} {self.case} has neither figures nor a reason why not")
        if self.cannot is not None and (self.seconds is not None or self.figures):
            raise ValueError(f"{self.suite} {self.case} has figures and a reason why there are none")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Suite, case, program and device: what two results must have in common to be compared."""
        return self.suite, self.case, self.program, self.device

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def new_record(suite: str, case: str, **fields: Any) -> Record:
    """A Record of now, of this machine and of this gpudedup."""
    own: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("gpudedup"),
        "host": host(),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }
    return Record(suite=suite, case=case, **{**own, **fields})


@cache
def host() -> Host:
    """This machine. A GPU is named whether it can be used or not."""
    from gpudedup.backends.cuda.detect import detect
    from gpudedup.machine import description

    found = description()
    return Host(
        system=found.system,
        cpu=found.cpu,
        cores=found.workers,
        memory_bytes=found.memory_bytes,
        gpus=tuple(gpu.name for gpu in detect().gpus),
        python=found.python,
        pyarrow=found.pyarrow,
        numpy=found.numpy,
    )


@cache
def commit() -> str | None:
    """The commit of the checkout that this package lies in; None of an installed one, or without git."""
    root = Path(__file__).resolve().parents[2]
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "gpudedup", "csrc"], capture_output=True, text=True
        )
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


# ----------------------------------------------------------------------------------------------------------- JSON lines


def to_line(record: Record) -> str:
    """One line of ASCII JSON, without its end."""
    return json.dumps(record.asdict(), ensure_ascii=True).replace("\x7f", "\\u007f")


def write_records(path: Path, records: Iterable[Record]) -> None:
    """A file of JSON lines, whole or absent. Raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_text("".join(to_line(record) + "\n" for record in records))


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file that `write_records` made. Raises InputError, naming the line that is none."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}; name a results.jsonl of gpudedup bench") from None
    if len(data) > LARGEST_FILE:
        raise InputError(f"{name} is longer than {LARGEST_FILE} bytes and so no result of gpudedup bench")
    records = [_record(line, name, number) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not records:
        raise InputError(f"{name} is empty; name a results.jsonl of gpudedup bench")
    return records


class _Format(msgspec.Struct):
    format: int


def _record(line: bytes, name: str, number: int) -> Record:
    try:
        made_by = msgspec.json.decode(line, type=_Format).format
        if made_by != FORMAT:
            raise InputError(
                f"{name}, line {number}, is of format {made_by}, and this gpudedup reads {FORMAT}; use another gpudedup"
            )
        return msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name}, line {number}, is no result of gpudedup bench: {error}; name a results.jsonl that it wrote"
        ) from None
