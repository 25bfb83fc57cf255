"""manifest.json: what a run was made of, what it found, and what it wrote, with sizes and checksums."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from gpudedup.errors import ArtefactError, OutputError
from gpudedup.io.source import Fingerprint
from gpudedup.machine import Machine
from gpudedup.store import sealed
from gpudedup.store.stopping import checkpoint

FORMAT = 2
"""Number of the layout of run directories."""

NAME = "manifest.json"
MAX_BYTES = 1 << 30
MAX_UNFINISHED_BYTES = MAX_BYTES // 4
"""Of the manifest that a run begins with; that which it ends with names outputs too, two or three of each input."""

MAKE_ANEW = "delete it and give the command that began the run again: what is signed stays"
"""The way out of a damaged manifest."""

MAX_COUNT = 1 << 53
"""More than there can be of anything; sums of many are below 2^63."""

RESULTS = ("removed", "kept", "keep_mask")
"""The folders of a run that are for its user."""

WORKING = ("signatures", "columns", "match", "verify", "decide")
"""The folders of what a run is continued from, and later runs compare with."""


class InputEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One input file as it was read. ``rows`` counts damaged ones too; 0 until the file was signed."""

    path: str
    size_bytes: int
    mtime_ns: int
    rows: int
    etag: str | None = None
    """What an object store says of the content, if it does."""
    xxh3_128: str = ""
    """Of the bytes that were read; "" for remote files, whose bytes are read once, and of data that was not signed."""
    task: int = 0
    """The task of `sign` that it belongs to."""


class OutputEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the run; ``path`` is relative to the run directory, with "/"."""

    path: str
    kind: str
    shard: str
    """The input file that it is of; "" if it is of data in memory, or of all plain text files together."""
    size_bytes: int
    xxh3_128: str
    rows: int | None
    """Rows in the file; None for kept/ in another format than Parquet."""


def working_entry(name: str, size_bytes: int, xxh3_128: str) -> OutputEntry:
    """The entry of a working artefact: ``name`` begins with its folder."""
    kind = name.partition("/")[0]
    return OutputEntry(path=name, kind=kind, shard="", size_bytes=size_bytes, xxh3_128=xxh3_128, rows=None)


class SkippedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What on_error="skip" left out, as gpudedup.io.Skipped."""

    shard: str
    first_row: int | None
    count: int
    reason: str
    size_bytes: int = 0
    """Of a whole file, as it was found: another one may be readable."""
    mtime_ns: int = 0


class RemovedShare(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed of the documents with one value of the guard column; ``share`` is removed / documents."""

    value: str | None
    documents: int
    removed: int
    share: float


class AgainstEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier run that this one was compared with."""

    path: str
    digest: str
    """Of what it kept, when it was compared with (``engines.lineage.kept_digest``)."""
    documents: int
    """Those that it kept."""


class Manifest(sealed.Sealed, frozen=True, kw_only=True):
    """All that a run directory says about itself."""

    format: int
    spec: int
    version: str
    """Of gpudedup."""
    state: str
    """ "unfinished" from the start, "complete" when all else is written."""
    created: str
    """When this was written; UTC, ISO 8601."""
    digest: str = ""
    """Of the results: of all parameters and inputs that they follow from."""
    results: str = ""
    """The digest of the results that are there, whole or in part; of an earlier decision while another is made."""
    output: str
    """kept, mask or none."""
    parameters: dict[str, Any]
    bands: int
    rows: int
    lowest_threshold: float = 0.0
    """What the bands were chosen for: the run can be decided again at any threshold from there."""
    counts: dict[str, int]
    seconds: dict[str, float]
    inputs: list[InputEntry]
    outputs: list[OutputEntry]
    skipped: list[SkippedEntry]
    device: str = ""
    device_reason: str = ""
    machine: Machine | None = None
    working_directory: str = ""
    """Where relative input paths begin; "" if there are none (or it has a name that is not UTF-8)."""
    removed_shares: list[RemovedShare] = msgspec.field(default_factory=list)
    """For the values of the guard column with most documents."""
    column_types: dict[str, str] = msgspec.field(default_factory=dict)
    """Of the carried columns."""
    against: list[AgainstEntry] = msgspec.field(default_factory=list)


def encode(manifest: Manifest) -> bytes:
    """Readable JSON with one value a line, and its checksum. Raises OutputError for more than can be read again."""
    data = sealed.seal(manifest)
    limit = MAX_BYTES if manifest.state == "complete" else MAX_UNFINISHED_BYTES
    if len(data) > limit:
        raise OutputError(
            f"a manifest of {len(manifest.inputs)} input files would have {len(data)} bytes, more than {limit}; make "
            "several runs of them, or put the documents into fewer, larger files"
        )
    return data


def read(directory: Path, *, unfinished: bool = False) -> Manifest:
    """The manifest of a finished run, or with ``unfinished`` of any. Raises ArtefactError if there is none, or none
    that can be believed.
    """
    path = directory / NAME
    try:
        data = sealed.read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise ArtefactError(f"{directory} holds no {'' if unfinished else 'finished '}run: it has no {NAME}") from None
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
    try:
        manifest = sealed.decode(data, Manifest, path)
    except ArtefactError as error:
        raise ArtefactError(f"{error}; {MAKE_ANEW}") from error
    if manifest.format != FORMAT:
        raise ArtefactError(f"{path} has format {manifest.format}, this version of gpudedup reads format {FORMAT}")
    if not sealed.is_whole(data, manifest.checksum):
        raise ArtefactError(f"{path} is not what was written: its checksum differs; {MAKE_ANEW}")
    if manifest.state != "complete" and not (unfinished and manifest.state == "unfinished"):
        raise ArtefactError(
            f'{path} is in state {manifest.state!r}, not "complete"; finish the run with the command that began it'
        )
    real: set[str] = set()
    for entry in manifest.outputs:
        safe_path(directory, entry, RESULTS, real)
        if not can_be(entry.size_bytes, entry.rows or 0):
            raise ArtefactError(f"{path} gives {entry.path!r} {entry.size_bytes} bytes and {entry.rows} rows")
    for source in manifest.inputs:
        if not can_be(source.size_bytes, source.rows, source.task):
            raise ArtefactError(
                f"{path} gives {source.path!r} {source.size_bytes} bytes, {source.rows} rows and task {source.task}"
            )
    for earlier in manifest.against:
        if not can_be(earlier.documents):
            raise ArtefactError(f"{path} gives the earlier run {earlier.path!r} {earlier.documents} documents")
    return manifest


def can_be(*counts: int) -> bool:
    """Whether there can be as many of something."""
    return all(0 <= count < MAX_COUNT for count in counts)


def safe_path(directory: Path, entry: OutputEntry, kinds: Sequence[str], real: set[str] | None = None) -> Path:
    """The path of an artefact of one of ``kinds`` within ``directory``. Raises ArtefactError for one that could lead
    elsewhere.

    ``real``: folders that are known to be no links; those of the entry are added.
    """
    parts = entry.path.split("/")
    if (
        entry.kind not in kinds
        or len(parts) < 2
        or parts[0] != entry.kind
        or not {"", ".", ".."}.isdisjoint(parts)
        or "\0" in entry.path
    ):
        raise ArtefactError(f"{directory} lists {entry.path!r} as {entry.kind!r}, which is no file of a run")
    path = str(directory)
    for place, part in enumerate(parts, start=1):
        path = os.path.join(path, part)
        if real is not None and path in real:
            continue
        if os.path.islink(path):
            raise ArtefactError(f"{path} is a symbolic link, which no run writes")
        if real is not None and place < len(parts):
            real.add(path)
    return Path(path)


def is_unchanged(entry: InputEntry, now: Fingerprint, path: str) -> bool:
    """Whether a file is what a run read: its size is, and its tag or its time, or else its bytes. Raises OSError."""
    if now.size_bytes != entry.size_bytes:
        return False
    tagged = entry.etag is not None and now.etag is not None
    if now.etag == entry.etag if tagged else now.mtime_ns == entry.mtime_ns:
        return True
    return entry.xxh3_128 != "" and checksum(Path(path)) == entry.xxh3_128


def checksum(path: Path) -> str:
    """XXH3 of a file's bytes, 128 bits, hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checkpoint()
            digest.update(block)
    return digest.hexdigest()
