"""JSON files that carry their own checksum, and are read without trusting a byte of them."""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from pathlib import Path
from typing import TypeVar, get_origin

import msgspec
import xxhash

from gpudedup.errors import ArtefactError

MAPPING_BYTES = 1 << 20
"""What a mapping can take in a file. In memory a mapping takes more than ten times that, where a list of entries takes
twice, and text four times at most: if one letter needs four bytes, all have them.
"""


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What is written by ``seal``. The checksum is XXH3 of the file's bytes, 128 bits, with this value empty."""

    checksum: str = ""


Kind = TypeVar("Kind", bound=Sealed)


def seal(value: Sealed) -> bytes:
    """Readable JSON with one value a line, and its checksum."""
    blank = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(value, checksum="")), indent=1) + b"\n"
    place, _ = _checksum_place(blank, "")
    return blank[:place] + xxhash.xxh3_128_hexdigest(blank).encode() + blank[place:]


def is_whole(data: bytes, checksum: str) -> bool:
    """Whether a file's bytes have the checksum that they name."""
    start, end = _checksum_place(data, checksum)
    view = memoryview(data)
    digest = xxhash.xxh3_128(view[:start])
    digest.update(view[end:])
    return digest.hexdigest() == checksum


def _checksum_place(data: bytes, checksum: str) -> tuple[int, int]:
    """Where the first value of ``checksum`` begins and ends: the fields of a base class come first."""
    value = checksum.encode()
    found = data.find(b'"checksum": "%s"' % value)
    start = found + len(b'"checksum": "') if found >= 0 else len(data)
    return start, min(start + len(value), len(data))


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a file of a run. Raises ArtefactError for a link or more than ``limit_bytes``, and OSError, also for
    what is no file.
    """
    if path.is_symlink():
        raise ArtefactError(f"{path} is a symbolic link, which no run writes")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file; delete it")
        if status.st_size > limit_bytes:
            raise ArtefactError(f"{path} has {status.st_size} bytes, more than the {limit_bytes} that it can have")
        with open(handle, "rb", closefd=False) as file:
            return file.read(limit_bytes)
    finally:
        os.close(handle)


def decode(data: bytes, kind: type[Kind], path: Path) -> Kind:
    """The value in a file's bytes, without looking at the checksum. Raises ArtefactError."""
    try:
        outline = msgspec.json.decode(data, type=_outline(kind))
        values = {name: getattr(outline, name) for name in kind.__struct_fields__}
        for field in _mappings(kind):
            size = len(values[field.name])
            if size > MAPPING_BYTES:
                raise ValueError(f"{field.name} has {size} bytes, more than the {MAPPING_BYTES} that it can have")
            values[field.name] = msgspec.json.decode(values[field.name], type=field.type)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error
    return kind(**values)


@cache
def _outline(kind: type[Sealed]) -> type[msgspec.Struct]:
    """``kind`` with the bytes of mappings in place of their values."""
    fields = [
        (field.name, msgspec.Raw, msgspec.NODEFAULT if field.required else msgspec.Raw(b"{}"))
        for field in _mappings(kind)
    ]
    return msgspec.defstruct(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)


def _mappings(kind: type[Sealed]) -> list[msgspec.structs.FieldInfo]:
    return [field for field in msgspec.structs.fields(kind) if get_origin(field.type) is dict]
