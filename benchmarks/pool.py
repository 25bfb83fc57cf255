"""The words that corpora are made of: tests/data cut into words by language, made-up words, page furniture of sites.

All of it is one Arrow array of *pieces*, a piece being a word with the blank that follows it. A text is a sequence of
piece numbers, so making text is one `take`, and an edit is arithmetic on numbers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
FILES = ("licence_texts", "hertzbeat_docs", "debian_handbook", "wiki_paragraphs", "wiki_scripts", "zh_laws")
MIXES: dict[str, dict[str, float]] = {
    "english": {"en": 1.0},
    "chinese": {"zh": 0.9, "zht": 0.1},
    "mixed": {"en": 0.45, "zh": 0.30, "zht": 0.04, "other": 0.21},
}
UNSPACED = ("zh", "zht", "ja", "th")
FEWEST_WORDS = 4000
"""A language with fewer words than this would make its documents look alike."""
MOST_BYTES = 1_500_000
INVENTED_SHARE = 0.25
SITES = 200

_TOKEN = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff][\uff0c\u3002\uff1b\uff1a\u3001\uff01\uff1f\u201d\u300d\uff09\u300b]*"
    r"|[^\s\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)
_END = re.compile("[.!?\u3002\uff01\uff1f\uff1b\u061f\u0964][\"'\u201d\u300d)]?$")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def noise(key: int, count: int) -> U64:
    """``count`` random numbers that depend on ``key`` alone: SplitMix64, so any document can be made on its own."""
    return mix(np.uint64(key & (1 << 64) - 1) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def mix(z: U64) -> U64:
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def fraction(bits: U64) -> F64:
    """Uniform in [0, 1)."""
    out: F64 = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return out


@dataclass(frozen=True)
class Pool:
    """Pieces by number; a language has the words first[l] to first[l] + count[l] - 1, in the order of their texts."""

    pieces: pa.Array
    languages: list[str]
    share: F64
    first: I64
    count: I64
    mean_bytes: F64
    ends: npt.NDArray[np.bool_]
    """Of each piece, whether a sentence ends with it."""
    paragraph: I32
    """Of each piece, the same word with the paragraph ending after it; itself if no sentence ends there."""
    header: I64
    """Of each language, the first of its SITES header pieces; footers follow them."""
    simplified: dict[int, int]
    traditional: dict[int, int]

    def draw(self, language: int, bits: U64) -> I32:
        """A word of the language for each random number."""
        count = np.uint64(self.count[language])
        place: I64 = ((bits >> np.uint64(32)) * count >> np.uint64(32)).astype(np.int64) + self.first[language]
        return place.astype(np.int32)


def load_pool(mix_name: str) -> Pool:
    """The pool of a mix of languages, the same on every machine. Takes a second or two."""
    wanted = MIXES[mix_name]
    words = {language: found for language, found in _words().items() if len(found) >= FEWEST_WORDS}
    others = [language for language in words if language not in ("en", "zh", "zht")]
    share = {language: wanted.get(language, 0.0) for language in words}
    for language in others:
        share[language] = wanted.get("other", 0.0) / len(others)
    languages = sorted(language for language in words if share[language] > 0)
    pieces: list[str] = []
    first, count, mean_bytes = [], [], []
    for number, language in enumerate(languages):
        own = words[language]
        if language not in UNSPACED:
            own = own + _invented(own, int(len(own) * INVENTED_SHARE), number)
        first.append(len(pieces))
        count.append(len(own) - 2)  # a fragment is three words: the last two begin none
        mean_bytes.append(sum(len(word.encode()) for word in own) / len(own))
        pieces += own
    total = len(pieces)
    ends = np.fromiter((_END.search(piece.rstrip()) is not None for piece in pieces), bool, total)
    paragraph = np.arange(total, dtype=np.int32)
    at_end = np.flatnonzero(ends)
    paragraph[at_end] = total + np.arange(len(at_end), dtype=np.int32)
    pieces += [pieces[place].rstrip() + "\n\n" for place in at_end.tolist()]
    header = []
    for number, language in enumerate(languages):
        header.append(len(pieces))
        headers, footers = _sites(language in ("zh", "zht"), number)
        pieces += headers + footers
    ends = np.concatenate([ends, np.zeros(len(pieces) - total, bool)])
    ends[total : total + len(at_end)] = True
    paragraph = np.concatenate([paragraph, np.arange(total, len(pieces), dtype=np.int32)])
    to_simplified = _script_table()
    return Pool(
        pieces=pa.array(pieces, pa.large_string()),
        languages=languages,
        share=np.array([share[language] for language in languages]),
        first=np.array(first, np.int64),
        count=np.array(count, np.int64),
        mean_bytes=np.array(mean_bytes),
        ends=ends,
        paragraph=paragraph,
        header=np.array(header, np.int64),
        simplified=to_simplified,
        traditional={new: old for old, new in sorted(to_simplified.items(), reverse=True)},
    )


def _language(file: str, row: dict[str, str]) -> str | None:
    if file == "licence_texts":
        return "en"
    if file == "zh_laws":
        return "zh"
    if file == "wiki_scripts":
        return "zht" if row["script"] == "Hant" else None
    tag = row["lang"].lower()
    if tag.startswith("zh"):
        return "zht" if "hant" in tag or "tw" in tag else "zh"
    return tag.split("-")[0]


def _words() -> dict[str, list[str]]:
    """Language -> its words in text order, each line of text once; an untranslated line counts as English.

    A long text set gives every second, third, ... line, so that about MOST_BYTES are left and the pool stays in cache.
    """
    lines: dict[str, list[str]] = {}
    seen: set[str] = set()
    for file in FILES:
        table = pq.read_table(DATA / f"{file}.parquet")
        rows = table.select([name for name in table.column_names if name in ("text", "lang", "script")]).to_pylist()
        for row in sorted(rows, key=lambda row: row.get("lang", "") not in ("en", "en-US")):
            language = _language(file, row)
            if language is None:
                continue
            out = lines.setdefault(language, [])
            for line in row["text"].split("\n"):
                if len(line) >= 20 and "|" not in line and line not in seen:
                    seen.add(line)
                    out.append(line)
    found = {}
    for language, own in lines.items():
        step = max(1, sum(map(len, own)) * (3 if language in UNSPACED else 1) // MOST_BYTES)
        unspaced = language in UNSPACED
        found[language] = [word for line in own[::step] for word in _line_words(line, unspaced)]
    return found


def _line_words(line: str, unspaced: bool) -> Iterator[str]:
    for word in _TOKEN.findall(line) if unspaced else line.split():
        if unspaced and not word[0].isascii():
            yield word
        elif len(word) <= 24 and 1 <= len(re.findall(r"[^\W_]+", word)) <= 2:  # no address, no path, no rule
            yield word + " "


def _invented(words: list[str], count: int, seed: int) -> list[str]:
    """Rare words as names are: the head of one word and the tail of another."""
    plain = [word.strip() for word in words if word.strip().isalpha() and len(word) >= 4]
    if not plain:
        return []
    heads = (noise(2 * seed, count) % np.uint64(len(plain))).tolist()
    tails = (noise(2 * seed + 1, count) % np.uint64(len(plain))).tolist()
    return [
        plain[head][: 2 + head % 4] + plain[tail][-2 - tail % 4 :] + " "
        for head, tail in zip(heads, tails, strict=True)
    ]


def _script_table() -> dict[int, int]:
    """Traditional to simplified code points, from texts that tests/data has in both scripts."""
    rows = pq.read_table(DATA / "wiki_scripts.parquet", columns=["text", "script", "cluster"]).to_pylist()
    by_script = {(row["cluster"], row["script"]): row["text"] for row in rows}
    table: dict[int, int] = {}
    for (cluster, script), text in by_script.items():
        other = by_script.get((cluster, "Hans"), "")
        if script == "Hant" and len(other) == len(text):
            table.update({ord(a): ord(b) for a, b in zip(text, other, strict=True) if a != b})
    return table


_NAMES = ("Amber", "Brook", "Cedar", "Delta", "Ember", "Fable", "Garnet", "Haven", "Indigo", "Juniper"), (
    "Almanac", "Bulletin", "Chronicle", "Dispatch", "Examiner", "Forum", "Guide", "Ledger", "Monitor", "Observer",
)  # fmt: skip
_NAMES_ZH = (
    ["晴川", "松涛", "明湖", "南山", "北辰", "东篱", "西窗", "长风", "流云", "听雨"],
    ["书屋", "周刊", "在线", "资料库", "讨论区", "新闻网", "知识库", "文摘", "观察", "日志"],
)
_MENU = [
    "Start", "Topics", "Regions", "Markets", "Science", "Weather", "Letters", "Archive", "Video", "Podcast", "Help",
    "Sign in", "Register",
]  # fmt: skip
_MENU_ZH = ["主页", "要闻", "国际", "经济", "科学", "教育", "体坛", "文化", "图库", "视听", "帮助", "登入", "注册"]


def _sites(chinese: bool, seed: int) -> tuple[list[str], list[str]]:
    """Headers and footers of invented sites, some 100 to 250 bytes each."""
    headers, footers = [], []
    left, right = _NAMES_ZH if chinese else _NAMES
    menu = _MENU_ZH if chinese else _MENU
    for site, bits in zip(range(SITES), noise(seed + 1000, SITES).tolist(), strict=True):
        name = (
            left[bits % 10] + ("" if chinese else " ") + right[bits // 10 % 10] + (f"{site}" if chinese else f" {site}")
        )
        shown = list(itertools.islice(itertools.cycle(menu[bits // 100 % 13 :] + menu), 5 + bits % 6))
        day = f"{2004 + bits % 21}-{1 + bits // 21 % 12:02}-{1 + bits // 300 % 28:02}"
        if chinese:
            headers.append(f"{name}\n{' | '.join(shown)}\n日期 {day} 编辑 {name} 阅读 {bits % 100000}\n\n")
            footers.append(f"\n\n本站{name}刊载，未经许可不得转载。{shown[0]} {shown[-1]} 备案号{bits % 10**8:08}\n")
        else:
            headers.append(f"{name}\n{' | '.join(shown)}\nPosted {day} by the {name} desk, {bits % 100000} readers\n\n")
            footers.append(
                f"\n\nMore from {name}: {', '.join(shown[:4])}. Copyright {day[:4]} {name}, number {bits % 10**6}.\n"
            )
    return headers, footers
