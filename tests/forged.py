"""Manifests and records that say what a test wants, with the right checksum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import xxhash


def sealed(values: dict[str, Any]) -> bytes:
    """The file for ``values``: its checksum is XXH3-128 of the bytes with an empty checksum, and stands first."""
    blank = msgspec.json.format(msgspec.json.encode({"checksum": "", **values} | {"checksum": ""}), indent=1) + b"\n"
    return blank.replace(b'"checksum": ""', f'"checksum": "{xxhash.xxh3_128_hexdigest(blank)}"'.encode(), 1)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a sealed file and seal it again."""
    values = msgspec.json.decode(path.read_bytes())
    change(values)
    path.write_bytes(sealed(values))
