"""gpudedup/bench/words.parquet from the texts in tests/data: python tools/make_words.py

language, word, count: how often each word stands in the texts of a language, with the punctuation at its end. A bag has
no order, so no sentence of a source can be read from it. The file's metadata holds the characters that differ between
texts in traditional and in simplified script.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
OUT = ROOT / "gpudedup" / "bench" / "words.parquet"
FILES = ("licence_texts", "hertzbeat_docs", "debian_handbook", "wiki_paragraphs", "wiki_scripts", "zh_laws")
UNSPACED = ("zh", "zht", "ja", "th")
FEWEST_WORDS = 4000
"""A language of fewer words than this would make its documents look alike."""
MOST_BYTES = 1_500_000
"""Of the text of a language: the words that are left fit a cache."""

_TOKEN = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff][\uff0c\u3002\uff1b\uff1a\u3001\uff01\uff1f\u201d\u300d\uff09\u300b]*"
    r"|[^\s\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)


def make_words() -> pa.Table:
    """Languages by name, words by count and then by code points."""
    rows = [
        (language, word, count)
        for language, words in sorted(_words().items())
        if words.total() >= FEWEST_WORDS
        for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0]))
    ]
    languages, words, counts = zip(*rows, strict=True)
    columns = {
        "language": pa.array(languages).dictionary_encode(),
        "word": pa.array(words, pa.string()),
        "count": pa.array(counts, pa.uint32()),
    }
    table = _script_table()
    scripts = {"traditional": "".join(table), "simplified": "".join(table.values())}
    return pa.table(columns).replace_schema_metadata({"scripts": json.dumps(scripts)})


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


def _words() -> dict[str, Counter[str]]:
    """Each line of text counts once, an untranslated one as English; of much text each second, third, ... line."""
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
        unspaced = language in UNSPACED
        step = max(1, sum(map(len, own)) * (3 if unspaced else 1) // MOST_BYTES)
        found[language] = Counter(word for line in own[::step] for word in _line_words(line, unspaced))
    return found


def _line_words(line: str, unspaced: bool) -> Iterator[str]:
    for word in _TOKEN.findall(line) if unspaced else line.split():
        of_one_character = unspaced and not word[0].isascii()
        # No address, no path, no rule.
        if of_one_character or (len(word) <= 24 and 1 <= len(re.findall(r"[^\W_]+", word)) <= 2):
            yield word


def _script_table() -> dict[str, str]:
    """Traditional to simplified characters, from texts that tests/data has in both scripts."""
    rows = pq.read_table(DATA / "wiki_scripts.parquet", columns=["text", "script", "cluster"]).to_pylist()
    by_script = {(row["cluster"], row["script"]): row["text"] for row in rows}
    table: dict[str, str] = {}
    for (cluster, script), text in by_script.items():
        other = by_script.get((cluster, "Hans"), "")
        if script == "Hant" and len(other) == len(text):
            table.update({a: b for a, b in zip(text, other, strict=True) if a != b})
    return dict(sorted(table.items()))


if __name__ == "__main__":
    pq.write_table(make_words(), OUT, compression="zstd", compression_level=19, write_statistics=False)
