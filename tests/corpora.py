"""Texts that are hard for some piece of the engine, each with its reason, and Arrow arrays of them."""

from __future__ import annotations

import pyarrow as pa

EDGES: dict[str, list[str | bytes | None]] = {
    "no documents": [],
    "all empty": ["", None, " ", "\n\t", "\u200b\u00ad", "\ufffd\0"],
    "one byte": ["a", ".", "é", "中"],
    "bytes that are no text": [
        b"\xff",
        b"\xc3",
        b"a\xc3",
        b"\xe4\xb8",
        b"a\xf0\x9f\x98 b",
        b"\xed\xa0\x80",
        b"\x80" * 70,
    ],
    "around eight bytes": ["a" * n + " " + "b" * (17 - n) for n in range(1, 17)],
    "around sixty-four": ["x" * n for n in (62, 63, 64, 65, 127, 128, 129, 192, 193)],
    "runs over block borders": [" " * n + "word" * 20 + " tail" for n in range(0, 70, 7)],
    "accents inside ASCII": [
        "naïve " * 40,
        "caf" + "é" * 70 + " x",
        "ab" * 31 + "é" + "cd" * 40,
        "é" + "z" * 64 + " q",
    ],
    "dropped inside a run": ["wo\u00adrd " * 30, "a\u200bb" * 90, "\u0301" * 5 + "e" + "\u0301" * 90],
    "expansions": ["ﷺ" * 40, "㍿ ㌀ ﬃ ẞ ½ ™ x™" * 10, "\u3300" * 3000],
    "hangul": ["한국어 텍스트 각 갛 힣" * 20, "가" * 70],
    "no blanks": ["中文沒有空格的文章這是一個測試" * 30, "ภาษาไทย" * 20, "日本語ガギグｶﾞ" * 20],
    "fewer units than a shingle": ["one", "one two", "one two three four", "one two three four five"],
    "all the same": ["the same words again and again in every text"] * 9,
    "longer than a tile": [
        "word " * 5000,
        "x" * 20000,
        "中" * 9000,
        ("long words " + "y" * 100 + "é ") * 300,
        "ﷺ " * 4000,
    ],
}


def text_array(texts: list[str | bytes | None], kind: pa.DataType) -> pa.Array:
    """The texts as an array of a string or binary type; ill-formed bytes are put in as they are."""
    raw = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in texts]
    wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    array = pa.array(raw, pa.large_binary() if wide else pa.binary())
    if pa.types.is_dictionary(kind):
        encoded = text_array(texts, kind.value_type).dictionary_encode()
        return encoded.cast(kind) if encoded.type != kind else encoded
    if kind in (pa.binary(), pa.large_binary()):
        return array
    if kind in (pa.string(), pa.large_string()):  # the same buffers under another name: nothing checks them
        return pa.Array.from_buffers(kind, len(array), array.buffers(), array.null_count)
    return array.cast(pa.binary_view()).view(kind) if kind == pa.string_view() else array.cast(kind)
