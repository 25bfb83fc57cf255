"""The words that corpora are made of: words.parquet, made-up words, numbers, page furniture of invented sites.

All of it is one Arrow array of *pieces*, a piece being a word with the blank that follows it. A text is a sequence of
piece numbers, so making text is one `take`, and an edit is arithmetic on numbers.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpudedup.backends.base import I32, I64, U64
from gpudedup.bench.noise import F64, noise

WORDS = Path(__file__).resolve().parent / "words.parquet"
"""language, word, count; tools/make_words.py says what of."""
MIXES: dict[str, dict[str, float]] = {
    "english": {"en": 1.0},
    "chinese": {"zh": 0.9, "zht": 0.1},
    "mixed": {"en": 0.45, "zh": 0.30, "zht": 0.04, "other": 0.21},
}
"""Shares of the clusters of documents; "other" is shared out evenly."""
UNSPACED = ("zh", "zht", "ja", "th")
INVENTED_SHARE = 0.25
"""Made-up words over those of a language that is written with blanks: real text has no end of names and rarities."""
NUMBERS = 1000
SITES = 200
DRAW_BITS = 21
"""Random bits that choose a word: three words a random number."""

_END = re.compile("[.!?\u3002\uff01\uff1f\uff1b\u061f\u0964][\"'\u201d\u300d)]?$")


@dataclass(frozen=True)
class Pool:
    """Pieces by number, and how to draw them."""

    pieces: pa.Array
    languages: list[str]
    share: F64
    places: I32
    """Of each language in turn its pieces, each as often as the word stands in real text: at most 2^DRAW_BITS."""
    first: I64
    count: I64
    """The places of a language are first[l] to first[l] + count[l] - 1."""
    mean_bytes: F64
    """Of a word that is drawn."""
    ends: npt.NDArray[np.bool_]
    """Of each piece, whether a sentence ends with it."""
    paragraph: I32
    """Of each piece, the same word with the paragraph ending after it; itself if no sentence ends there."""
    number: I64
    """Of each language, the first of NUMBERS pieces: "0", "1", and so on."""
    header: I64
    """Of each language, the first of its SITES header pieces; footers follow them."""
    simplified: dict[int, int]
    traditional: dict[int, int]

    def draw(self, language: int, bits: U64) -> I32:
        """A word of the language for each random number, by the frequency of words; its upper DRAW_BITS choose."""
        place = (bits >> np.uint64(64 - DRAW_BITS)) * np.uint64(self.count[language]) >> np.uint64(DRAW_BITS)
        drawn: I32 = self.places[place.astype(np.int64) + self.first[language]]
        return drawn


@cache
def load_pool(mix_name: str) -> Pool:
    """The pool of a mix of languages, the same on every machine. Takes half a second."""
    wanted = MIXES[mix_name]
    table = pq.read_table(WORDS)
    column = table["language"].combine_chunks()
    codes = column.indices.to_numpy()  # a language's words lie together
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()
    bags = {
        column.dictionary[int(codes[start])].as_py(): table.slice(start, stop - start)
        for start, stop in zip(starts, [*starts[1:], len(table)], strict=True)
    }
    others = [language for language in bags if language not in ("en", "zh", "zht")]
    share = {language: wanted.get(language, wanted.get("other", 0.0) / len(others)) for language in bags}
    share.update({language: wanted.get(language, 0.0) for language in ("en", "zh", "zht")})
    languages = sorted(language for language in bags if share[language] > 0)
    pieces: list[str] = []
    places: list[I32] = []
    first: list[int] = []
    count_of: list[int] = []
    mean_bytes: list[float] = []
    for number, language in enumerate(languages):
        words, counts = bags[language]["word"].to_pylist(), bags[language]["count"].to_numpy()
        own = [word + ("" if language in UNSPACED and not word[0].isascii() else " ") for word in words]
        if language not in UNSPACED:
            invented = _invented(words, int(counts.sum() * INVENTED_SHARE), number)
            own, counts = own + invented, np.append(counts, np.ones(len(invented), np.int64))
        sizes = pc.binary_length(pa.array(own, pa.string())).to_numpy()
        first.append(sum(count_of))
        places.append(np.repeat(np.arange(len(pieces), len(pieces) + len(own), dtype=np.int32), counts))
        count_of.append(len(places[-1]))
        mean_bytes.append(float((sizes * counts).sum() / counts.sum()))
        pieces += own
    assert max(count_of) <= 1 << DRAW_BITS
    words_end = len(pieces)
    ends = np.fromiter((_END.search(piece.rstrip()) is not None for piece in pieces), bool, words_end)
    paragraph = np.arange(words_end, dtype=np.int32)
    at_end = np.flatnonzero(ends)
    paragraph[at_end] = words_end + np.arange(len(at_end), dtype=np.int32)
    pieces += [pieces[place].rstrip() + "\n\n" for place in at_end.tolist()]
    first_number, header = [], []
    for number, language in enumerate(languages):
        first_number.append(len(pieces))
        pieces += [f"{value}" + ("" if language in UNSPACED else " ") for value in range(NUMBERS)]
        header.append(len(pieces))
        headers, footers = _sites(language in ("zh", "zht"), number)
        pieces += headers + footers
    ends = np.concatenate([ends, np.zeros(len(pieces) - words_end, bool)])
    ends[words_end : words_end + len(at_end)] = True
    paragraph = np.concatenate([paragraph, np.arange(words_end, len(pieces), dtype=np.int32)])
    scripts = json.loads(table.schema.metadata[b"scripts"])
    to_simplified = {ord(a): ord(b) for a, b in zip(scripts["traditional"], scripts["simplified"], strict=True)}
    return Pool(
        pieces=pa.array(pieces, pa.large_string()),
        languages=languages,
        share=np.array([share[language] for language in languages]),
        places=np.concatenate(places),
        first=np.array(first, np.int64),
        count=np.array(count_of, np.int64),
        mean_bytes=np.array(mean_bytes),
        ends=ends,
        paragraph=paragraph,
        number=np.array(first_number, np.int64),
        header=np.array(header, np.int64),
        simplified=to_simplified,
        traditional={new: old for old, new in sorted(to_simplified.items(), reverse=True)},
    )


def _invented(words: list[str], count: int, seed: int) -> list[str]:
    """Rare words as names are: the head of one word and the tail of another."""
    plain = [word for word in words if word.isalpha() and len(word) >= 4]
    heads = (noise(2 * seed, count) % np.uint64(len(plain))).tolist()
    tails = (noise(2 * seed + 1, count) % np.uint64(len(plain))).tolist()
    return [
        plain[head][: 2 + head % 4] + plain[tail][-2 - tail % 4 :] + " "
        for head, tail in zip(heads, tails, strict=True)
    ]


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
