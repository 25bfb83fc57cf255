"""Signing on the emulated device against the reference and its golden file, and how the pipeline treats the device."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
import reference
from corpora import EDGES
from emulated_device import Counters, EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.backends.base import SignedBatch
from gpudedup.backends.cuda import sign
from gpudedup.backends.cuda.sign import Request, Signer
from gpudedup.errors import DeviceError, DeviceMemoryError
from gpudedup.params import Params

ROOT = Path(__file__).parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "spec1.json").read_text(encoding="ascii"))
FOLDS = ("full", "case", "none")
BLOCK_BYTES = sign.READ_BYTES * sign.READ_THREADS
ILL_FORMED = [b"\x80", b"\xbf\xbf\xbf\xbf", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]

Document = str | bytes | Sequence[int] | None
WANTED = ("band_keys", "lanes", "shingles")


def request(documents: Sequence[Document], **wanted: Any) -> Request:
    """The documents as Arrow lays them out, everything wanted."""
    raw = [d.encode("utf-8", "surrogatepass") if isinstance(d, str) else d or [] for d in documents]
    tokens = any(not isinstance(d, bytes) and len(d) for d in raw)
    if tokens:
        values: Any = np.array([token for d in raw for token in d], np.int64)
    else:
        values = np.frombuffer(b"".join(bytes(d) for d in raw), np.uint8)
    offsets = np.cumsum([0, *map(len, raw)]).astype(np.int32)
    return Request(values, offsets, **{"lanes": True, "shingles": True, **wanted})


def params(**options: Any) -> Params:
    return Params(**{"num_perm": 3, "bands": 1, "rows": 2, "seed": 7, **options})


def signer(device: EmulatedDevice, piece_bytes: int = 1 << 24, **options: Any) -> Signer:
    return Signer(device, params(**options), piece_bytes=piece_bytes)


def assert_equals_reference(
    signed: SignedBatch,
    documents: Sequence[Document],
    scopes: Sequence[int] | None = None,
    without: Collection[str] = (),
    **options: Any,
) -> None:
    """All results, but those that were not asked for."""
    run = params(**options)
    n = int(run.shingle.split(":")[1])
    assert {name for name in WANTED if getattr(signed, name) is None} == set(without)
    assert len(signed.unit_count) == len(signed.content) == len(documents)
    if (kept := signed.shingles) is not None:
        assert len(kept.offsets) == len(documents) + 1
        assert kept.offsets[0] == 0
        assert kept.offsets[-1] == len(kept.hashes)
    for i, document in enumerate(documents):
        units = reference.units(document, run.shingle, run.fold)
        shingles = reference.shingle_list(units, n)
        lanes = reference.signature(set(shingles), run.num_perm, run.seed)
        assert signed.unit_count[i] == len(units), (i, document)
        assert tuple(signed.content[i].tolist()) == reference.content(units), (i, document)
        if kept is not None:
            assert kept.hashes[kept.offsets[i] : kept.offsets[i + 1]].tolist() == shingles, (i, document)
        if signed.lanes is not None:
            assert signed.lanes[i].tolist() == lanes, (i, document)
        if signed.band_keys is not None:
            keys = reference.band_keys(lanes, *run.banding, scopes[i] if scopes is not None else 0)
            assert signed.band_keys[:, i].tolist() == keys, (i, document)


def check(documents: Sequence[Document], device: EmulatedDevice | None = None, **options: Any) -> None:
    """Sign in one batch, and compare all results with the reference: 35 lanes are those of a warp and a few more."""
    device, options = device or EmulatedDevice(), {"num_perm": 35, **options}
    [signed] = signer(device, **options).sign([request(documents)])
    assert_equals_reference(signed, documents, **options)
    device.check()


@pytest.fixture(params=emulator.ORDERS)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    """One for each order of threads; in random order, copies and kernels run at random times too."""
    timing = {"forward": "late", "reverse": "early", "random": "random"}[request.param]
    return EmulatedDevice(order=request.param, timing=timing, seed=5)


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda c: f"{c['name']}-{c['shingle']}-{c['fold']}")
def test_golden_texts(case: dict[str, Any]) -> None:
    document = case.get("tokens", bytes.fromhex(case["bytes"]) if "bytes" in case else case.get("text"))
    options = {"shingle": case["shingle"]} if "tokens" in case else {"shingle": case["shingle"], "fold": case["fold"]}
    for seed, lanes in case["lanes"].items():
        [signed] = signer(EmulatedDevice(), seed=int(seed), num_perm=len(lanes), **options).sign([request([document])])
        assert signed.lanes is not None
        assert signed.shingles is not None
        assert signed.lanes[0].tolist() == lanes
        assert [f"{value:016x}" for value in signed.content[0].tolist()] == case["content"]
        assert signed.unit_count[0] == len(case["units"])
        assert sorted(set(signed.shingles.hashes.tolist())) == sorted(set(case["shingle_hashes"]))


def test_lane_constants_are_golden() -> None:
    for seed, (a, b) in GOLDEN["lane_constants"].items():
        ours = sign.lane_constants(int(seed), len(a))
        assert (ours[0].tolist(), ours[1].tolist()) == (a, b)


@pytest.mark.parametrize("shingle", ["word:5", "char:3"])
def test_edges(device: EmulatedDevice, shingle: str) -> None:
    documents = [text for name, texts in EDGES.items() if name != "longer than a tile" for text in texts]
    for fold in FOLDS:
        check(documents, device, shingle=shingle, fold=fold)


@pytest.mark.parametrize("shingle", ["word:2", "char:2"])
def test_every_code_point_that_folds_to_several(shingle: str) -> None:
    several = [chr(c) for c in (*range(0x3400), *range(0xA000, 0xD800), *range(0xE000, 0x20000))]
    several = [c for c in several if len(reference.fold_char(c, "full")) > 1]
    hangul, others = [c for c in several if "가" <= c <= "힣"], [c for c in several if not "가" <= c <= "힣"]
    chosen = hangul[::97] + others
    check(["a".join(chosen[i : i + 60]) for i in range(0, len(chosen), 60)], shingle=shingle)


@pytest.mark.parametrize("num_perm", [1, 8, 9, 96, 127, 128, 129, 200, 260])
def test_any_number_of_lanes(num_perm: int) -> None:
    documents = ["one two three four five six seven", "", "x", "y " * 1100, "z z"]
    check(documents, num_perm=num_perm, bands=1, rows=num_perm, shingle="word:3")


@pytest.mark.parametrize("n", [1, 2, 5, 255, 256])
def test_any_shingle_length(device: EmulatedDevice, n: int) -> None:
    counts = [n - 1, n, n + 1, 0, 1, sign.HASH_UNITS - n, sign.HASH_UNITS, sign.HASH_UNITS + n]
    documents = [" ".join(f"w{(i * i + k) % 1000}" for i in range(count)) for k, count in enumerate(counts)]
    check(documents, device, shingle=f"word:{n}")


@pytest.mark.parametrize("n", [1, 4, 256])
def test_tokens(device: EmulatedDevice, n: int) -> None:
    documents = [[1, 2, 3, 4, 5], [], None, [2**63 - 1, -(2**63)], list(range(2500)), [7] * 9, []]
    check(documents, device, shingle=f"tokens:{n}")


def test_band_keys_of_scopes(device: EmulatedDevice) -> None:
    documents = ["some words that make a signature here", "other words", "", "last"]
    scopes = np.array([0, 1, 2**64 - 1, 12345], np.uint64)
    for bands, rows in ((18, 7), (3, 1), (1, 128), (128, 1)):
        options = {"num_perm": 128, "bands": bands, "rows": rows}
        [signed] = signer(device, **options).sign([request(documents, scope_keys=scopes)])
        assert_equals_reference(signed, documents, scopes.tolist(), **options)


# ------------------------------------------------------------------------------------------------- borders


@pytest.mark.parametrize("shingle", ["word:3", "char:3"])
def test_sizes_around_the_borders_of_threads_and_blocks(shingle: str) -> None:
    text = "ab Ünï중 한ﷺ, x-" * 500
    for border in (sign.READ_BYTES, BLOCK_BYTES, 2 * BLOCK_BYTES):
        for size in range(border - 2, border + 3):
            raw = text.encode()[:size]
            check([raw, b"tail of the batch"], shingle=shingle)
            check([raw], shingle=shingle)


@pytest.mark.parametrize("shingle", ["word:1", "char:1"])
def test_code_points_at_every_place_of_a_stretch(shingle: str) -> None:
    """Of those that fold to less, as much, and more bytes than they have, to several and to none."""
    points = ["ß", "é", "№", "½", "중", "Ⅷ", "\u200b", "中", "’", "𝟙", "𠀀", "Ω", "ﷺ", "\u0301", "\ue000", "Ⱥ"]
    for point in points:
        documents: list[Document] = []
        for place in range(sign.READ_BYTES):
            for after in ("b", " ", point, "é", "-中"):
                text = ("x" * place + point + after + "z").encode()
                documents.append(text + b"." * (-len(text) % sign.READ_BYTES))  # the next begins with a stretch
        check(documents, shingle=shingle, num_perm=2)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("shingle", ["word:1", "char:1"])
def test_every_pair_of_a_byte_and_a_letter(shingle: str, fold: str) -> None:
    bytes_of = [bytes([byte]) for byte in range(256)]
    check([b"aZ" + byte + b"Q9" + byte for byte in bytes_of], shingle=shingle, fold=fold, num_perm=2)


@pytest.mark.parametrize("count", [511, 512, 513, 2047, 2048, 2049, 4096])
def test_units_around_the_borders_of_tiles(device: EmulatedDevice, count: int) -> None:
    check(["a b " * (count // 2) + "c" * (count % 2), "one two three", "", "d e " * 300], device, shingle="word:4")


@pytest.mark.parametrize("shingle", ["word:2", "char:2"])
@pytest.mark.parametrize("border", [2 * sign.READ_BYTES, BLOCK_BYTES])
def test_runs_and_gaps_over_borders(border: int, shingle: str) -> None:
    """Whatever a run of joiners or separators is cut into, units are those of the whole."""
    for length, joiner in itertools.product((1, 63, 64, 65, 128, 129), ("x", "é", "¨", "\u200b", "\u0301y")):
        for before in (border - length, border - length // 2, border - 1, border):
            lead = "a" + "-" * (before - 1) if before > 0 else ""
            check([lead + joiner * length + "z" * (length % 3) + " end"], shingle=shingle)


def test_one_run_over_many_blocks(device: EmulatedDevice) -> None:
    check(["b", "x" * 13000 + "é" * 3000 + "中" + "y" * 5000, "x"], device, shingle="word:2")
    check([" " * 9000, "x" + "\u200b." * 5000 + "y", "." * 9000], device, shingle="char:2")


def test_a_document_over_many_tiles_between_short_ones(device: EmulatedDevice) -> None:
    long = " ".join(str(i * 7919 % 5000) for i in range(6000))
    check(["short one", "", long, "", "a", "b c d e f g", ""], device, num_perm=36, shingle="word:5")


@pytest.mark.parametrize("n", [1, 5, 17])
def test_borders_of_documents_at_every_place_of_a_thread(device: EmulatedDevice, n: int) -> None:
    counts = [*range(20), 0, 1, 0, 0, 7, 8, 9, 40] * 13
    assert sum(counts) > sign.HASH_UNITS + 256
    check([" ".join(f"{i * k % 97}" for i in range(k)) for k in counts], device, shingle=f"word:{n}")


def test_words_of_every_length(device: EmulatedDevice) -> None:
    """Up to 64 code points of four bytes, the longest unit there is; long ones between short ones."""
    letters = ("x", "é", "ठ", "\U00010428")
    words = [letter * length for length in range(1, 66) for letter in letters]
    check([" ".join(f"{word} a" for word in words), " ".join(words)], device, shingle="word:2")


@pytest.mark.parametrize("shingle", ["word:2", "char:2"])
def test_empty_documents_in_masses(device: EmulatedDevice, shingle: str) -> None:
    none: list[Document] = [""]
    documents = [*none * 3000, "first of all", *none * 5000, "a", "b", *[" ."] * 500, "c d e", *none * 2000]
    check(documents, device, shingle=shingle)
    check(none * 700, device, shingle=shingle)
    check([], device, shingle=shingle)


@pytest.mark.parametrize("shingle", ["word:2", "char:2"])
def test_documents_do_not_touch_each_other(shingle: str) -> None:
    """Runs, gaps and marks end with their document; short ones and those that fold to nothing stand between."""
    pieces = ["x" * 40, "y" * 70, "\u0301", "\u200b", " ", "- ", " z", "가", "é", "\u0301e", "中", "", "ﷺ", "q."]
    chance = random.Random(1)
    check([chance.choice(pieces) for _ in range(1500)], shingle=shingle)


@pytest.mark.parametrize("shingle", ["word:1", "char:2"])
def test_ill_formed_bytes_at_every_border(shingle: str) -> None:
    """A sequence that is cut short by the end of its document must not go on in the next, wherever threads meet."""
    for filler in [*range(sign.READ_BYTES + 1), *range(BLOCK_BYTES - 5, BLOCK_BYTES + 2)]:
        documents: list[Document] = [b"a" * filler]
        for left, right in itertools.product(ILL_FORMED, (b"\x80", b"\xbf\x80b", "é".encode(), b"c")):
            documents += [left, right, b"b" + left + right]
        check(documents, shingle=shingle, fold="none")


LETTERS = st.one_of(
    st.characters(max_codepoint=0x7F),
    st.characters(categories=["L", "M", "N", "Cf", "Zs", "So"]),
    st.sampled_from("ßﷺ한각\u0301\u200d\u00ad\ufe0f中説ガ™½𝟙𠀀_’\u0e01\u1000"),
)
TEXTS = st.lists(st.one_of(st.text(LETTERS, max_size=80), st.binary(max_size=80)), max_size=12)


@settings(max_examples=120)
@given(TEXTS, st.sampled_from(["word:3", "char:2", "word:1"]), st.sampled_from(FOLDS), st.integers(0, 2**32))
def test_any_documents(texts: list[str | bytes], shingle: str, fold: str, seed: int) -> None:
    check(texts, EmulatedDevice(order="random", timing="random", seed=seed), shingle=shingle, fold=fold)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([b"\x00", b"a", *ILL_FORMED, "é".encode(), "中".encode(), "𠀀".encode()]), max_size=60),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_any_cuts_of_bytes(parts: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(parts)
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    check([raw[left:right] for left, right in itertools.pairwise(edges)], shingle="char:1", fold="none")


# ------------------------------------------------------------------------------------------------- spans

JOIN_IN_ANY_ORDER = """
#include "core/span.h"
#include "cuda/device.h"
using namespace gpudedup;
template <class Units>
__device__ void join_in_any_order(const uint32_t* kinds, const uint32_t* turns, uint32_t count, uint32_t* units) {
  Span spans[64];
  for (uint32_t i = 0; i < count; ++i) spans[i] = kinds[i] == 3 ? Units::border() : Units::code_point(kinds[i], 1);
  for (uint32_t turn = 0; count > 1; ++turn, --count) {
    const uint32_t i = turns[turn];
    spans[i] = join<Units>(spans[i], spans[i + 1]);
    for (uint32_t k = i + 1; k + 1 < count; ++k) spans[k] = spans[k + 1];
  }
  *units = Units::after(spans[0]).units;
}
extern "C" __global__ void join_words_in_any_order(const uint32_t* kinds, const uint32_t* turns, uint32_t count,
                                                   uint32_t* units) {
  join_in_any_order<Words>(kinds, turns, count, units);
}
extern "C" __global__ void join_chars_in_any_order(const uint32_t* kinds, const uint32_t* turns, uint32_t count,
                                                   uint32_t* units) {
  join_in_any_order<Chars>(kinds, turns, count, units);
}
"""


@pytest.mark.parametrize("unit", ["word", "char"])
def test_spans_join_in_any_order(unit: str) -> None:
    """However neighbours are joined first, the units are those of the documents between the borders."""
    kernels = emulator.build(JOIN_IN_ANY_ORDER)
    chance = random.Random(2)
    for _ in range(400):
        weights = [chance.random(), 10 * chance.random(), chance.random(), chance.random()]
        kinds = [3, *chance.choices(range(4), weights, k=chance.randrange(60))]
        turns = [chance.randrange(left - 1) for left in range(len(kinds), 1, -1)]
        text = "".join(".x中\0"[kind] for kind in kinds)  # separator, joiner, single, border
        expected = sum(len(reference.units(document, f"{unit}:1", "none")) for document in text.split("\0"))
        units = np.zeros(1, np.uint32)
        arrays = [np.array(values, np.uint32) for values in (kinds, turns or [0])]
        kernels.launch(f"join_{unit}s_in_any_order", 1, 1, [*arrays, np.uint32(len(kinds)), units])
        assert units[0] == expected, text


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_one_block_joins_any_number_of_spans(order: emulator.Order) -> None:
    """More than it has threads, as of a text of many megabytes."""
    uncut, chance = 2**32 - 1, random.Random(3)
    spans = {"x": (1, uncut, 0, 1), "中": (0, 0, 1, 1), ".": (0, 0, 0, 0)}
    text = "." + "".join(chance.choices("x中.", (40, 1, 1), k=2 * sign.JOIN_THREADS + 300))
    joined, needed = np.array([spans[c] for c in text], np.uint32), np.zeros(2, np.uint32)
    emulator.kernels().launch("join_words", 1, sign.JOIN_THREADS, [joined.ravel(), np.uint32(len(text)), needed], order)
    assert needed.tolist() == [len(reference.units(text, "word:1", "none")), len(text) - text.count(".")]
    for i in chance.sample(range(1, len(text)), 100):
        _, run, units, size = joined[i].tolist()
        assert units + -(-run // 64) == len(reference.units(text[:i], "word:1", "none"))
        assert size == i - text[:i].count(".")


# ------------------------------------------------------------------------------------------------- pipeline

BATCHES = [
    ["the first batch of all", "has two documents"],
    [],
    ["", "second", "a word or two more " * 40],
    ["ﷺ" * 200],
    ["third and", "last", *[""] * 50, "really the last one, 中文"],
]


@pytest.mark.parametrize("piece_bytes", [400, 1 << 20])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_results_come_in_order(device: EmulatedDevice, slots: int, piece_bytes: int) -> None:
    signed = Signer(device, params(), piece_bytes=piece_bytes, slots=slots).sign(map(request, BATCHES))
    for documents, result in zip(BATCHES, signed, strict=True):
        assert_equals_reference(result, documents)


KINDS = st.sets(st.sampled_from([*WANTED, "scope_keys"]))
SMALL = st.lists(st.sampled_from(["", "one", "two words", "中文 and more", "ﷺ" * 9, "long " * 40]), max_size=5)


@settings(max_examples=80)
@given(st.lists(st.tuples(SMALL, KINDS, st.integers(1, 3)), max_size=6), st.integers(1, 4000), st.integers(0, 2**32))
def test_requests_of_any_kinds_in_a_row(
    runs: list[tuple[list[str], set[str], int]], piece_bytes: int, seed: int
) -> None:
    """However they are joined and cut, each gets what it asked for, with its own scopes."""
    device = EmulatedDevice(order="random", timing="random", seed=seed)
    asked = []
    for documents, kind, repeats in runs:
        for _ in range(repeats):
            scopes = np.arange(len(asked), len(asked) + len(documents), dtype=np.uint64)
            asked.append((documents, kind, scopes))
    signed = signer(device, piece_bytes, shingle="word:2").sign(
        request(
            documents,
            **{name: name in kind for name in WANTED},
            scope_keys=scopes if "scope_keys" in kind else None,
        )
        for documents, kind, scopes in asked
    )
    for result, (documents, kind, scopes) in zip(signed, asked, strict=True):
        given_scopes = scopes.tolist() if "scope_keys" in kind else None
        without = {name for name in WANTED if name not in kind}
        assert_equals_reference(result, documents, given_scopes, without, shingle="word:2")
    device.check()


@pytest.mark.parametrize("piece_bytes", [1, 30, 200, 1000])
def test_batches_are_cut_and_put_together(device: EmulatedDevice, piece_bytes: int) -> None:
    signed = list(signer(device, piece_bytes).sign(map(request, BATCHES)))
    for documents, result in zip(BATCHES, signed, strict=True):
        assert_equals_reference(result, documents)
    [result] = signer(device, 80, shingle="tokens:2").sign([request([[1, 2, 3], [4] * 30, [], [5]])])
    assert_equals_reference(result, [[1, 2, 3], [4] * 30, [], [5]], shingle="tokens:2")


def test_slices_of_values_and_wide_offsets() -> None:
    whole = request(["hidden", "seen first", "", "seen last", "hidden"], scope_keys=np.arange(5, dtype=np.uint64))
    assert whole.scope_keys is not None
    part = Request(whole.values, whole.offsets[1:5].astype(np.int64), whole.scope_keys[1:4], lanes=True, shingles=True)
    [signed] = signer(EmulatedDevice()).sign([part])
    assert_equals_reference(signed, ["seen first", "", "seen last"], [1, 2, 3])


def test_only_what_is_wanted_comes_down() -> None:
    documents = ["some words of a text"] * 20
    device = EmulatedDevice()
    [bare] = signer(device, num_perm=128).sign([request(documents, band_keys=False, lanes=False, shingles=False)])
    assert (bare.band_keys, bare.lanes, bare.shingles) == (None, None, None)
    assert (bare.unit_count == 5).all()
    assert device.counters.bytes_down == 20 * 16 + 21 * 4 + 8
    [keys] = signer(device, num_perm=128).sign([request(documents, lanes=False, shingles=False)])
    assert keys.lanes is None
    assert keys.band_keys is not None


@pytest.mark.parametrize("shingle", ["word:2", "char:2", "tokens:2"])
def test_work_of_the_host_does_not_grow_with_documents(shingle: str) -> None:
    asked = []
    for count in (1, 300, 9000):
        device = EmulatedDevice()
        ours = signer(device, shingle=shingle)
        start = device.counters.calls, device.counters.launches, device.counters.synchronisations
        document: Document = [1, 2] if shingle == "tokens:2" else "a b"
        list(ours.sign([request([document] * count)]))
        now = device.counters.calls, device.counters.launches, device.counters.synchronisations
        asked.append([after - before for before, after in zip(start, now, strict=True)])
    assert asked[0] == asked[1] == asked[2]


def asked_of(device: EmulatedDevice) -> dict[str, int]:
    return {name: getattr(device.counters, name) for name in Counters.__slots__}


def difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


@pytest.mark.parametrize("shingle", ["word:2", "char:2", "tokens:2"])
def test_small_requests_take_what_one_of_their_size_takes(shingle: str) -> None:
    """Launches, waits, copies, memory: the device does not see the borders."""
    document: Document = [1, 2, 3] if shingle == "tokens:2" else "three words here"
    seen = []
    for count in (1, 2, 8, 40):
        device = EmulatedDevice()
        ours = signer(device, shingle=shingle)
        before = asked_of(device)
        results = list(ours.sign([request([document] * (200 // count))] * count))
        assert len(results) == count
        seen.append(difference(asked_of(device), before))
    assert seen[0]["launches"] > 3
    assert all(asked == seen[0] for asked in seen)


def test_the_host_waits_once_a_piece_and_allocates_no_more() -> None:
    """Pieces of four batches."""
    device, document_bytes = EmulatedDevice(), 48 + 8 * 1 + 4 * 3  # one band, three lanes
    documents = ["words of one batch among many"] * 50
    ours = signer(device, piece_bytes=4 * 50 * document_bytes)
    wanted = request(documents, shingles=False)
    start = asked_of(device)
    list(ours.sign([wanted] * 12))
    before = asked_of(device)
    assert len(list(ours.sign([wanted] * 40))) == 40
    asked = difference(asked_of(device), before)
    assert (asked["allocations"], asked["host_allocations"]) == (0, 0)
    assert asked["synchronisations"] == 10 + 4  # a piece, and each stream at the end
    assert asked["launches"] == 10 * (difference(before, start)["launches"] // 3)


def test_next_pieces_are_queued_before_one_is_waited_for() -> None:
    device = EmulatedDevice()
    ours = signer(device, piece_bytes=100)  # a document takes 68 bytes beside its text
    start = device.counters.launches
    signed = ours.sign(request([f"batch number {i}"], shingles=False) for i in range(6))
    launched = []
    for _ in signed:
        launched.append(device.counters.launches - start)
    one = launched[-1] // 6
    assert launched == [3 * one, 4 * one, 5 * one, 6 * one, 6 * one, 6 * one]


def test_batches_larger_than_a_piece_are_cut_and_the_rest_is_joined() -> None:
    """Of 10 documents each in pieces of 7: 7, then 3 which the next 10 cannot join whole, and so on."""
    device = EmulatedDevice()
    ours = signer(device, piece_bytes=7 * 68)
    documents = [f"text {i}" for i in range(10)]
    before = asked_of(device)["launches"]
    results = list(ours.sign([request(documents), request(documents), request(documents[:4]), request(documents[:1])]))
    of_all = asked_of(device)["launches"] - before
    for result, count in zip(results, (10, 10, 4, 1), strict=True):
        assert_equals_reference(result, documents[:count])
    before = asked_of(device)["launches"]
    list(ours.sign([request(documents[:1])]))
    assert of_all == 5 * (asked_of(device)["launches"] - before)  # 7, 3, 7, 3 + 4, 1


@pytest.mark.parametrize(
    "documents",
    [
        pytest.param(["x", "\ufdf2" * 600], id="bytes"),
        pytest.param(["x", ("a " * 34 + "㌀" * 4) * 20], id="units"),
        pytest.param(["ﷺ" * 400, "a", "a b " * 300], id="both"),
    ],
)
def test_texts_that_need_more_room_go_again(device: EmulatedDevice, documents: list[Document]) -> None:
    ours = signer(device, shingle="word:2")
    [first] = ours.sign([request(documents)])
    assert_equals_reference(first, documents, shingle="word:2")
    once = device.counters.launches
    [second] = ours.sign([request(documents)])
    assert_equals_reference(second, documents, shingle="word:2")
    assert device.counters.launches - once == once // 2  # there is room now
    batches = [documents, ["short"], ["ﷺ" * 1500], documents]
    for result, batch in zip(ours.sign(map(request, batches)), batches, strict=True):
        assert_equals_reference(result, batch, shingle="word:2")


def test_a_generator_that_is_closed_leaves_the_signer_usable(device: EmulatedDevice) -> None:
    ours = signer(device)
    signed = ours.sign(request([f"batch {i}"]) for i in range(5))
    next(signed)
    signed.close()  # type: ignore[attr-defined]
    [again] = ours.sign([request(["another"])])
    assert_equals_reference(again, ["another"])
    device.check()


# ------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["allocation", "host_allocation"])
@pytest.mark.parametrize("shingle", ["word:2", "tokens:2"])
def test_no_room_at_any_allocation(shingle: str, kind: str) -> None:
    """Whichever allocation fails, pieces become smaller and the results are the same."""
    words, tokens = [[*BATCHES[0], *BATCHES[2]], *BATCHES[3:]], [[[1, 2, 3], [], [4] * 50], [[5]], [[6, 7]] * 9]
    batches: Any = words if shingle == "word:2" else tokens
    for count in itertools.count(1):
        device = EmulatedDevice(order="random", timing="random", seed=count)
        ours = signer(device, 800, shingle=shingle)  # two pieces or more
        fault = getattr(device.counters, f"{kind}s") + count
        setattr(device.faults, kind, fault)
        for result, documents in zip(ours.sign(map(request, batches)), batches, strict=True):
            assert_equals_reference(result, documents, shingle=shingle)
        device.check()
        if getattr(device.counters, f"{kind}s") < fault:
            break
    assert count > 10


def test_memory_that_holds_a_few_documents_at_a_time() -> None:
    documents = ["a text of some words " * 20] * 60 + ["ﷺ" * 100, ""]
    device = EmulatedDevice(memory_bytes=600_000)
    [signed] = signer(device).sign([request(documents)])
    assert_equals_reference(signed, documents)
    assert device.counters.peak_bytes > 500_000


def test_pieces_of_many_small_documents_are_bounded_too() -> None:
    device = EmulatedDevice()
    ours = signer(device, 50_000, num_perm=128, bands=1, rows=128)
    constants = device.used_bytes
    [signed] = ours.sign([request([""] * 2000)])
    assert (signed.unit_count == 0).all()
    assert device.counters.peak_bytes - constants < 4 * 50_000 < 2000 * 128 * 4


def test_a_document_that_does_not_fit() -> None:
    device = EmulatedDevice(memory_bytes=700_000)
    ours = signer(device)
    signed = ours.sign(map(request, [["fits"], ["word " * 50_000], ["never seen"]]))
    assert_equals_reference(next(signed), ["fits"])
    with pytest.raises(DeviceMemoryError, match="a document of 250000 bytes"):
        next(signed)
    device.check()
    [again] = ours.sign([request(["fits too"])])
    assert_equals_reference(again, ["fits too"])


def test_a_document_that_folds_to_more_than_fits() -> None:
    device = EmulatedDevice(memory_bytes=1_000_000)
    documents = ["small", "ﷺ" * 10_000, "small"]
    with pytest.raises(DeviceMemoryError, match="a document of 30000 bytes"):
        list(signer(device).sign([request(documents)]))
    device.check()


def test_a_document_of_too_many_bytes_is_refused() -> None:
    long = Request(np.broadcast_to(np.uint8(32), 2**28), np.array([0, 2**28]))
    ours = signer(EmulatedDevice())
    signed = ours.sign([request(["before"]), long])
    assert_equals_reference(next(signed), ["before"])
    with pytest.raises(DeviceMemoryError, match="268435456 bytes is too long"):
        next(signed)


def test_a_lost_device_is_an_error_at_any_call() -> None:
    batches = BATCHES[2:4]
    for call in itertools.count(1):
        device = EmulatedDevice()
        ours = signer(device, 800)  # two pieces
        device.faults.lost = device.counters.calls + call
        try:
            results = list(ours.sign(map(request, batches)))
        except DeviceMemoryError:
            pytest.fail("a lost device was taken for a small one")
        except DeviceError:
            continue
        break
    assert len(results) == len(batches)
    assert call > 100


def test_a_refused_launch_is_an_error() -> None:
    device = EmulatedDevice()
    ours = signer(device)
    device.faults.launch = 14
    with pytest.raises(DeviceError, match="refused to launch"):
        list(ours.sign(map(request, BATCHES)))
    for result, documents in zip(ours.sign(map(request, BATCHES)), BATCHES, strict=True):
        assert_equals_reference(result, documents)
    device.check()


@pytest.mark.parametrize(
    ("offsets", "scopes"), [([], None), ([0, 3, 2], None), ([-1, 2], None), ([0, 4], None), ([0, 2], [1, 2])]
)
def test_offsets_that_kernels_could_not_trust_are_refused(offsets: list[int], scopes: list[int] | None) -> None:
    keys = None if scopes is None else np.array(scopes, np.uint64)
    with pytest.raises(ValueError, match=r"offsets|scope keys"):
        Request(np.zeros(3, np.uint8), np.array(offsets, np.int64), keys)


def test_constants_are_those_of_the_kernels() -> None:
    source = "".join((ROOT / "csrc" / "cuda" / name).read_text() for name in ("units.cu", "sign.cu", "block.h"))
    found = dict(re.findall(r"constexpr uint32_t (\w+) = (\w+(?: \* \w+)?);", source))
    for name in (
        "READ_BYTES",
        "READ_THREADS",
        "JOIN_THREADS",
        "HASH_THREADS",
        "HASH_UNITS",
        "SIGN_THREADS",
        "SIGN_UNITS",
        "WARP_THREADS",
    ):
        assert int(found[name]) == getattr(sign, name), name
