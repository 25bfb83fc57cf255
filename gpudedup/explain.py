"""Why a document of a run was removed, or for whom it was kept, with the texts read back from the input."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from bisect import bisect
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpudedup.errors import ArtefactError, GpudedupError, InputError, ParameterError
from gpudedup.params import Params, parse_memory, parse_shingle

if TYPE_CHECKING:
    from gpudedup.api import Run
    from gpudedup.io.source import Source

READ_MEMORY_BYTES = 1 << 30
"""For reading single documents back, unless the run was given another amount."""

EXAMPLES_CONSIDERED = 10_000
"""Near-copies that examples are chosen from: the removals of further shards are not read."""

EXAMPLE_SHARDS = 100
"""Shards whose removals are read at least, should there be fewer near-copies; more only until there are enough."""

EXAMPLE_CHARACTERS = 1 << 20
"""An example is shown of longer texts only if there is no other, and then of their beginnings."""

EXAMPLES_READ = 3
"""How many times as many pairs are read at most, to find shorter ones."""

Place = tuple[str | None, str, int]
"""(earlier run, or None for a document of the run itself; shard; row)."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document of a run. ``text`` is None where the input could not be read back."""

    shard: str
    row: int
    id: Any = None
    text: str | None = None
    run: str | None = None
    """The earlier run (``against``) that it is of, if it is of one."""

    @property
    def name(self) -> str:
        """What a reader calls it."""
        name = f"{self.shard}:{self.row}"
        if self.id is not None:
            name += f"  (id {self.id})"
        return name if self.run is None else f"{name}  of the earlier run {self.run}"


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """A document that was removed for another."""

    document: Document
    reason: str
    similarity: float | None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a run decided about one document, and why. ``status`` is "removed", "kept" or "skipped"."""

    document: Document
    status: str
    rule: str
    """The rule that decided, in words."""
    threshold: float
    reason: str | None = None
    keeper: Document | None = None
    similarity: float | None = None
    cluster: int | None = None
    removed_for_it: list[Removal] = []
    note: str | None = None
    """Why texts are missing, if they are."""

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return built


def explain(run: Run, document: str | int) -> Explanation:
    """Why ``document`` was removed, or for which documents it was kept.

    document: a row number if the run has one shard, ``SHARD:ROW``, or an id; ``row=N`` and ``id=X`` say which is meant.
    Reads the texts back from the input; where that is gone or was changed since, ``note`` says so and texts are None.
    Raises ParameterError if nothing, or more than one document, is meant.
    """
    history = _History(run)
    place = history.find(str(document))
    found = history.removal_of(place)
    skipped = found is None and history.is_skipped(place)
    removed_for_it = [] if found is not None or skipped else history.removed_for(place)
    texts, note = read_texts(run, [] if skipped else [place, *_keeper_places(found)])
    params = history.params
    _, shard, row = place
    return Explanation(
        document=Document(shard=shard, row=row, id=history.id_of(place), text=texts.get(place)),
        status="skipped" if skipped else "kept" if found is None else "removed",
        rule=_rule(params, found, skipped=skipped, removed_for_it=len(removed_for_it)),
        threshold=params.threshold,
        reason=found["reason"] if found else None,
        keeper=_keeper(found, texts) if found else None,
        similarity=found["similarity"] if found else None,
        cluster=found["cluster"] if found else None,
        removed_for_it=removed_for_it,
        note=note,
    )


def _keeper_places(found: dict[str, Any] | None) -> list[Place]:
    """The place of the keeper, if there is one."""
    if found is None or found["keeper_shard"] is None:
        return []
    return [(found.get("keeper_run"), found["keeper_shard"], found["keeper_row"])]


def _keeper(found: dict[str, Any], texts: dict[Place, str]) -> Document | None:
    for place in _keeper_places(found):
        run, shard, row = place
        return Document(shard=shard, row=row, id=found.get("keeper_id"), text=texts.get(place), run=run)
    return None


class _History:
    """What a run left about its documents, looked up by place or id."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._removed = removed = run.removed
        self._for_own = removed  # the removals whose keeper is a document of this run
        if "keeper_run" in removed.column_names:
            self._for_own = removed.filter(removed["keeper_run"].is_null())
        self._rows = {entry.path: entry.rows for entry in run.manifest.inputs}
        self.params = run.summary().parameters

    def find(self, given: str) -> Place:
        """The document that ``given`` means. Raises ParameterError if that is none, or more than one."""
        kind, equals, value = given.partition("=")
        if equals and kind in ("row", "id"):
            found = self._by_row(value) if kind == "row" else self._by_id(value)
            if not found:
                raise ParameterError(self._not_found(given))
            return self._only(found, given)
        by_row = self._by_row(given)
        by_id = self._by_id(given)
        if by_row and by_id and by_row != by_id:
            raise ParameterError(
                f"{given!r} is the row of one document and the id of another; write row={given} or id={given}"
            )
        if not by_row and not by_id:
            raise ParameterError(self._not_found(given))
        return self._only(by_row or by_id, given)

    def _only(self, found: list[Place], given: str) -> Place:
        if len(found) > 1:
            places = ", ".join(f"{shard}:{row}" for _, shard, row in found[:5])
            raise ParameterError(f"{given!r} is the id of several documents: {places}; name one by SHARD:ROW")
        return found[0]

    def _not_found(self, given: str) -> str:
        shards = list(self._rows)
        if re.fullmatch(r"[0-9]+", given) and len(shards) > 1 and self.params.id_column is None:
            return f"the run has {len(shards)} shards; write SHARD:ROW, for example {shards[0]}:{given}"
        shard, colon, row = given.rpartition(":")
        shard = shard if colon else shards[0] if len(shards) == 1 else ""
        if shard in self._rows and re.fullmatch(r"(row=)?[0-9]+", row):
            return f"{shard} has no row {row.removeprefix('row=')}; its rows are 0 to {self._rows[shard] - 1}"
        ids = f"an id in column {self.params.id_column!r}" if self.params.id_column else "the run has no id_column"
        names = ", ".join(shards[:3]) + (f" or one of {len(shards) - 3} more" if len(shards) > 3 else "")
        return f"{given!r} names no document: write SHARD:ROW or a row number ({ids}); a shard is {names}"

    def _by_row(self, given: str) -> list[Place]:
        shard, colon, row = given.rpartition(":")
        if not colon and len(self._rows) == 1:
            (shard,) = self._rows
        exists = re.fullmatch(r"[0-9]{1,18}", row) and shard in self._rows and int(row) < self._rows[shard]
        return [(None, shard, int(row))] if exists else []

    def _by_id(self, given: str) -> list[Place]:
        """Among the removed and their keepers; if it is none of those, in the input itself."""
        column = self.params.id_column
        if column is None:
            return []
        found: set[Place] = set()
        for side, removed in (("", self._removed), ("keeper_", self._for_own)):
            rows = removed.filter(_equals(removed[f"{side}id"], given)).select([f"{side}shard", f"{side}row"])
            found |= {(None, shard, row) for shard, row in zip(*rows.to_pydict().values(), strict=True)}
        if not found:
            for shard in self._rows:
                with contextlib.suppress(GpudedupError), _opened(self._run, shard, column) as source:
                    for batch in source.shards[0].read([column]):
                        hits = batch.rows[_equals(batch.columns.column(0), given).to_numpy(zero_copy_only=False)]
                        found |= {(None, shard, row) for row in hits.tolist()}
        return sorted(found, key=lambda place: place[1:])

    def removal_of(self, place: Place) -> dict[str, Any] | None:
        rows = _at(self._removed, "", place)
        return rows.to_pylist()[0] if len(rows) else None

    def removed_for(self, place: Place) -> list[Removal]:
        """What was removed for a kept document, the most similar first."""
        removals = [
            Removal(
                document=Document(shard=row["shard"], row=row["row"], id=row.get("id")),
                reason=row["reason"],
                similarity=row["similarity"],
            )
            for row in _at(self._for_own, "keeper_", place).to_pylist()
        ]
        return sorted(removals, key=lambda removal: -(removal.similarity or 0.0))

    def is_skipped(self, place: Place) -> bool:
        _, shard, row = place
        for entry in self._run.manifest.skipped:
            first = entry.first_row
            if entry.shard == shard and (first is None or first <= row < first + entry.count):
                return True
        return False

    def id_of(self, place: Place) -> Any:
        """The id of a document that has one, from the table of removals if it is there."""
        column = self.params.id_column
        if column is None:
            return None
        for side, removed in (("", self._removed), ("keeper_", self._for_own)):
            rows = _at(removed, side, place)
            if len(rows):
                return rows[f"{side}id"][0].as_py()
        _, shard, row = place
        with contextlib.suppress(GpudedupError), _opened(self._run, shard, column) as source:
            for batch in source.shards[0].read([column], np.array([row], np.int64)):
                return batch.columns.column(0)[0].as_py()
        return None


def _at(removed: pa.Table, side: str, place: Place) -> pa.Table:
    """The removals of which one side is at a place of the run."""
    _, shard, row = place
    return removed.filter(pc.and_(pc.equal(removed[f"{side}shard"], shard), pc.equal(removed[f"{side}row"], row)))


def _equals(column: pa.ChunkedArray | pa.Array, given: str) -> pa.ChunkedArray | pa.Array:
    """Where a column of any type is written like ``given``; null is nowhere."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.fill_null(pc.equal(column, pa.scalar(os.fsencode(given), kind)), False)
    if any("\ud800" <= character <= "\udfff" for character in given):  # bytes that are no text, which no such value is
        return pa.array(np.zeros(len(column), bool))
    try:
        return pc.fill_null(pc.equal(column.cast(pa.string()), given), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([str(value) == given for value in column.to_pylist()], pa.bool_())


def example_pairs(run: Run, count: int) -> list[Explanation]:
    """Up to ``count`` near-copies that show what was removed: of different clusters, the least similar first.

    Always the same ones for the same run. They lie near the start of their shards, so reading them back is cheap.
    Texts are cut after ``EXAMPLE_CHARACTERS``; pairs that are not cut come before others.
    """
    if not run.summary().near:
        return []
    found: list[pa.Table] = []
    for table in run.removed_tables():
        found.append(table.filter(pc.and_(pc.equal(table["reason"], "near"), pc.less(table["similarity"], 1.0))))
        wanted = EXAMPLES_CONSIDERED if len(found) < EXAMPLE_SHARDS else EXAMPLES_READ * count
        if sum(map(len, found)) >= wanted:
            break
    near = run.joined(found)
    depth = np.maximum(near["row"].to_numpy(), near["keeper_row"].to_numpy())
    order = np.argsort(depth, kind="stable")[:EXAMPLES_CONSIDERED]
    _, first = np.unique(near["cluster"].to_numpy()[order], return_index=True)
    order = order[np.sort(first)]
    order = order[np.argsort(near["similarity"].to_numpy()[order], kind="stable")]
    texts: dict[Place, str] = {}
    note = None
    short: list[int] = []
    long: list[int] = []
    places_left = np.arange(len(order))
    for wanted in (count, (EXAMPLES_READ - 1) * count):
        if len(short) >= count or not len(places_left):
            break
        chosen = np.unique(np.linspace(0, len(places_left) - 1, wanted).round().astype(int))
        numbers = places_left[chosen].tolist()
        places_left = np.delete(places_left, chosen)
        pairs = near.take(order[numbers]).to_pylist()
        read, missing = read_texts(run, [p for pair in pairs for p in _pair_places(pair)], EXAMPLE_CHARACTERS)
        texts |= read
        note = note or missing
        for number, pair in zip(numbers, pairs, strict=True):
            cut = any(len(texts.get(place, "")) >= EXAMPLE_CHARACTERS for place in _pair_places(pair))
            (long if cut else short).append(number)
    pairs = near.take(order[sorted([*short, *long][:count])]).to_pylist()
    params = run.summary().parameters
    return [
        Explanation(
            document=Document(shard=p["shard"], row=p["row"], id=p.get("id"), text=texts.get(_pair_places(p)[0])),
            status="removed",
            rule=_rule(params, p, skipped=False, removed_for_it=0),
            threshold=params.threshold,
            reason=p["reason"],
            keeper=_keeper(p, texts),
            similarity=p["similarity"],
            cluster=p["cluster"],
            note=note,
        )
        for p in pairs
    ]


def _pair_places(pair: dict[str, Any]) -> list[Place]:
    return [(None, pair["shard"], pair["row"]), *_keeper_places(pair)]


def unit_key(params: Params) -> Callable[[Sequence[str]], Sequence[Hashable]]:
    """What pieces of text are compared by: their units, as the run folded them, so that a diff shows what it saw."""
    unit = parse_shingle(params.shingle).unit
    if unit == "tokens":
        return lambda pieces: pieces
    from gpudedup.backends import select_backend

    backend = select_backend(msgspec.structs.replace(params, shingle=f"{unit}:1", device="cpu"))

    def key(pieces: Sequence[str]) -> Sequence[Hashable]:
        (units,) = backend.shingles([pa.array(pieces, pa.large_string())])
        return [units.hashes[first:last].tobytes() for first, last in pairwise(units.offsets.tolist())]

    return key


def _rule(params: Params, found: dict[str, Any] | None, *, skipped: bool, removed_for_it: int) -> str:
    if skipped:
        return 'the row could not be read and was left out (on_error="skip"); manifest.json says why'
    if found is None:
        others = f"; {removed_for_it} were removed for it" if removed_for_it else " and no other was removed for it"
        return f"no kept candidate of better rank (keep={params.keep}) is similar to it{others}"
    if found["reason"] == "empty":
        return "it has no words at all, and drop_empty was asked for"
    better = f"ranks better (keep={params.keep})"
    if found.get("keeper_run") is not None:
        better = "is of an earlier run, whose documents rank first"
    if found["reason"] == "exact":
        return f"both have the same words in the same order (fold={params.fold}), and its keeper {better}"
    if params.clustering == "components":
        return "a chain of similar documents leads to its keeper, the best-ranked of the chain (clustering=components)"
    unit, n = parse_shingle(params.shingle)
    what = {
        "exact": f"the share of distinct shingles ({unit}:{n}) of either that both have reaches the threshold",
        "signature": f"the share of equal lanes, of {params.num_perm}, reaches the threshold",
        "none": f"they share a bucket, which counts as similar with verify=none ({params.banding.rows} equal lanes)",
    }[params.verify]
    return f"{what}, and its keeper is kept and {better}"


def read_texts(run: Run, places: list[Place], most: int | None = None) -> tuple[dict[Place, str], str | None]:
    """The texts at ``places``, read back from the input, and why some are missing (None if none is). What an earlier
    run kept is looked for in its kept/ too.

    most: as many characters of each; None means all.
    """
    texts: dict[Place, str] = {}
    note = None
    earlier = functools.cache(functools.partial(_earlier, run))
    for name, shard in dict.fromkeys((name, shard) for name, shard, _ in places):
        rows = sorted({row for *other, row in places if other == [name, shard]})
        try:
            of_run = run if name is None else earlier(name)
            for row, value in _values(of_run, shard, rows, or_kept=name is not None):
                texts[name, shard, row] = _as_text(value, most)
        except GpudedupError as error:
            note = f"texts are missing: {error}"
    return texts, note


def _earlier(run: Run, name: str) -> Run:
    """An earlier run, opened. Raises ArtefactError if it is gone, or does not keep what it did."""
    from gpudedup.engines.lineage import kept_digest

    earlier = type(run).open(run.input_path(name))
    then = {entry.path: entry.digest for entry in run.manifest.against}
    if kept_digest(earlier.manifest, earlier.summary().parameters) != then.get(name):
        raise ArtefactError(f"the earlier run {name} was decided or made anew since")
    return earlier


def _values(run: Run, shard: str, rows: list[int], *, or_kept: bool) -> Iterator[tuple[int, pa.Scalar]]:
    """(row, its text as stored) of rows of a shard. or_kept: from kept/, if the input is not what it was."""
    column = run.summary().parameters.text_column
    try:
        with _opened(run, shard, column) as source:
            yield from _read(source, column, {row: row for row in rows})
        return
    except InputError:
        entries = {entry.shard: entry for entry in run.manifest.outputs if entry.kind == "kept"}
        if not or_kept or shard not in entries:
            raise
    removed = run.removed
    gone = removed.filter(pc.equal(removed["shard"], shard))["row"].to_pylist()
    for entry in run.manifest.skipped:
        if entry.shard == shard and entry.first_row is not None:
            gone += range(entry.first_row, entry.first_row + entry.count)
    gone.sort()
    with _open_file(run, str(run.compared(entries[shard])), column) as source:
        yield from _read(source, column, {row - bisect(gone, row): row for row in rows})


def _read(source: Source, column: str, names: dict[int, int]) -> Iterator[tuple[int, pa.Scalar]]:
    for batch in source.shards[0].read([column], np.array(list(names), np.int64)):
        for row, value in zip(batch.rows.tolist(), batch.columns.column(0), strict=True):
            yield names[row], value


@contextlib.contextmanager
def _opened(run: Run, shard: str, column: str) -> Iterator[Source]:
    """One shard of the run's input. Raises InputError if it is gone, cannot be read, or is not what the run read."""
    from gpudedup.io.source import input_files
    from gpudedup.store.manifest import is_unchanged

    with _open_file(run, run.input_path(shard), column) as source:
        ((path, now),) = input_files(source.shards)
        (then,) = (entry for entry in run.manifest.inputs if entry.path == shard)
        if now is None or not is_unchanged(then, now, path):
            raise InputError(f"{shard} was changed after the run")
        yield source


@contextlib.contextmanager
def _open_file(run: Run, path: str, column: str) -> Iterator[Source]:
    from gpudedup.io import open_paths

    params = run.summary().parameters
    source = open_paths(
        [path],
        text_column=params.text_column,
        columns=[column],
        memory_bytes=READ_MEMORY_BYTES if params.memory is None else parse_memory(params.memory),
        on_error=params.on_error,
    )
    try:
        yield source
    finally:
        source.close()


def _as_text(value: pa.Scalar, most: int | None) -> str:
    """A document as text, without making more than its first ``most`` characters."""
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if not value.is_valid:
        return ""
    if hasattr(value, "as_buffer"):  # strings and binary
        stored = value.as_buffer()
        part = stored if most is None else stored.slice(0, min(stored.size, 4 * most))
        return bytes(part).decode("utf-8", errors="replace")[:most]
    return " ".join(map(str, value.values[:most].to_pylist()))[:most]
