"""The kept documents of earlier runs: they rank before all others, stay, and are not compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from gpudedup.backends.base import I64, U32, U64, LaneGroups
from gpudedup.backends.columns import is_text, plain_column, plain_type
from gpudedup.errors import ParameterError
from gpudedup.io.source import Source
from gpudedup.params import Params
from gpudedup.stages.sign import Signatures, Signed, check_count
from gpudedup.store.manifest import AgainstEntry

Texts = Callable[[I64], AbstractContextManager[tuple[Source, I64, I64]]]
"""From input positions of a run to (source, where its shards begin, the same documents' positions there)."""


@dataclass
class EarlierRun:
    """One of them."""

    name: str
    """Its directory, as given."""
    digest: str
    """Of what it kept (``engines.lineage.kept_digest``)."""
    params: Params
    signed: Signed
    kept: I64
    """Input positions of its kept documents, by rank."""
    files: list[str]
    file_first: I64
    """[files + 1]: the input position of each file's first row."""
    column_type: Callable[[str], pa.DataType]
    column: Callable[[str], pa.ChunkedArray]
    """A column of all its rows."""
    texts: Texts


@dataclass
class Earlier:
    """Those of all earlier runs: by run in the order given, then by rank. A document is its place in that order."""

    runs: Sequence[EarlierRun]
    first: I64 = field(init=False)
    """[runs + 1]: the first document of each run."""

    def __post_init__(self) -> None:
        self.first = np.cumsum([0, *(len(run.kept) for run in self.runs)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.first[-1])

    def check_types(self, source: Source, params: Params) -> None:
        """Raise ParameterError or InputError if a column cannot be compared with that of an earlier run."""
        for name in (params.within, params.across):
            if name is not None:
                _common_type(name, source.column_type(name), [(run, run.column_type(name)) for run in self.runs])
        if params.id_column is not None:
            of_runs = [(run, run.signed.columns[known].type) for run in self.runs if (known := run.params.id_column)]
            _common_type(params.id_column, source.column_type(params.id_column), of_runs)

    def entries(self) -> list[AgainstEntry]:
        """What a manifest says of them."""
        return [AgainstEntry(path=run.name, digest=run.digest, documents=len(run.kept)) for run in self.runs]

    def column(self, name: str, own: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column of this input and of all earlier documents behind it. Raises ParameterError for unlike types."""
        return _joined(name, own, [(run, run.column(name)) for run in self.runs])

    def ids(self, name: str, own: pa.ChunkedArray) -> pa.ChunkedArray:
        """Ids of this input, and what each run named its documents by; null where it did not."""
        of_runs = []
        for run in self.runs:
            known = run.params.id_column
            of_runs.append((run, run.signed.columns[known] if known else pa.chunked_array([pa.nulls(run.signed.rows)])))
        return _joined(name, own, of_runs)

    def parts(self, documents: I64) -> list[tuple[EarlierRun, I64, I64]]:
        """(run, places in ``documents``, their input positions there) of documents."""
        of_run = np.searchsorted(self.first, documents, side="right") - 1
        found = []
        for number, run in enumerate(self.runs):
            places = np.flatnonzero(of_run == number)
            if len(places):
                found.append((run, places, run.kept[documents[places] - self.first[number]]))
        return found


def input_positions(documents: I64, rows: int) -> I64:
    """Documents by number as results name them: their input positions, and -1 - p for place p among earlier ones."""
    return np.where(documents < rows, documents, rows - 1 - documents)


def _joined(name: str, own: pa.ChunkedArray, of_runs: Sequence[tuple[EarlierRun, pa.ChunkedArray]]) -> pa.ChunkedArray:
    kind = _common_type(name, own.type, [(run, column.type) for run, column in of_runs])
    chunks = plain_column(own).cast(kind).chunks
    for run, column in of_runs:
        chunks += plain_column(column).take(pa.array(run.kept)).cast(kind).chunks
    return pa.chunked_array(chunks, type=kind)


def _common_type(name: str, own: pa.DataType, of_runs: Sequence[tuple[EarlierRun, pa.DataType]]) -> pa.DataType:
    """The type that values of a column are compared in. Raises ParameterError if there is none."""
    kind = plain_type(own)
    for run, of_run in of_runs:
        other = plain_type(of_run)
        if kind == other or pa.types.is_null(other):
            continue
        if pa.types.is_null(kind):
            kind = other
        elif is_text(kind) and is_text(other):
            kind = pa.large_string() if {kind, other} <= {pa.string(), pa.large_string()} else pa.large_binary()
        else:
            raise ParameterError(
                f'column "{name}" is {own}, and was {of_run} in the earlier run {run.name}; cast one of them'
            )
    return kind


class JoinedSignatures:
    """Of the rows of this input, then of the kept documents of earlier runs."""

    def __init__(self, own: Signatures, rows: int, earlier: Earlier) -> None:
        self._own, self._rows, self._earlier = own, rows, earlier

    def keys(self, band: int, scope_keys: U64 | None) -> U64:
        """uint64[rows + earlier documents]: the keys of one band."""
        found = [self._own.keys(band, None if scope_keys is None else scope_keys[: self._rows])]
        for number, run in enumerate(self._earlier.runs):
            of_all = None
            if scope_keys is not None:
                of_all = np.zeros(run.signed.rows, np.uint64)
                first, last = self._rows + self._earlier.first[number : number + 2]
                of_all[run.kept] = scope_keys[first:last]
            found.append(run.signed.signatures.keys(band, of_all)[run.kept])
        return np.concatenate(found)

    @property
    def lanes(self) -> Iterable[LaneGroups]:
        """By batch: of this input, then of all documents of each earlier run."""
        return chain(self._own.lanes, *(run.signed.signatures.lanes for run in self._earlier.runs))

    def lane_numbers(self, documents: U32) -> U32:
        bases = np.cumsum([self._rows, *(run.signed.rows for run in self._earlier.runs)])
        check_count(int(bases[-1]))
        of_all = [
            np.arange(self._rows),
            *(base + run.kept for base, run in zip(bases, self._earlier.runs, strict=False)),
        ]
        return np.concatenate(of_all)[documents].astype(np.uint32)

    def forget_keys(self) -> None:
        """Of this input, if it holds them."""
        self._own.forget_keys()


def with_earlier(signed: Signed, earlier: Earlier) -> Signed:
    """The same input with documents of earlier runs behind it: their numbers begin at ``signed.rows``."""
    if not earlier.runs:
        return signed
    check_count(signed.rows + len(earlier))
    content = [signed.content, *(run.signed.content[run.kept] for run in earlier.runs)]
    unit_count = [signed.unit_count, *(run.signed.unit_count[run.kept] for run in earlier.runs)]
    signed.signatures = JoinedSignatures(signed.signatures, signed.rows, earlier)
    signed.content, signed.unit_count = np.concatenate(content), np.concatenate(unit_count)
    signed.earlier = earlier
    return signed
