"""Mapped files: their bytes, and how far ahead they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpudedup.store import mapped
from gpudedup.store.mapped import fetched


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "a").write_bytes(data)
    buffer = mapped.mapped(tmp_path / "a")
    (tmp_path / "a").unlink()  # a map holds the file
    mapped.fetch([(buffer.address + 5000, 9000), (buffer.address, 1), (buffer.address, buffer.size)])
    assert buffer.to_pybytes() == data
    assert not buffer.is_mutable
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        mapped.mapped(tmp_path / "empty")


@pytest.mark.parametrize("sizes", [[], [0], [10, 0, 90, 100, 1, 100, 100, 100], [1] * 500, [1000] * 3])
def test_parts_are_asked_for_ahead(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """At least ``AHEAD_BYTES`` behind the one that is given, or all; and no more than one part beyond."""
    asked: list[int] = []
    monkeypatch.setattr(mapped, "AHEAD_BYTES", 100)
    monkeypatch.setattr(mapped, "fetch", lambda places: asked.extend(size for _, size in places))
    parts = fetched((number, [(0, size)]) for number, size in enumerate(sizes))
    for number, given in enumerate(parts):
        assert given == number
        behind = asked[number + 1 :]
        assert asked == sizes[: len(asked)]
        assert sum(behind) >= 100 or len(asked) == len(sizes)
        assert sum(behind[:-1]) < 100
    assert asked == sizes
