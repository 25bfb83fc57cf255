"""Signatures, content hashes and band keys of the engine against the reference and its golden file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import reference
from corpora import EDGES, text_array
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.backends.base import U32, SignedBatch, ToSign
from gpudedup.backends.cpu import CpuBackend
from gpudedup.params import Params

GOLDEN = json.loads((Path(__file__).parent / "golden" / "spec1.json").read_text(encoding="ascii"))
FOLDS = ("full", "case", "none")


def sign(array: pa.Array, *, shingles: bool = False, **options: Any) -> SignedBatch:
    (signed,) = CpuBackend(Params(**options), "as asked").sign([ToSign(array, lanes=True, shingles=shingles)])
    return signed


def lanes(array: pa.Array, **options: Any) -> U32:
    signed = sign(array, **options)
    assert signed.lanes is not None
    return signed.lanes


def assert_equals_reference(texts: list[Any], array: pa.Array | None = None, **options: Any) -> None:
    params = Params(**{"num_perm": 40, "bands": 4, "rows": 10, "seed": 7, **options})
    signed = sign(
        text_array(texts, pa.binary()) if array is None else array, shingles=True, **msgspec.structs.asdict(params)
    )
    assert signed.lanes is not None
    _, n = params.shingle.split(":")
    for i, text in enumerate(texts):
        plain = reference.decode(text) if isinstance(text, bytes) else text or ""
        units = reference.units(plain, params.shingle, params.fold)
        assert signed.unit_count[i] == len(units), (i, plain[:60])
        shingles = set(reference.shingle_hashes(units, int(n)))
        assert signed.lanes[i].tolist() == reference.signature(shingles, params.num_perm, params.seed), (i, plain[:60])
        assert tuple(signed.content[i].tolist()) == tuple(reference.content(units)), (i, plain[:60])
        kept = signed.shingles
        assert kept is not None
        assert set(kept.hashes[kept.offsets[i] : kept.offsets[i + 1]].tolist()) == shingles


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda c: f"{c['name']}-{c['shingle']}-{c['fold']}")
def test_golden_texts(case: dict[str, Any]) -> None:
    if "tokens" in case:
        array = pa.array([case["tokens"]], pa.list_(pa.int64()))
        options = {"shingle": case["shingle"]}
    else:
        raw = bytes.fromhex(case["bytes"]) if "bytes" in case else case["text"]
        array = text_array([raw], pa.binary())
        options = {"shingle": case["shingle"], "fold": case["fold"]}
    for seed, expected in case["lanes"].items():
        signed = sign(array, shingles=True, seed=int(seed), num_perm=len(expected), bands=1, rows=1, **options)
        assert signed.lanes is not None
        assert signed.lanes[0].tolist() == expected
        assert [f"{value:016x}" for value in signed.content[0].tolist()] == case["content"]
        assert signed.unit_count[0] == len(case["units"])
        assert signed.shingles is not None
        assert sorted(set(signed.shingles.hashes.tolist())) == sorted(set(case["shingle_hashes"]))


@pytest.mark.parametrize("case", GOLDEN["scopes"], ids=lambda c: f"{c['type']}-{c['value']}")
def test_golden_scopes(case: dict[str, Any]) -> None:
    from gpudedup.stages.sign import scope_codes

    kind = {"bool": pa.bool_()}.get(case["type"]) or pa.type_for_alias(case["type"])
    column = pa.chunked_array([pa.array([case["value"]], kind)])
    codes, keys = scope_codes(column, CpuBackend(Params(), "as asked"))
    assert f"{int(keys[0]):016x}" == case["scope"]
    assert (codes[0] == -1) == (case["value"] is None)


@pytest.mark.parametrize("shingle", ["word:5", "word:1", "word:9", "char:3", "char:24"])
@pytest.mark.parametrize("name", EDGES)
def test_edges_equal_reference(name: str, shingle: str) -> None:
    for fold in FOLDS:
        assert_equals_reference(EDGES[name], shingle=shingle, fold=fold)


@pytest.mark.parametrize("num_perm", [1, 31, 63, 64, 65, 128])
def test_any_number_of_lanes(num_perm: int) -> None:
    assert_equals_reference(EDGES["no blanks"] + EDGES["all empty"], num_perm=num_perm, bands=1, rows=1)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    ],
    ids=str,
)
def test_every_text_type_and_slice(kind: pa.DataType) -> None:
    texts = ["first text of all", None, "", "the same", "the same", "中文 text", "last one of them is here"]
    array = text_array(texts, kind)
    assert_equals_reference(texts, array)
    assert_equals_reference(texts[2:6], array.slice(2, 4))
    assert_equals_reference([], array.slice(3, 0))


def test_nulls_with_bytes_behind_them_are_empty() -> None:
    text = pa.array(["visible words", "hidden words", "more words"])
    hidden = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x05"), *text.buffers()[1:]], 1)
    assert_equals_reference(["visible words", None, "more words"], hidden)


def test_tokens_equal_reference() -> None:
    lists = [[1, 2, 3, 4, 5, 6], [], None, [2**63 - 1, -(2**63)], list(range(5000)), [7] * 9]
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int64())):
        array = pa.array(lists, kind)
        signed = sign(array.slice(1), shingle="tokens:3", num_perm=16, bands=4, rows=4)
        assert signed.lanes is not None
        for i, tokens in enumerate(lists[1:]):
            expected = reference.signature(set(reference.shingle_hashes(tokens or [], 3)), 16, 0)
            assert signed.lanes[i].tolist() == expected
            assert tuple(signed.content[i].tolist()) == tuple(reference.content(tokens or []))


def test_band_keys_equal_reference() -> None:
    texts = pa.array(["some words that make a signature here", "other words"])
    signed = lanes(texts, num_perm=128)
    for bands, rows in ((18, 7), (3, 1), (1, 128), (128, 1)):
        backend = CpuBackend(Params(num_perm=128, bands=bands, rows=rows), "as asked")
        for scopes in (np.array([0, 2**64 - 1], np.uint64), None):
            for with_lanes in (False, True):
                [made] = backend.sign([ToSign(texts, scopes, band_keys=True, lanes=with_lanes)])
                assert (made.lanes is not None) == with_lanes
                assert made.band_keys is not None
                assert made.band_keys.shape == (bands, 2)
                for i in range(2):
                    scope = 0 if scopes is None else int(scopes[i])
                    assert made.band_keys[:, i].tolist() == reference.band_keys(signed[i].tolist(), bands, rows, scope)


ODD_TEXT = st.text(
    st.one_of(
        st.characters(max_codepoint=0x7F),
        st.characters(categories=["L", "M", "N", "Cf", "Zs", "So"]),
        st.sampled_from("ßﷺ한각\u0301\u200d\u00ad\ufe0f中説ガ™½𝟙𠀀_’\u0e01\u1000"),
    ),
    max_size=200,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ODD_TEXT, max_size=4), st.sampled_from(["word:5", "word:2", "char:5"]), st.sampled_from(FOLDS))
def test_any_text_equals_reference(texts: list[str], shingle: str, fold: str) -> None:
    assert_equals_reference(texts, shingle=shingle, fold=fold)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=150), max_size=4), st.sampled_from(["word:3", "char:2"]))
def test_any_bytes_equal_reference(texts: list[bytes], shingle: str) -> None:
    assert_equals_reference(texts, shingle=shingle)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 70),
    st.lists(st.integers(1, 140), min_size=1, max_size=12),
    st.sampled_from([*"aéZ中яﬃǆ한각", "я\u0301", "कि", "ﬁﬃ", "가각"]),
)
def test_long_runs_at_any_place_equal_reference(shift: int, lengths: list[int], letter: str) -> None:
    assert_equals_reference([" " * shift + " ".join(letter * n + "b" * (n % 67) for n in lengths)], shingle="word:1")


PLANES_IN_USE = [range(0xD800), range(0xE000, 0x32400), range(0xE0000, 0xE0200), range(0x10FFF0, 0x110000)]


@pytest.mark.parametrize("shingle", ["word:1", "char:1"])
@pytest.mark.parametrize("fold", FOLDS)
def test_every_code_point_folds_as_the_reference_says(fold: str, shingle: str) -> None:
    """One text a code point, between letters and at its end: fold, class and whether it joins, for all of Unicode in
    use.

    The stored tables are compared for the rest too (test_tables.py).
    """
    points = [c for plane in PLANES_IN_USE for c in plane]
    array = pa.array([f"a{chr(c)}é {chr(c)}" for c in points])
    signed = sign(array, fold=fold, shingle=shingle, num_perm=1, bands=1, rows=1)
    wrong = [
        hex(c)
        for c, content, text in zip(points, signed.content.tolist(), array.to_pylist(), strict=True)
        if tuple(content) != content_of(text, fold, shingle)
    ]
    assert not wrong, wrong[:20]


def content_of(text: str, fold: str, shingle: str) -> tuple[int, int]:
    first, second = reference.content(reference.units(text, shingle, fold))
    return first, second


def test_workers_and_batches_change_nothing() -> None:
    texts = [text for group in EDGES.values() for text in group] * 20
    array = text_array(texts, pa.large_binary())
    one = sign(array, shingles=True, workers=1)
    assert one.lanes is not None
    for workers in (2, 3, 8):
        many = sign(array, shingles=True, workers=workers)
        np.testing.assert_array_equal(one.lanes, many.lanes)
        np.testing.assert_array_equal(one.content, many.content)
        assert one.shingles is not None
        assert many.shingles is not None
        np.testing.assert_array_equal(one.shingles.hashes, many.shingles.hashes)
        np.testing.assert_array_equal(one.shingles.offsets, many.shingles.offsets)
    pieces = [lanes(array.slice(i, 37)) for i in range(0, len(array), 37)]
    np.testing.assert_array_equal(one.lanes, np.concatenate(pieces))


def test_the_first_lanes_do_not_depend_on_their_number() -> None:
    array = pa.array(["the first lanes are the same whatever comes after them"])
    few, many = (lanes(array, num_perm=k, bands=1, rows=1) for k in (8, 200))
    np.testing.assert_array_equal(few[0], many[0, :8])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8, 9, 40])
def test_shingles_over_tile_borders(n: int) -> None:
    """A document of many tiles has the shingles of the reference, however its tiles fall."""
    assert_equals_reference(
        [" ".join(f"w{i % 977}" for i in range(9000))], shingle=f"word:{n}", num_perm=8, bands=1, rows=1
    )


SINGLES = st.sampled_from("中説國ガあア。，、　・한éA7 \u3042\u3099\ufa0eﷺ𠀀\u0e01\ud7a3豈")
LETTERS = st.sampled_from("яЖёйλΣςاَلعकि्한각힣가ßﬃǆİı,.— aB7é\u0301\u00ad\u200d中。🙂")


@settings(max_examples=200, deadline=None)
@given(st.lists(SINGLES, max_size=60).map("".join), st.integers(0, 4), st.integers(0, 3), st.sampled_from(FOLDS))
def test_stretches_of_singles_equal_reference(text: str, before: int, cut: int, fold: str) -> None:
    """Three-byte singles and separators in a row, after a word that is still open, and cut off inside the last one."""
    raw = ("ab" * before + text).encode()
    assert_equals_reference([raw[: len(raw) - cut], raw], shingle="word:2", fold=fold, num_perm=8, bands=1, rows=1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(LETTERS, max_size=200).map("".join),
    st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from(FOLDS),
    st.sampled_from(["word:1", "char:2"]),
)
def test_stretches_of_letters_equal_reference(text: str, before: int, cut: int, fold: str, shingle: str) -> None:
    """Words of other alphabets with blanks, marks and expansions between them, cut off inside the last one."""
    raw = ("ab" * before + text).encode()
    assert_equals_reference([raw[: len(raw) - cut], raw], shingle=shingle, fold=fold, num_perm=8, bands=1, rows=1)


def test_ill_formed_three_byte_sequences_between_singles() -> None:
    """Overlong forms, surrogates, a wrong second or third byte, and texts that end one, two or three bytes early."""
    odd = [
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xe4\x41\xad",
        b"\xe4\xb8\x41",
        b"\xe4\xb8",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xc3\x28",
        b"\xf0\x9f\x98",
        b"\xff\xbf\x80",
    ]
    texts = [b"\xe4\xb8\xad" * 3 + piece + b"\xe6\x96\x87" * 3 for piece in odd]
    texts += [text[:-cut] for text in texts for cut in (1, 2, 3)]
    for shingle in ("word:1", "char:2"):
        assert_equals_reference(texts, shingle=shingle, num_perm=8, bands=1, rows=1)  # type: ignore[arg-type]
