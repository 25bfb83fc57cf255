"""The generated fold tables: the same bytes from the same sources, and every entry what the reference says."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "csrc" / "core" / "fold_tables.cpp"
KINDS = {"": 0, "A": 1 << 30, "B": 2 << 30, "C": 3 << 30}
FOLDS = ("none", "case", "full")
CLASSES = ("separator", "joins", "single")


def numbers(name: str) -> list[int]:
    """The values of one array of the generated file."""
    body = re.search(rf"{name}[^=]*= {{(.*?)}};", TABLES.read_text(encoding="ascii"), re.DOTALL)
    assert body is not None
    parts = re.findall(r"([ABC]?)\+?(\d*),", re.sub(r"[\s{}]", "", body[1]) + ",")
    return [KINDS[letter] + int(payload or 0) for letter, payload in parts if letter or payload]


@pytest.fixture(scope="module")
def tables() -> tuple[list[int], list[int], list[int]]:
    return numbers("fold_index"), numbers("fold_pages"), numbers("fold_expansions")


def test_sizes_and_digest(tables: tuple[list[int], list[int], list[int]]) -> None:
    index, pages, expansions = tables
    text = TABLES.read_text(encoding="ascii")
    assert len(index) == 3 * 8704
    assert max(index) == len(pages) // 128 - 1
    assert f"fold_page_count = {len(pages) // 128}, fold_expansion_count = {len(expansions)};" in text
    digest = hashlib.sha256()
    for typecode, values in zip("HII", tables, strict=True):
        packed = array(typecode, values)
        if sys.byteorder == "big":
            packed.byteswap()
        digest.update(packed.tobytes())
    assert f'fold_tables_sha256[65] = "{digest.hexdigest()}"' in text
    assert max(map(len, text.splitlines())) <= 120


def test_regenerating_gives_the_same_bytes() -> None:
    for module in ("unicodedata2", "opencc"):
        pytest.importorskip(module, reason=f"the tables are made from {module}")
    command = [sys.executable, ROOT / "tools" / "make_tables.py", "--check"]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.parametrize("fold", FOLDS)
def test_every_entry_is_the_references(tables: tuple[list[int], list[int], list[int]], fold: str) -> None:
    for module in ("unicodedata2", "opencc"):
        pytest.importorskip(module, reason=f"the reference needs {module}")
    import reference

    index, pages, expansions = tables
    page_of = index[FOLDS.index(fold) * 8704 :]
    wrong = []
    for c in range(0x110000):
        entry = pages[page_of[c >> 7] * 128 + (c & 127)]
        kind, payload = entry >> 30, entry & (1 << 22) - 1
        if 0xD800 <= c <= 0xDFFF:
            ok = entry == 0
        else:
            expected = reference.fold_char(chr(c), fold)
            classes = [CLASSES.index(reference.char_class(d)) for d in expected]
            if fold == "full" and 0xAC00 <= c <= 0xD7A3:  # computed in the core; here a unit character as it is
                ok = entry == 1 << 30 and set(classes) == {1}
            elif kind == 0:  # one boundary, however many separators
                ok = entry == 0 and classes != [] and set(classes) == {0}
            elif kind in (1, 2):
                ok = expected == chr((c + payload) % (1 << 22)) and classes == [kind]
            elif payload == 0:
                ok = expected == ""
            else:
                count, offset = payload & 31, payload >> 5
                elements = expansions[offset : offset + count]
                ok = 2 <= count <= 18 and any(classes)
                ok = ok and elements == [k << 30 | ord(d) for k, d in zip(classes, expected, strict=True)]
        if not ok:
            wrong.append(f"U+{c:04X}")
    assert not wrong, f"{len(wrong)} entries differ from the reference: {wrong[:20]}"
