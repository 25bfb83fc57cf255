"""JSON files that carry their own checksum, and are read without trusting a byte of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from gpudedup.errors import ArtefactError


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What is written by ``seal``. The checksum is XXH3 of the file's bytes, 128 bits, with this value empty."""

    checksum: str = ""


Kind = TypeVar("Kind", bound=Sealed)


def seal(value: Sealed) -> bytes:
    """Readable JSON with one value a line, and its checksum."""
    blank = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(value, checksum="")), indent=1) + b"\n"
    before, after = _around_checksum(blank, "")
    return before + xxhash.xxh3_128_hexdigest(blank).encode() + after


def is_whole(data: bytes, checksum: str) -> bool:
    """Whether a file's bytes have the checksum that they name."""
    before, after = _around_checksum(data, checksum)
    return xxhash.xxh3_128_hexdigest(before + after) == checksum


def _around_checksum(data: bytes, checksum: str) -> tuple[bytes, bytes]:
    """What stands before and after the first value of ``checksum``: the fields of a base class come first."""
    before, found, after = data.partition(f'"checksum": "{checksum}"'.encode())
    return (before + found[: -len(checksum) - 1], found[-1:] + after) if found else (data, b"")


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a file of a run. Raises ArtefactError for a link or more than ``limit_bytes``, and OSError."""
    if path.is_symlink():
        raise ArtefactError(f"{path} is a symbolic link, which no run writes")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ArtefactError(f"{path} is no file; delete it")
        if status.st_size > limit_bytes:
            raise ArtefactError(f"{path} has {status.st_size} bytes, more than the {limit_bytes} that it can have")
        return file.read(limit_bytes)


def decode(data: bytes, kind: type[Kind], path: Path) -> Kind:
    """The value in a file's bytes, without looking at the checksum. Raises ArtefactError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error
