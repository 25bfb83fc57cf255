"""Make tests/golden/spec1.json from tests/reference.py: texts, units, hashes, lanes, keys, bands and decisions.

    python tools/make_golden.py            write the file
    python tools/make_golden.py --check    exit with 1 if the file in the tree differs

The engine never has a part in it. 64-bit numbers are hexadecimal strings; 32-bit ones are numbers; a similarity is a
number whose shortest decimal form gives the same double; NaN in a column is the string "nan".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import reference  # noqa: E402

OUTPUT = ROOT / "tests" / "golden" / "spec1.json"
Json = Any

# ------------------------------------------------------------------------------------------------------------ texts

ENGLISH = (
    "The harbour office keeps a ledger of every boat that enters before noon, and the clerk signs each line twice. "
    "Visitors may read it on Fridays, provided they wash their hands and leave their umbrellas at the door."
)
TRADITIONAL = "這個軟體會把語料庫裡幾乎相同的文件找出來，只留下其中一份。繁體與簡體的版本，應該被視為同一篇文章。"
SIMPLIFIED = "这个软体会把语料库里几乎相同的文件找出来，只留下其中一份。繁体与简体的版本，应该被视为同一篇文章。"
CHINESE = "港口办公室保存着一本登记簿，中午以前进港的每一条船都要登记，办事员在每一行签两次名。星期五访客可以翻阅。"
JAPANESE = "港の事務所では、午前中に入港したすべての船を帳簿に記録し、係員がガラスのペンで二度署名します。"
HANGUL_DECOMPOSED = [
    0x1112, 0x1161, 0x11BC, 0x1100, 0x116E, 0x20, 0x1109, 0x1161, 0x1106, 0x116E, 0x1109, 0x1169, 0x110B, 0x1174, 0x20,
    0x110C, 0x1161, 0x11BC, 0x1107, 0x116E,
]  # fmt: skip

# name, why, input (str, bytes, list of tokens, None)
TEXTS: list[tuple[str, str, Any]] = [
    ("empty", "no units", ""),
    ("null", "null text is empty", None),
    ("blanks only", "separators are no units", " \t\n\u3000\u00a0 -- ... "),
    ("dropped only", "zero-width characters and marks fold to nothing", "\u200b\ufeff\u0301\u00ad"),
    ("one unit", "shorter than a shingle: one shingle of all", "Harbour"),
    ("four units", "one shingle of four", "one two three four"),
    ("five units", "exactly one full shingle", "one two three four five"),
    ("six units", "two shingles", "one two three four five six"),
    ("repeated unit", "the set of shingles counts: two of seven", "na na na na na na na na na na hey"),
    ("english", "runs of letters", ENGLISH),
    (
        "english upper case, other blanks",
        "content equal to english",
        ENGLISH.upper().replace(" ", "\n\n").replace(",", ";"),
    ),
    ("chinese without blanks", "each Han character is a unit", CHINESE),
    ("chinese with blanks", "content equal to the same without", " ".join(CHINESE)),
    ("traditional", "folds to the simplified text", TRADITIONAL),
    ("simplified", "content equal to traditional", SIMPLIFIED),
    (
        "watermark between paragraphs",
        "a repost: shares most shingles with english",
        ENGLISH.replace("twice. ", "twice.\n\n=== read first at harbour-mirror.example ===\n\n"),
    ),
    ("zero-width characters", "content equal to: harbour ledger", "har\u200bbo\u00adur \ufeffled\u2060ger\u200d"),
    ("combining marks, composed", "NFC; content equal to the next", "caf\u00e9 \u00c5ngstr\u00f6m na\u00efve \u1ec7"),
    ("combining marks, decomposed", "NFD", "cafe\u0301 A\u030angstro\u0308m nai\u0308ve e\u0323\u0302"),
    (
        "full width",
        "folds to: abc xyz 019, punctuation separates",
        "\uff21\uff22\uff23\u3000\uff38\uff39\uff3a\uff0c\uff10\uff11\uff19",
    ),
    ("half-width kana", "folds to full width without voicing marks", "\uff76\uff9e\uff97\uff7d\uff8a\uff9f\uff9d"),
    ("kana composed", "voiced kana lose their mark under full", "\u30ac\u30e9\u30b9\u3068\u30d1\u30f3 \u304c\u3071"),
    (
        "kana decomposed",
        "content equal to kana composed",
        "\u30ab\u3099\u30e9\u30b9\u3068\u30cf\u309a\u30f3 \u304b\u3099\u306f\u309a",
    ),
    ("japanese", "Han and kana are singles, the long mark too", JAPANESE),
    (
        "hangul composed",
        "syllables fold to jamo; runs between blanks",
        "\ud56d\uad6c \uc0ac\ubb34\uc18c\uc758 \uc7a5\ubd80",
    ),
    (
        "hangul decomposed",
        "content equal to hangul composed",
        "".join(map(chr, HANGUL_DECOMPOSED)),
    ),
    ("hangul compatibility jamo", "decompose to conjoining jamo", "\u314e\u314f\u3147 \uffa1 \u3164\u115f"),
    ("hangul run of 30 syllables", "64 code points cut inside a run of jamo", "\ud56d" * 30),
    (
        "thai",
        "each character a unit, Thai digits fold to ASCII",
        "\u0e17\u0e48\u0e32\u0e40\u0e23\u0e37\u0e2d \u0e51\u0e52\u0e53 \u0e01\u0e33",
    ),
    ("khmer", "each character a unit", "\u1780\u17c6\u1796\u1784\u17cb\u1795\u17c2 \u17e1\u17e2"),
    (
        "lao",
        "each character a unit, U+0EDC decomposes",
        "\u0e97\u0ec8\u0eb2\u0ec0\u0eae\u0eb7\u0ead \u0edc\u0eb2 \u0ed1",
    ),
    (
        "myanmar",
        "each character a unit, digits fold and join",
        "\u1006\u102d\u1015\u103a\u1000\u1019\u103a\u1038 \u1041\u1042",
    ),
    ("tibetan", "runs between tsheg", "\u0f42\u0fb2\u0f74\u0f0b\u0f41\u0f42\u0f0b\u0f63"),
    ("devanagari", "its marks stay", "\u092c\u0902\u0926\u0930\u0917\u093e\u0939 \u0915\u093e \u0967\u0968"),
    (
        "arabic with marks",
        "harakat and tatweel dropped",
        "\u0627\u0644\u0652\u0645\u0650\u064a\u0646\u0640\u0640\u0627\u0621\u064f \u0661\u0662\u0663",
    ),
    ("arabic without marks", "content equal to arabic with marks", "\u0627\u0644\u0645\u064a\u0646\u0627\u0621 123"),
    ("hebrew with points", "niqqud dropped, maqaf separates", "\u05e0\u05b8\u05de\u05b5\u05dc\u05be\u05d9\u05b8\u05dd"),
    ("hebrew without points", "content equal to hebrew with points", "\u05e0\u05de\u05dc \u05d9\u05dd"),
    (
        "greek and cyrillic",
        "final sigma, tonos, short i and io",
        "\u039b\u03b9\u03bc\u03ac\u03bd\u03b9\u03c2 \u0401\u043b\u043a\u0438 \u0439",
    ),
    ("turkish i", "dotted capital I loses its dot, dotless stays", "I\u0130i\u0131 \u0130stanbul DIYARBAKIR"),
    ("sharp s", "folds to ss, capital too", "Stra\u00dfe STRASSE STRA\u1e9eE"),
    ("ligatures and squares", "compatibility forms", "\ufb01nal \ufb04at \u2460\u2461 \u337f \u33a5 \u00bd x\u00b2"),
    ("trade marks", "dropped before they would become letters", "Harbour\u2122 Office\u2120 \u00a9\u00ae"),
    ("U+FDFA", "18 code points from one: the longest", "\ufdfa"),
    ("U+FDFA in a run", "sequence that separates within", "a\ufdfab"),
    ("fraction slash", "a sequence with a separator in it", "a\u2044b \u00bd1\u00bc"),
    (
        "digits of other scripts",
        "each Nd is its ASCII digit",
        "\u0663\u0967\u09e8\u0ce9\uff14\U0001d7d8\U0001e950\u0be7",
    ),
    ("numbers that are no digits", "No and Nl are unit characters", "\u0bf0 \u2160\u2167 \u3007 \u4e94 \U00010107"),
    ("underscore", "separates", "harbour_master_2 __init__"),
    ("apostrophes", "separate", "don't don\u2019t don\u02bct O\uff07Hara"),
    ("digits and letters", "mix in a run", "v2a 3rd 0x1F 1,000.50"),
    (
        "emoji",
        "joiner and variation selectors vanish, emoji separate",
        "ship\u26f5\ufe0fyard \U0001f469\u200d\U0001f52c lab \U0001f1e8\U0001f1f3",
    ),
    ("keycap", "digit, selector and enclosing mark: a digit", "1\ufe0f\u20e3 2"),
    ("mark after a separator", "a mark that stays is a unit character anywhere", "- \u093f x"),
    ("ideographic variation", "selectors vanish", "\u845b\U000e0100\u98fe \u845b\u98fe"),
    ("compatibility ideograph", "F900 block decomposes, then simplifies", "\uf900 \u8c48 \U0002f800"),
    ("supplementary han", "assigned or not, a single", "\U00020000\U0002a700\U0002fffd\U0003fffd \U0002fffe"),
    ("simplification chain", "followed to its end", "\u8457\u4e7e\u9019\u88cf\u7740 \u9ebc\u9ebd"),
    ("kangxi radicals", "decompose to Han", "\u2f00\u2fd5 \u2e81"),
    ("iteration marks", "singles", "\u4eba\u3005 \u3031\u3035 \u303b"),
    ("unassigned", "separates", "a\u0378b \U000e1000c"),
    ("nul and replacement character", "separate", "a\x00b\ufffdc"),
    ("controls", "separate", "a\x07b\x7fc\x85d\u2028e"),
    ("63 letters", "one unit", "x" * 63),
    ("64 letters", "one unit", "x" * 64),
    ("65 letters", "units of 64 and 1", "x" * 65),
    ("130 letters", "units of 64, 64 and 2", "".join(chr(97 + i % 26) for i in range(130))),
    (
        "130 letters with marks",
        "cut after the fold: same content as 130 letters",
        "".join(chr(97 + i % 26) + "\u0301" for i in range(130)),
    ),
    ("run of 65 four-byte letters", "limit counts code points", "\U00010428" * 65),
    ("lengths 7 8 9 16 17", "words of eight bytes", "abcdefg abcdefgh abcdefghi abcdefghijklmnop abcdefghijklmnopq"),
    ("lone surrogate in str", "counts as ill-formed", "a\ud800b\udc00c"),
    ("well-formed bytes", "the same as text", "caf\u00e9 \u6e2f".encode()),
    ("truncated 2", "C3 at the end", b"a\xc3"),
    ("truncated 3", "E6 B8 then a letter: one maximal subpart", b"a\xe6\xb8b"),
    ("truncated 4", "F0 9F 98 at the end", b"ab \xf0\x9f\x98"),
    ("overlong 2", "C0 AF: two subparts", b"a\xc0\xafb"),
    ("overlong 3", "E0 80 AF: three subparts", b"a\xe0\x80\xafb"),
    ("overlong 4", "F0 80 80 AF: four subparts", b"a\xf0\x80\x80\xafb"),
    ("encoded surrogate", "ED A0 80: three subparts", b"a\xed\xa0\x80b"),
    ("above 10FFFF", "F4 90 80 80, F5, FF", b"a\xf4\x90\x80\x80b\xf5c\xff"),
    ("stray continuation", "80 BF", b"a\x80b\xbf\xbfc"),
    ("truncated then lead", "E4 B8 E4 B8 AD: the second is whole", b"\xe4\xb8\xe4\xb8\xad"),
]

TOKEN_TEXTS: list[tuple[str, str, Any]] = [
    ("tokens", "any int64", [0, 1, -1, 2**63 - 1, -(2**63), 50256]),
    ("tokens short", "two make one shingle of three", [7, 8]),
    ("tokens empty", "empty", []),
    ("tokens null", "empty", None),
]

ALSO_CHAR = {
    "chinese without blanks", "zero-width characters", "combining marks, composed", "hangul composed", "apostrophes",
    "U+FDFA in a run", "blanks only", "four units", "emoji", "thai", "overlong 3", "nul and replacement character",
}  # fmt: skip
ALSO_CASE = {
    "combining marks, decomposed", "sharp s", "turkish i", "trade marks", "zero-width characters", "full width",
    "traditional", "digits of other scripts", "hangul composed", "kana composed", "U+FDFA", "ideographic variation",
    "arabic with marks", "keycap", "greek and cyrillic", "65 letters",
}  # fmt: skip


def hex64(value: int) -> str:
    return f"{value:016x}"


def text_case(name: str, why: str, text: Any, shingle: str, fold: str) -> Json:
    kind, n = reference.parse_shingle(shingle)
    units = reference.units(text, shingle, fold)
    shingles = reference.shingle_hashes(units, n)
    out: dict[str, Any] = {"name": name, "why": why, "shingle": shingle, "fold": fold}
    if isinstance(text, bytes):
        out["bytes"] = text.hex()
    else:
        out["tokens" if kind == "tokens" else "text"] = text
    if kind != "tokens" and text is not None:
        out["folded"] = reference.fold(reference.as_text(text), fold)
    out["units"] = units
    out["unit_hashes"] = [hex64(reference.unit_hash(u)) for u in units]
    out["shingle_hashes"] = sorted(shingles)
    out["lanes"] = {str(seed): reference.signature(shingles, 8, seed) for seed in (0, 7)}
    out["content"] = [hex64(c) for c in reference.content(units)]
    scopes = {"none": 0, "null": reference.scope_key(None), "en": reference.scope_key("en")}
    out["band_keys"] = {
        label: [hex64(k) for k in reference.band_keys(out["lanes"]["0"], 4, 2, scope)] if units else []
        for label, scope in scopes.items()
    }
    return out


def text_cases() -> list[Json]:
    assert {name for name, _, _ in TEXTS} >= ALSO_CASE | ALSO_CHAR
    cases = []
    for name, why, text in TEXTS:
        cases.append(text_case(name, why, text, "word:5", "full"))
        if name in ALSO_CASE:
            cases.append(text_case(name, why, text, "word:2", "case"))
            cases.append(text_case(name, why, text, "word:1", "none"))
        if name in ALSO_CHAR:
            cases.append(text_case(name, why, text, "char:5", "full"))
            cases.append(text_case(name, why, text, "char:3", "none"))
    return cases + [text_case(*row, "tokens:3", "full") for row in TOKEN_TEXTS]


def fold_digests() -> Json:
    """SHA-256 over all code points but surrogates: of the UTF-8 outputs, a line feed after each, and of the classes."""
    scalars = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    letters = {"separator": "0", "joins": "1", "single": "2"}
    out = {
        mode: hashlib.sha256("".join(reference.fold_char(c, mode) + "\n" for c in scalars).encode()).hexdigest()
        for mode in ("none", "case", "full")
    }
    classes = "".join(letters[reference.char_class(c)] for c in scalars)
    return {"folded": out, "classes": hashlib.sha256(classes.encode()).hexdigest()}


def band_cases() -> list[Json]:
    cases = []
    for num_perm in (1, 16, 64, 100, 128, 256):
        for recall in (0.5, 0.9, 0.95, 0.99):
            for threshold in (0.1, 0.3, 0.5, 0.55, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0):
                row: dict[str, Any] = {"threshold": threshold, "recall": recall, "num_perm": num_perm}
                try:
                    row["bands"], row["rows"] = reference.choose_bands(threshold, recall, num_perm)
                except ValueError as error:
                    row["needs_num_perm"] = int(str(error).split("needs num_perm ")[1].split(",")[0])
                cases.append(row)
    return cases


def scope_cases() -> list[Json]:
    rows: list[tuple[str, Any]] = [
        ("string", ""), ("string", "en"), ("string", "zh-Hant"), ("string", "CC-MAIN-2024-10"), ("string", "\u6e2f"),
        ("int8", -1), ("int64", -1), ("int64", 0), ("int64", 2024), ("uint64", 2**64 - 1), ("uint16", 65535),
        ("bool", True), ("bool", False), ("string", None),
    ]  # fmt: skip
    return [{"type": kind, "value": value, "scope": hex64(reference.scope_key(value))} for kind, value in rows]


# ---------------------------------------------------------------------------------------------------------- corpora

VOCABULARY = (
    "harbour ledger clerk boat noon rope tide lamp stone bridge market barrel copper window garden river winter letter "
    "captain signal morning street paper engine silver mountain forest candle thunder journey village station kitchen "
    "orange velvet pencil ladder basket mirror island compass feather anchor blanket chimney dragon emerald falcon"
)
WORDS = VOCABULARY.split()


class Stream:
    """SplitMix64: corpora are the same on every machine and Python."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, n: int) -> int:
        self.state += reference.G
        return reference.mix(self.state) % n

    def words(self, n: int) -> list[str]:
        return [WORDS[self.below(len(WORDS))] for _ in range(n)]

    def edited(self, words: list[str], edits: int) -> list[str]:
        out = list(words)
        for _ in range(edits):
            out[self.below(len(out))] = f"{WORDS[self.below(len(WORDS))]}{self.below(90) + 10}"
        return out


def mixed_corpus() -> Json:
    s = Stream(1)
    a, b = s.words(120), s.words(60)
    texts: list[Any] = [
        " ".join(a), " ".join(b), ENGLISH, TRADITIONAL, None,
        " ".join(s.edited(a, 1)), " ".join(s.edited(a, 2)), ", ".join(a).title(), SIMPLIFIED, "",
        ENGLISH.replace("twice. ", "twice. [mirror.example] "), " ".join(s.edited(b, 1)), "short text", "SHORT: text!",
        "short", " ".join(s.edited(a, 6)), CHINESE, CHINESE[:-7] + "\u3002", "\u2014 \u2014", " ".join(s.words(80)),
        " ".join(a[:90]), " ".join(s.edited(a, 3)), SIMPLIFIED + "\u5b8c", " ".join(a + s.words(8)), "short text",
        TRADITIONAL.replace("\uff0c", " "), ENGLISH.lower(), " ".join(s.edited(b, 2)), JAPANESE,
        " ".join(s.edited(a, 2)),
    ]  # fmt: skip
    n = len(texts)
    scores: list[Any] = [float((i * 7) % 5) for i in range(n)]
    scores[0], scores[5], scores[7], scores[11], scores[15] = "nan", None, -0.0, None, "nan"
    names = [None if i % 8 == 3 else "\u00e9zyA"[i % 4] + str(i % 3) for i in range(n)]
    sources = (None, "web", "book", "wiki", "news")
    return {
        "texts": texts,
        "columns": {
            "score": {"type": "double", "values": scores},
            "stars": {"type": "int64", "values": [None if i % 9 == 4 else (i * 5) % 4 - 1 for i in range(n)]},
            "name": {"type": "string", "values": names},
            "source": {"type": "string", "values": [sources[(i * 3) % 5] for i in range(n)]},
            "dump": {"type": "string", "values": [(None, "2023", "2024")[i % 3] for i in range(n)]},
            "split": {"type": "string", "values": ["train" if i % 4 else "test" for i in range(n)]},
            "part": {"type": "int64", "values": [(i // 2) % 2 for i in range(n)]},
            "clean": {"type": "bool", "values": [i % 3 == 0 for i in range(n)]},
        },
    }  # fmt: skip


def template_corpus() -> Json:
    """One template, each document with its own few words; a drift that makes late ones unlike the first."""
    s = Stream(2)
    base = s.words(100)
    texts = []
    for i in range(16):
        if i % 3 == 2:
            base = s.edited(base, 1)
        texts.append(" ".join(s.edited(base, i % 2)))
    texts[9] = texts[3]
    splits = ["ab"[i % 2] for i in range(16)]
    return {"texts": texts, "columns": {"split": {"type": "string", "values": splits}}}


def chain_corpus() -> Json:
    """Each is like its neighbours, ends are not alike: keepers keep some, components keep one."""
    s = Stream(3)
    words = s.words(130)
    texts = [" ".join(words[i * 8 : i * 8 + 60]) for i in range(9)]
    return {"texts": texts, "columns": {"stars": {"type": "int64", "values": [3, 1, 4, 1, 5, 9, 2, 6, 5]}}}


def across_corpus() -> Json:
    """Equal contents on both sides of a split, and near ones."""
    s = Stream(4)
    a, b, c = s.words(50), s.words(50), s.words(3)
    lists = [a, a, a, b, s.edited(b, 1), b, c, c, c, s.edited(a, 1), a, s.edited(a, 1)]
    texts = [" ".join(words) for words in lists]
    texts[10] = texts[10].upper()
    texts.append(texts[9])
    splits = ["train", "test", "train", "test", "train", None, "train", "test", None, "test", None, "train", "train"]
    dumps = [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 2]
    return {
        "texts": texts,
        "columns": {"split": {"type": "string", "values": splits}, "dump": {"type": "int64", "values": dumps}},
    }


def token_corpus() -> Json:
    s = Stream(5)
    base = [s.below(50000) for _ in range(90)]
    near = list(base)
    near[40] = -1
    far = list(base)
    for i in range(0, 90, 9):
        far[i] = s.below(50000)
    return {"tokens": [base, near, far, list(base), [], None, base[:2], base[:2], [2**63 - 1, -(2**63)]], "columns": {}}


def corpora() -> dict[str, Json]:
    s = Stream(6)
    return {
        "mixed": mixed_corpus(),
        "template": template_corpus(),
        "chain": chain_corpus(),
        "across": across_corpus(),
        "tokens": token_corpus(),
        "all equal": {"texts": [ENGLISH] * 7, "columns": {}},
        "none equal": {"texts": [" ".join(s.words(30)) for _ in range(6)], "columns": {}},
        "all empty": {"texts": ["", None, "...", "\u200b"], "columns": {}},
        "no documents": {"texts": [], "columns": {}},
    }


# corpus, parameters by their public names; columns by name
DECISIONS: list[tuple[str, dict[str, Any]]] = [
    *(("mixed", {"threshold": t, "seed": s}) for t in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) for s in (0, 7)),
    *(("mixed", {"verify": v, "threshold": t}) for v in ("signature", "none") for t in (0.6, 0.8)),
    *(("mixed", {"keep": k, "threshold": 0.6}) for k in (
        "longest", "max:score", "min:score", "max:stars", "min:stars", "max:name", "min:name", "max:clean", "min:clean",
        "sources:source=wiki,book", "sources:source=news")),
    *(("mixed", {"within": w, "threshold": 0.6}) for w in ("dump", "part", "clean")),
    *(("mixed", {"across": a, "threshold": 0.6, "verify": v}) for a in ("split", "dump")
      for v in ("exact", "signature", "none")),
    ("mixed", {"within": "part", "across": "split", "threshold": 0.6}),
    ("mixed", {"across": "dump", "threshold": 0.6, "keep": "longest", "clustering": "components"}),
    ("mixed", {"within": "dump", "keep": "max:stars", "threshold": 0.6, "clustering": "components"}),
    *(("mixed", {"clustering": "components", "threshold": 0.6, "verify": v}) for v in ("exact", "signature", "none")),
    *(("mixed", {"fold": f, "threshold": 0.6}) for f in ("case", "none")),
    *(("mixed", {"shingle": s, "threshold": 0.6}) for s in ("word:1", "word:2", "word:13", "char:5", "char:1")),
    ("mixed", {"shingle": "char:4", "fold": "none", "threshold": 0.6}),
    ("mixed", {"drop_empty": True}),
    ("mixed", {"drop_empty": True, "clustering": "components", "keep": "longest"}),
    ("mixed", {"num_perm": 16, "bands": 16, "rows": 1, "threshold": 0.3}),
    ("mixed", {"num_perm": 20, "bands": 3, "rows": 6, "threshold": 0.7, "verify": "signature"}),
    ("mixed", {"num_perm": 256, "recall": 0.999}),
    ("mixed", {"bucket_window": 1, "threshold": 0.6}),
    ("mixed", {"seed": 2**64 - 1}),
    *(("template", {"bucket_window": w, "threshold": 0.9, "verify": v})
      for w in (1, 2, 3, 64) for v in ("exact", "none")),
    *(("template", {"bucket_window": 2, "threshold": t, "bands": 8, "rows": 4}) for t in (0.8, 0.95, 0.98)),
    ("template", {"bucket_window": 2, "threshold": 0.9, "across": "split"}),
    ("template", {"bucket_window": 2, "threshold": 0.9, "clustering": "components"}),
    ("template", {"bucket_window": 2, "threshold": 0.9, "keep": "longest", "seed": 7}),
    *(("chain", {"threshold": t, "clustering": c}) for t in (0.3, 0.5, 0.6) for c in ("keepers", "components")),
    *(("chain", {"threshold": 0.5, "clustering": c, "keep": "max:stars"}) for c in ("keepers", "components")),
    *(("across", {"threshold": 0.8, "across": "split", "verify": v}) for v in ("exact", "signature", "none")),
    ("across", {"threshold": 0.8, "across": "split", "within": "dump"}),
    ("across", {"threshold": 0.8, "across": "split", "clustering": "components"}),
    ("across", {"threshold": 0.8, "across": "split", "bands": 1, "rows": 128}),
    ("across", {"threshold": 0.8, "across": "split", "keep": "sources:split=test,train"}),
    ("across", {"threshold": 0.8, "across": "split", "bucket_window": 1, "bands": 20, "rows": 2}),
    ("across", {"threshold": 0.8}),
    *(("tokens", {"shingle": s, "threshold": t}) for s in ("tokens:1", "tokens:3") for t in (0.5, 0.8)),
    ("tokens", {"shingle": "tokens:3", "threshold": 0.5, "keep": "longest", "drop_empty": True}),
    ("all equal", {}),
    ("all equal", {"bucket_window": 1, "keep": "longest"}),
    ("none equal", {}),
    ("none equal", {"verify": "none", "threshold": 0.5}),
    ("all empty", {}),
    ("all empty", {"drop_empty": True}),
    ("no documents", {}),
]  # fmt: skip


def column_values(column: Json) -> list[Any]:
    """A column of a golden corpus as Python values."""
    return [float("nan") if v == "nan" else v for v in column["values"]]


def reference_arguments(corpus: Json, parameters: dict[str, Any]) -> dict[str, Any]:
    """Column names replaced by the lists that the reference takes."""
    out = dict(parameters)
    for name in ("within", "across"):
        if name in out:
            out[name] = column_values(corpus["columns"][out[name]])
    if ":" in out.get("keep", ""):
        out["keep_values"] = column_values(corpus["columns"][out["keep"].split(":")[1].split("=")[0]])
    return out


def removed_rows(result: reference.Result) -> list[Json]:
    return [[r.row, r.reason, r.keeper_row, r.similarity, r.cluster] for r in result.removed]


def decision_case(corpus_name: str, corpus: Json, parameters: dict[str, Any]) -> Json:
    documents = corpus["tokens"] if "tokens" in corpus else corpus["texts"]
    result = reference.deduplicate(documents, **reference_arguments(corpus, parameters))
    return {
        "corpus": corpus_name,
        "parameters": parameters,
        "bands": result.bands,
        "rows": result.rows,
        "bounded": list(result.bounded),
        "keep_mask": "".join("01"[kept] for kept in result.keep_mask),
        "removed": removed_rows(result),
        "candidates": sorted([better, worse] for better, worse in result.candidates),
        "at": {str(t): removed_rows(result.at(t)) for t in (0.75, 0.95) if t >= parameters.get("threshold", 0.8)},
    }


# ------------------------------------------------------------------------------------------------------------- file


def golden() -> dict[str, Any]:
    made = corpora()
    streams = {str(seed): [list(v) for v in reference.lanes_constants(seed, 4)] for seed in (0, 7, 2**64 - 1)}
    return {
        "spec": 1,
        "fold_digests": fold_digests(),
        "mix": {
            hex64(z): hex64(reference.mix(z))
            for z in (0, 1, reference.G, 2 * reference.G & reference.M64, 2**63, 2**64 - 1)
        },
        "lane_constants": streams,
        "scopes": scope_cases(),
        "bands": band_cases(),
        "texts": text_cases(),
        "corpora": made,
        "decisions": [decision_case(name, made[name], parameters) for name, parameters in DECISIONS],
    }


def serialise(data: dict[str, Any]) -> str:
    """JSON with one line for each element of the first two levels, ASCII, keys in the order of making."""

    def line(value: Json) -> str:
        return json.dumps(value, separators=(",", ":"))

    parts = []
    for key, value in data.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join(line(v) for v in value) + "\n]"
        elif isinstance(value, dict):
            body = "{\n" + ",\n".join(f"{line(k)}:{line(v)}" for k, v in value.items()) + "\n}"
        else:
            body = line(value)
        parts.append(f"{line(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the file in the tree, write nothing")
    args = parser.parse_args()
    text = serialise(golden())
    print(f"{len(text)} bytes")
    if args.check:
        same = OUTPUT.exists() and OUTPUT.read_text(encoding="ascii") == text
        print("same" if same else f"{OUTPUT} differs from the reference; run tools/make_golden.py and say why")
        return 0 if same else 1
    OUTPUT.write_text(text, encoding="ascii", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
