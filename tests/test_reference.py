"""The reference against things outside it: the golden file, CPython, published constants, theory, brute force."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

unicodedata2 = pytest.importorskip("unicodedata2", reason="the reference needs unicodedata2 16.0.0")
pytest.importorskip("opencc", reason="the reference needs opencc 1.4.2")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import make_golden  # noqa: E402
import reference as ref  # noqa: E402

# One worker makes the golden values once.
pytestmark = pytest.mark.xdist_group("reference")

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "spec1.json").read_text(encoding="ascii"))
CASES = {(case["name"], case["shingle"], case["fold"]): case for case in GOLDEN["texts"]}


# ------------------------------------------------------------------------------------------------------- golden file


@pytest.fixture(scope="module")
def regenerated() -> dict[str, Any]:
    out: dict[str, Any] = json.loads(make_golden.serialise(make_golden.golden()))
    return out


@pytest.mark.parametrize("part", list(GOLDEN))
def test_golden_equals_reference(regenerated: dict[str, Any], part: str) -> None:
    assert regenerated[part] == GOLDEN[part]
    assert list(regenerated) == list(GOLDEN)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("english", "english upper case, other blanks"),
        ("chinese without blanks", "chinese with blanks"),
        ("traditional", "simplified"),
        ("combining marks, composed", "combining marks, decomposed"),
        ("kana composed", "kana decomposed"),
        ("hangul composed", "hangul decomposed"),
        ("arabic with marks", "arabic without marks"),
        ("hebrew with points", "hebrew without points"),
        ("130 letters", "130 letters with marks"),
    ],
)
def test_named_cases_have_equal_content(left: str, right: str) -> None:
    a, b = CASES[left, "word:5", "full"], CASES[right, "word:5", "full"]
    assert a["units"] == b["units"]
    assert a["content"] == b["content"]
    assert a["lanes"] == b["lanes"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zero-width characters", ["harbour", "ledger"]),
        ("full width", ["abc", "xyz", "019"]),
        ("half-width kana", list("カラスハン")),
        ("turkish i", ["iiiı", "istanbul", "diyarbakir"]),
        ("sharp s", ["strasse"] * 3),
        ("trade marks", ["harbour", "office"]),
        ("digits of other scripts", ["31234001"]),
        ("underscore", ["harbour", "master", "2", "init"]),
        ("apostrophes", ["don", "t", "don", "t", "donʼt", "o", "hara"]),
        ("emoji", ["ship", "yard", "lab"]),
        ("keycap", ["1", "2"]),
        ("U+FDFA", ["صلى", "الله", "عليه", "وسلم"]),
        ("65 letters", ["x" * 64, "x"]),
        ("truncated then lead", ["中"]),
        ("well-formed bytes", ["cafe", "港"]),
    ],
)
def test_named_cases_have_the_units_one_expects(name: str, expected: list[str]) -> None:
    assert CASES[name, "word:5", "full"]["units"] == expected


# -------------------------------------------------------------------------------------------------- text, fold, units

UTF8_EDGES = bytes.fromhex("41c2c3c1e0e6edeff0f3f4f5ff809fa0bf8f90e4b8ad")


@given(st.lists(st.sampled_from(UTF8_EDGES), max_size=12).map(bytes))
@settings(max_examples=2000, deadline=None)
def test_decode_is_cpythons_replace(data: bytes) -> None:
    assert ref.decode(data) == data.decode("utf-8", errors="replace")


@given(st.binary(max_size=40))
def test_decode_any_bytes(data: bytes) -> None:
    assert ref.decode(data) == data.decode("utf-8", errors="replace")


def test_lone_surrogates_count_as_ill_formed() -> None:
    text = "a\ud800b \udfffc"
    assert ref.units(text) == ref.units(text.encode("utf-8", "surrogatepass")) == ["a", "b", "c"]
    assert ref.units(text, "char:2") == list("a b c")


@given(st.text(max_size=30), st.sampled_from(["full", "case", "none"]))
@settings(max_examples=300, deadline=None)
def test_fold_is_idempotent(text: str, mode: str) -> None:
    once = ref.fold(text, mode)
    assert ref.fold(once, mode) == once


SCRIPTS = st.sampled_from("éǻệåﬁ①ガぱ각한がกำៅاٌשּׁйёÅΐ漢裏Ⅷ㎥ａ9٣ _'’-\u200d\u0301\u3099")
SCRIPT_TEXT = st.one_of(st.text(max_size=30), st.lists(SCRIPTS, max_size=30).map("".join))


@given(SCRIPT_TEXT)
@settings(max_examples=300, deadline=None)
def test_normal_forms_have_equal_units(text: str) -> None:
    # Marks that the fold keeps (Brahmic scripts) stand where the writer put them: canonical order is not applied, so
    # a text is compared in the two forms of one order.
    nfd = unicodedata2.normalize("NFD", text)
    nfc = unicodedata2.normalize("NFC", text)
    assert ref.units(unicodedata2.normalize("NFD", nfc)) == ref.units(nfd) == ref.units(nfc)


@given(SCRIPT_TEXT)
@settings(max_examples=200, deadline=None)
def test_units_hold_unit_characters_only(text: str) -> None:
    for unit in ref.units(text):
        assert 1 <= len(unit) <= 64
        assert all(ref.char_class(c) == "joins" for c in unit) or (len(unit) == 1 and ref.char_class(unit) == "single")
    joined = "".join(ref.units(text, "char:5"))
    assert joined == joined.strip()
    assert "  " not in joined
    assert joined.replace(" ", "") == "".join(ref.units(text))


# --------------------------------------------------------------------------------------------------------- hashes


def test_mix_is_splitmix64() -> None:
    # Output i of SplitMix64 seeded with s is mix(s + (i + 1) * G); prng.di.unimi.it/splitmix64.c.
    # Seed 0 and seed 1234567: the values printed at rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
    assert ref.mix(ref.G) == 0xE220A8397B1DCDAF
    first_five = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [ref.mix(1234567 + (i + 1) * ref.G) for i in range(5)] == first_five


def test_the_first_lanes_do_not_depend_on_num_perm() -> None:
    for k in (1, 2, 31, 128):
        a, b = ref.lanes_constants(7, k)
        long_a, long_b = ref.lanes_constants(7, 256)
        assert (a, b) == (long_a[:k], long_b[:k])
        assert all(v % 2 == 1 for v in a)


def test_short_shingles_differ_from_full_ones() -> None:
    units = ["a", "b", "c"]
    assert len({ref.shingle_list(units, n)[0] for n in (1, 2, 3)}) == 3
    assert ref.shingle_list(units, 4) == ref.shingle_list(units, 3)
    assert ref.shingle_list([], 5) == []


def test_thue_morse_documents_have_different_content() -> None:
    # Any polynomial mod 2**64 with an odd base confuses these two at length 2048.
    bits = [i.bit_count() % 2 for i in range(2048)]
    left = [("spam", "eggs")[b] for b in bits]
    right = [("eggs", "spam")[b] for b in bits]
    c, d = ref.content(left), ref.content(right)
    assert c[0] != d[0]
    assert c[1] != d[1]


def test_shared_lanes_follow_the_jaccard_index() -> None:
    # Equal lanes of a pair at J are binomial(num_perm, J) if lanes are independent; the mean over 200 pairs of 128
    # lanes then has standard deviation sqrt(J * (1 - J) / 25600) <= 0.0031. Five of them are allowed.
    rng = random.Random(1)
    for shared, own in ((10, 40), (50, 25), (80, 10), (95, 3)):
        jaccard = shared / (shared + 2 * own)
        equal = 0
        for _ in range(200):
            hashes = [rng.getrandbits(32) for _ in range(shared + 2 * own)]
            left, right = hashes[: shared + own], hashes[:shared] + hashes[shared + own :]
            seed = rng.getrandbits(64)
            pair = ref.signature(left, 128, seed), ref.signature(right, 128, seed)
            equal += sum(x == y for x, y in zip(*pair, strict=True))
        assert abs(equal / 25600 - jaccard) < 5 * math.sqrt(jaccard * (1 - jaccard) / 25600)


def test_bands_follow_the_s_curve() -> None:
    # P(candidate) = 1 - (1 - J**r)**b. 600 pairs: five standard deviations, plus one pair.
    rng = random.Random(2)
    bands, rows = 18, 7
    for shared, own in ((50, 25), (60, 20), (70, 15), (80, 10)):
        expected = 1 - (1 - (shared / (shared + 2 * own)) ** rows) ** bands
        hits = 0
        for seed in range(600):
            hashes = [rng.getrandbits(32) for _ in range(shared + 2 * own)]
            left = ref.signature(hashes[: shared + own], 126, seed)
            right = ref.signature(hashes[:shared] + hashes[shared + own :], 126, seed)
            keys = ref.band_keys(left, bands, rows), ref.band_keys(right, bands, rows)
            hits += any(x == y for x, y in zip(*keys, strict=True))
        assert abs(hits / 600 - expected) < 5 * math.sqrt(expected * (1 - expected) / 600) + 1 / 600


def test_bands_for_the_usual_thresholds() -> None:
    # The table of design 2.8: num_perm 128, recall 0.95.
    assert [ref.choose_bands(t, 0.95, 128) for t in (0.5, 0.6, 0.7, 0.8, 0.9)] == [
        (42, 3),
        (32, 4),
        (25, 5),
        (18, 7),
        (10, 12),
    ]
    with pytest.raises(ValueError, match="needs num_perm 29"):
        ref.choose_bands(0.1, 0.95, 16)  # 1 - 0.9**29 = 0.953, 1 - 0.9**28 = 0.948


# -------------------------------------------------------------------------------------------------- window, decision


@pytest.mark.parametrize("window", [1, 2, 3, 64])
def test_windows_are_whole_up_to_two_windows_and_one(window: int) -> None:
    whole = 2 * window + 1
    assert list(ref.window_pairs(whole, window)) == [(p, q) for q in range(whole) for p in range(q)]
    longer = list(ref.window_pairs(whole + 40, window))
    assert max(sum(q == k for _, q in longer) for k in range(whole + 40)) == 2 * window
    assert (window, whole) not in longer


@given(st.integers(1, 7), st.data())
@settings(max_examples=200)
def test_keepers_are_the_lexicographically_first_maximal_independent_set(n: int, data: Any) -> None:
    order = data.draw(st.permutations(range(n)))
    rank = {row: i for i, row in enumerate(order)}
    edges = data.draw(st.sets(st.sampled_from([(p, q) for q in range(n) for p in range(q)]))) if n > 1 else set()
    pairs = {(order[p], order[q]) for p, q in edges}
    independent = []
    for size in range(n + 1):
        for kept in itertools.combinations(range(n), size):
            inside = set(kept)
            free = not any(p in inside and q in inside for p, q in edges)
            covers = all(any(p in inside for p, r in edges if r == q) or q in inside for q in range(n))
            if free and covers:
                independent.append(kept)
    first = min(independent, key=lambda kept: [i not in kept for i in range(n)])
    keeper_of = ref.choose_keepers(order, pairs, rank)
    assert {order[i] for i in first} == set(order) - set(keeper_of)
    for row, keeper in keeper_of.items():
        kept_better = [b for b, w in pairs if w == row and b not in keeper_of]
        assert keeper == min(kept_better, key=rank.__getitem__)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=9), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@settings(max_examples=150, deadline=None)
def test_decision_is_one_by_definition(documents: list[list[int]], threshold: float) -> None:
    """With a band for every lane and no window, the decision is that of all pairs that share a lane."""
    result = ref.deduplicate(documents, shingle="tokens:2", threshold=threshold, num_perm=16, bands=16, rows=1)
    sets = [ref.shingle_hashes(d, 2) for d in documents]
    signatures = [ref.signature(s, 16, 0) for s in sets]
    kept: list[int] = []
    for row, document in enumerate(documents):
        if not document:
            assert result.keep_mask[row]
            continue
        better = None
        for k in kept:
            equal = documents[k] == document
            meets = any(x == y for x, y in zip(signatures[k], signatures[row], strict=True))
            if equal or (meets and len(sets[k] & sets[row]) * 10**6 >= threshold * 10**6 * len(sets[k] | sets[row])):
                better = k
                break
        assert result.keep_mask[row] == (better is None)
        if better is None:
            kept.append(row)
    for removal in result.removed:
        assert removal.keeper_row is not None
        assert result.keep_mask[removal.keeper_row]
        left, right = sets[removal.keeper_row], sets[removal.row]
        assert removal.similarity == len(left & right) / len(left | right) >= threshold
        assert removal.reason == ("exact" if documents[removal.keeper_row] == documents[removal.row] else "near")


@given(st.permutations(range(8)))
@settings(max_examples=30, deadline=None)
def test_permuting_unique_keep_values_permutes_the_result(order: list[int]) -> None:
    texts = [" ".join(make_golden.WORDS[i // 3 : i // 3 + 30 + i % 3]) for i in range(8)]
    options: dict[str, Any] = {"threshold": 0.5, "keep": "max:stars"}
    plain = ref.deduplicate(texts, keep_values=list(range(8)), **options)
    moved = ref.deduplicate([texts[i] for i in order], keep_values=list(order), **options)
    assert [moved.keep_mask[order.index(i)] for i in range(8)] == plain.keep_mask


def test_keep_orders() -> None:
    nan = math.nan
    values = [None, nan, -0.0, 0.0, 3.0, None, nan, 3.0]
    assert ref.rank_order("max:v", [1] * 8, values) == [4, 7, 2, 3, 1, 6, 0, 5]
    assert ref.rank_order("min:v", [1] * 8, values) == [2, 3, 4, 7, 1, 6, 0, 5]
    assert ref.rank_order("longest", [3, 9, 9, 0], None) == [1, 2, 0, 3]
    assert ref.rank_order("sources:s=wiki,web", [1] * 5, ["book", "web", None, "wiki", "web"]) == [3, 1, 4, 0, 2]
    assert ref.rank_order("max:v", [1] * 3, [False, True, True]) == [1, 2, 0]
    assert ref.rank_order("min:v", [1] * 3, ["\U00010000", "\uffff", "a"]) == [2, 1, 0]


def test_at_refuses_a_lower_threshold() -> None:
    result = ref.deduplicate(["a b c"] * 2, threshold=0.8)
    assert result.at(0.9).keep_mask == [True, False]
    with pytest.raises(ValueError, match="below"):
        result.at(0.7)
    assert ref.threshold_ppm(0.8) == 800000
    with pytest.raises(ValueError, match="millionths"):
        ref.threshold_ppm(1e-7)
    with pytest.raises(TypeError, match="floating"):
        ref.deduplicate(["a", "b"], within=[0.5, None])


# ----------------------------------------------------------------------------------------------------------- against

SOME_DOCUMENTS = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=9)
EVERY_LANE: dict[str, Any] = {"shingle": "tokens:2", "num_perm": 16, "bands": 16, "rows": 1, "bucket_window": 1000}


def kept_rows(result: ref.Result) -> list[int]:
    return [row for row, keep in enumerate(result.keep_mask) if keep]


def decisions(result: ref.Result) -> list[tuple[int, str, int | None, float | None]]:
    return [(r.row, r.reason, r.keeper_row, r.similarity) for r in result.removed]


@given(SOME_DOCUMENTS, SOME_DOCUMENTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from(["exact", "signature"]))
@settings(max_examples=200, deadline=None)
def test_against_is_by_definition(
    earlier: list[list[int]], documents: list[list[int]], threshold: float, verify: str
) -> None:
    """All of ``earlier`` stay, however alike; a document goes iff it is similar to one of them or to a kept one."""
    result = ref.deduplicate(documents, against=earlier, threshold=threshold, verify=verify, **EVERY_LANE)
    everyone = {-1 - p: d for p, d in enumerate(earlier)} | dict(enumerate(documents))
    sets = {row: ref.shingle_hashes(d, 2) for row, d in everyone.items()}
    lanes = {row: ref.signature(s, 16, 0) for row, s in sets.items()}

    def similarity(left: int, right: int) -> float:
        equal = sum(x == y for x, y in zip(lanes[left], lanes[right], strict=True))
        if not equal or everyone[left] == everyone[right]:
            return float(equal > 0)
        return equal / 16 if verify == "signature" else len(sets[left] & sets[right]) / len(sets[left] | sets[right])

    stay = [row for row in everyone if row < 0 and everyone[row]]
    expected = []
    for row, document in enumerate(documents):
        if not document:
            continue
        # A copy goes with the best of its content, even where a better-ranked one of other content is similar to both.
        same = [other for other in everyone if other < row and everyone[other] == document]
        alike = [k for k in stay if similarity(k, row) >= threshold]
        if same and same[0] in stay:
            expected.append((row, "exact", same[0], 1.0))
        elif alike:
            expected.append((row, "near", alike[0], similarity(alike[0], row)))
        else:
            stay.append(row)
    assert decisions(result) == expected
    assert all(r.cluster == r.keeper_row for r in result.removed)
    gone = {row for row, *_ in expected}
    assert result.keep_mask == [row not in gone for row in range(len(documents))]


def halves(
    first: list[Any], second: list[Any], keep: str = "first", split: bool = False, **options: Any
) -> tuple[ref.Result, ref.Result, list[int]]:
    """A run over ``first``, one over ``second`` against it, and the rows kept of the first in rank order.

    With ``split`` each even document is of one `across` value and each odd one of the other.
    """
    sides = [[i % 2 for i in range(len(half))] if split else None for half in (first, second)]
    before = ref.deduplicate(first, across=sides[0], keep=keep, **options)
    order = ref.rank_order(keep, [len(ref.units(d, options["shingle"])) for d in first], None)
    kept = [row for row in order if before.keep_mask[row]]
    after = ref.deduplicate(
        second,
        across=sides[1],
        against=[first[row] for row in kept],
        against_across=[sides[0][row] for row in kept] if sides[0] is not None else None,
        keep=keep,
        **options,
    )
    return before, after, kept


@given(
    SOME_DOCUMENTS,
    SOME_DOCUMENTS,
    st.sampled_from([0.3, 0.6, 1.0]),
    st.sampled_from(["exact", "signature", "none"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_two_halves_in_turn_are_one_run(
    first: list[list[int]], second: list[list[int]], threshold: float, verify: str, split: bool
) -> None:
    """True for keepers, keep="first" and buckets that are not bounded.

    What becomes of a document then depends on the kept ones before it alone. Documents of the first half that were
    removed matter to later ones of equal content, which share their fate in one run: but such a one has the same
    similar candidates, all of those before the removed one among them, so its keeper is the same. In bounded buckets
    removed documents count for positions, in components they connect, and under another `keep` a document of the
    second half may rank before one of the first.
    """
    options: dict[str, Any] = {"threshold": threshold, "verify": verify, **EVERY_LANE}
    before, after, kept = halves(first, second, split=split, **options)
    place = {-1 - p: row for p, row in enumerate(kept)} | {r: r + len(first) for r in range(len(second))}
    sides = [i % 2 for i in range(len(first))] + [i % 2 for i in range(len(second))] if split else None
    whole = ref.deduplicate([*first, *second], across=sides, **options)
    moved = [
        (place[row], reason, None if keeper is None else place[keeper], similarity)
        for row, reason, keeper, similarity in decisions(after)
    ]
    assert decisions(before) + moved == decisions(whole)
    assert before.keep_mask + after.keep_mask == whole.keep_mask


@given(
    SOME_DOCUMENTS,
    SOME_DOCUMENTS,
    st.sampled_from([0.3, 0.6, 1.0]),
    st.sampled_from(["first", "longest"]),
    st.sampled_from(["keepers", "components"]),
)
@example([[0, 1, 0], [0, 0, 0, 0]], [[0, 0, 1], [0, 1, 0]], 0.3, "longest", "components")
@settings(max_examples=300, deadline=None)
def test_against_is_the_plain_decision_over_kept_ones_first(
    first: list[list[int]], second: list[list[int]], threshold: float, keep: str, clustering: str
) -> None:
    """What an earlier run kept is an independent set, so ranking it first is all that is needed; in components those
    that documents of the second half connect stay."""
    options: dict[str, Any] = {"threshold": threshold, "clustering": clustering, **EVERY_LANE}
    _, after, kept = halves(first, second, keep=keep, **options)
    better = list(range(len(kept)))
    order = ref.rank_order(keep, [len(d) for d in second], None)
    values = better + [len(kept) + order.index(row) for row in range(len(second))]
    everyone = [*(first[row] for row in kept), *second]
    whole = ref.deduplicate(everyone, keep="min:place", keep_values=values, **options)
    place = {-1 - p: p for p in better} | {row: row + len(kept) for row in range(len(second))}
    moved = [
        (place[row], reason, None if keeper is None else place[keeper], similarity)
        for row, reason, keeper, similarity in decisions(after)
    ]
    of_second = [decision for decision in decisions(whole) if decision[0] >= len(kept)]
    if clustering == "keepers":
        assert of_second == decisions(whole)
        assert moved == of_second
    else:  # a copy of a kept one that was connected has that one as its keeper
        copies = {row: keeper for row, reason, keeper, _ in moved if reason == "exact"}
        assert all(keeper is not None and everyone[row] == everyone[keeper] for row, keeper in copies.items())
        near = [decision for decision in of_second if decision[1] == "near" and decision[0] not in copies]
        assert [decision for decision in moved if decision[1] == "near"] == near
        assert [d[0] for d in moved] == [d[0] for d in of_second]
        assert after.keep_mask == whole.keep_mask[len(kept) :]


@pytest.mark.parametrize("window", [1, 2, 3, 64])
def test_against_counts_for_positions(window: int) -> None:
    """Permutations of one set: one bucket, and every document of its own content."""
    orders = list(itertools.permutations(range(4)))[:18]
    sides = [i % 3 for i in range(18)]
    for across in (False, True):
        result = ref.deduplicate(
            orders[7:],
            against=orders[:7],
            across=sides[7:] if across else None,
            against_across=sides[:7] if across else None,
            shingle="tokens:1",
            bucket_window=window,
            num_perm=16,
            bands=1,
            rows=16,
        )
        rows = [-1 - p for p in range(7)] + list(range(11))
        expected = {
            (rows[p], rows[q])
            for q in range(7, 18)
            for p in range(q)
            if (p < window or q - p <= window) and not (across and sides[p] == sides[q])
        }
        assert result.candidates == expected
        bounded = (1, 18) if 2 * window + 1 < 18 else (0, 0)
        assert result.bounded == (*bounded, 18)


def test_copies_of_documents_of_earlier_runs() -> None:
    a, b, c = "a b c d e f", "g h i j k l", "m n o p q r"
    result = ref.deduplicate([a, b, a.upper(), c, c], against=[b, a, a, ""])
    assert decisions(result) == [
        (0, "exact", -2, 1.0),
        (1, "exact", -1, 1.0),
        (2, "exact", -2, 1.0),
        (4, "exact", 3, 1.0),
    ]
    # Under across, a copy of equal value stays with its representative, and one of another value goes.
    result = ref.deduplicate([a, a, b], across=["x", "y", "y"], against=[a], against_across=["x"])
    assert decisions(result) == [(1, "exact", -1, 1.0)]
    # Within a value only.
    result = ref.deduplicate([a, a], within=["x", "y"], against=[a], against_within=["y"])
    assert decisions(result) == [(1, "exact", -1, 1.0)]


def test_components_connect_earlier_documents_and_leave_them() -> None:
    """The chain of the specification: 0 and 2 ran before, 1 connects them, 3 is similar to 2 and not to 0."""
    words = [make_golden.WORDS[8 * i : 8 * i + 60] for i in range(5)]
    chain = [" ".join(w) for w in words]
    options: dict[str, Any] = {"threshold": 0.7, "bands": 64, "rows": 1, "num_perm": 64, "clustering": "components"}
    result = ref.deduplicate([chain[1], chain[3], chain[2]], against=[chain[0], chain[2]], **options)
    assert [(r.row, r.reason, r.keeper_row) for r in result.removed] == [
        (0, "near", -1),
        (1, "near", -1),
        (2, "exact", -2),
    ]
    alone = ref.deduplicate([chain[3]], against=[chain[0], chain[2]], **options)
    assert [(r.row, r.keeper_row) for r in alone.removed] == [(0, -2)]
