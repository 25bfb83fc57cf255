"""manifest.json: what a run was made of, what it found, and what it wrote, with sizes and checksums."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from gpudedup.errors import ArtefactError
from gpudedup.machine import Machine
from gpudedup.store.stopping import checkpoint

FORMAT = 1
"""Number of the layout of run directories."""

NAME = "manifest.json"
MAX_BYTES = 1 << 30
KINDS = ("removed", "kept", "keep_mask")


class InputEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One input file as it was read. ``rows`` counts damaged ones too."""

    path: str
    size_bytes: int
    mtime_ns: int
    rows: int


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


class SkippedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What on_error="skip" left out, as gpudedup.io.Skipped."""

    shard: str
    first_row: int | None
    count: int
    reason: str


class RemovedShare(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed of the documents with one value of the guard column; ``share`` is removed / documents."""

    value: str | None
    documents: int
    removed: int
    share: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run directory says about itself."""

    format: int
    spec: int
    version: str
    """Of gpudedup."""
    state: str
    """ "complete": the manifest is written last."""
    created: str
    """UTC, ISO 8601."""
    output: str
    """kept, mask or none."""
    parameters: dict[str, Any]
    bands: int
    rows: int
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
    removed_shares: list[RemovedShare] = []
    """For the values of the guard column with most documents."""
    checksum: str = ""
    """XXH3 of the manifest's own bytes, 128 bits, with this value empty; "" in manifests that were written without.
    The last field, so that ``encode`` finds it."""


def encode(manifest: Manifest) -> bytes:
    """Readable JSON with one value a line, and its checksum."""
    blank = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, checksum="")), indent=1) + b"\n"
    before, _, after = blank.rpartition(b'""')
    return before + b'"' + xxhash.xxh3_128_hexdigest(blank).encode() + b'"' + after


def is_as_written(directory: Path, manifest: Manifest) -> bool:
    """Whether the bytes of manifest.json have the checksum that they name. Raises OSError."""
    before, _, after = (directory / NAME).read_bytes().rpartition(manifest.checksum.encode())
    return xxhash.xxh3_128_hexdigest(before + after) == manifest.checksum


def read(directory: Path) -> Manifest:
    """The manifest of a finished run. Raises ArtefactError if there is none, or none that can be believed."""
    path = directory / NAME
    try:
        if path.is_symlink():
            raise ArtefactError(f"{path} is a symbolic link, which no run writes")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ArtefactError(f"{path} has {size} bytes, more than the {MAX_BYTES} that a manifest can have")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(f"{directory} holds no finished run: it has no {NAME}") from None
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error}; run again into another directory") from error
    if manifest.format != FORMAT:
        raise ArtefactError(f"{path} has format {manifest.format}, this version of gpudedup reads format {FORMAT}")
    if manifest.state != "complete":
        raise ArtefactError(f'{path} is in state {manifest.state!r}, not "complete"; run again into another directory')
    real: set[str] = set()
    for entry in manifest.outputs:
        safe_path(directory, entry, real)
        if entry.size_bytes < 0 or (entry.rows or 0) < 0:
            raise ArtefactError(f"{path} gives {entry.path!r} {entry.size_bytes} bytes and {entry.rows} rows")
    return manifest


def safe_path(directory: Path, entry: OutputEntry, real: set[str] | None = None) -> Path:
    """The path of an output within ``directory``. Raises ArtefactError for one that could lead elsewhere.

    ``real``: folders that are known to be no links; those of the entry are added.
    """
    parts = entry.path.split("/")
    if (
        entry.kind not in KINDS
        or len(parts) < 2
        or parts[0] != entry.kind
        or not {"", ".", ".."}.isdisjoint(parts)
        or "\0" in entry.path
    ):
        raise ArtefactError(f"{directory / NAME} lists {entry.path!r} as {entry.kind!r}, which is no file of a run")
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


def checksum(path: Path) -> str:
    """XXH3 of a file's bytes, 128 bits, hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checkpoint()
            digest.update(block)
    return digest.hexdigest()
