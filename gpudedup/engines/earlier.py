"""Earlier runs, opened to be compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends import select_backend
from gpudedup.backends.base import I64
from gpudedup.backends.columns import held_column
from gpudedup.engines.lineage import Lineage, kept_digest, recorded_params
from gpudedup.engines.local import Budget
from gpudedup.engines.signed_files import SignedFiles, load_signed
from gpudedup.errors import ArtefactError, InputError, ParameterError
from gpudedup.io import open_paths
from gpudedup.io.paths import find_files
from gpudedup.io.remote import Url, is_url
from gpudedup.io.source import Source
from gpudedup.params import SPEC, Params
from gpudedup.stages.earlier import Earlier, EarlierRun
from gpudedup.stages.match import ranked
from gpudedup.stages.sign import ShingleCache, carried_columns
from gpudedup.store import manifest as manifests
from gpudedup.store.manifest import AgainstEntry, Manifest
from gpudedup.store.run_directory import Artefacts, Run
from gpudedup.store.working import read_removed

ALIKE = ("fold", "shingle", "num_perm", "seed")
"""Parameters that signatures depend on."""


def open_earlier(params: Params, own: str | None, opened: ExitStack) -> Earlier:
    """The runs that ``params.against`` names. own: the directory of this run. What is opened is closed by ``opened``.

    Raises ArtefactError if one is not complete, damaged, or was signed or banded in another way; InputError if it is on
    an object store that cannot be reached; ParameterError for this run itself, and one that is named twice.
    """
    runs = []
    known: dict[str, str] = {}
    for name in params.against:
        if own is not None and _place(name) == _place(own):
            raise ParameterError(f"against names {name}, the directory of this run itself; leave it out")
        other = known.setdefault(_place(name), name)
        if other != name:
            raise ParameterError(f"against names a run twice, as {other} and as {name}; name it once")
        runs.append(open_run(name, name, params, opened))
    return Earlier(runs)


def _place(name: str) -> str:
    """What tells directories apart."""
    return Url.parse(name).name.rstrip("/") if is_url(name) else os.path.realpath(name)


def open_run(name: str, place: str, params: Params, opened: ExitStack) -> EarlierRun:
    """One of them: its name in ``params.against``, and the path or URL where it is. Raises as ``open_earlier``."""
    run = Run.open(place)
    manifest, artefacts = run.manifest, Artefacts(run.path, run.mirror)
    then = recorded_params(manifest)
    _check_alike(name, manifest, then, params)
    lineage = Lineage.of(manifest, then)
    if not artefacts.tasks_recorded("sign"):
        raise ArtefactError(
            f"{name} holds no signatures to compare with: it was saved from memory; make it with gpudedup run"
        )
    backend = select_backend(msgspec.structs.replace(then, device="cpu", workers=params.workers))  # for band keys only
    stored = SignedFiles(
        artefacts=artefacts,
        params=then,
        names=[entry.path for entry in manifest.inputs],
        task=np.array([entry.task for entry in manifest.inputs], np.int64),
        shard=np.arange(len(manifest.inputs)),
        shards=len(manifest.inputs),
        record=lambda stage, task: artefacts.done(stage, task, lineage.digest(stage, task)),
        carried=carried_columns(then),
    )
    signed = load_signed(stored, backend, ShingleCache(0))
    decided = artefacts.done("decide", 0, lineage.digest("decide", 0))
    if decided is None:
        raise ArtefactError(
            f"{name} holds no decision, or one of other parameters; finish it with gpudedup apply {name}"
        )
    every = signed.rows + sum(entry.documents for entry in manifest.against)
    removed, *_ = read_removed(artefacts.artefact(decided.artefacts[0]), signed.rows, every)
    keep = ~signed.damaged
    keep[removed] = False
    texts = _Texts(run, then, signed.shard_first, keep, params, opened)
    return EarlierRun(
        name=name,
        digest=kept_digest(manifest, then),
        params=then,
        signed=signed,
        kept=ranked(signed, then, keep).astype(np.int64),
        files=list(stored.names),
        file_first=signed.shard_first,
        column_type=lambda name: signed.columns[name].type if name in signed.columns else texts.column_type(name),
        column=lambda name: signed.columns[name] if name in signed.columns else texts.column(name),
        texts=texts.of,
    )


def keeps_the_same(entry: AgainstEntry) -> bool:
    """Whether an earlier run still holds what it did when it was compared with. Raises InputError for one on an object
    store that cannot be reached.
    """
    try:
        manifest = Run.open(entry.path).manifest
        return kept_digest(manifest, recorded_params(manifest)) == entry.digest
    except ArtefactError:
        return False


def _check_alike(name: str, manifest: Manifest, then: Params, now: Params) -> None:
    pairs = [(field, getattr(then, field), getattr(now, field)) for field in ALIKE]
    pairs += [("spec", manifest.spec, SPEC), ("bands", manifest.bands, now.banding.bands)]
    pairs += [("rows", manifest.rows, now.banding.rows)]
    for field, was, wanted in pairs:
        if was != wanted:
            raise ArtefactError(
                f"the earlier run {name} has {field}={was}, this one {wanted}; they cannot be compared: give this run "
                f"{field}={was}, or make the earlier one anew"
            )


class _Texts:
    """Where the text of an earlier run still is: its input, if it is unchanged, else what it kept of it."""

    def __init__(
        self, run: Run, then: Params, file_first: I64, keep: npt.NDArray[np.bool_], now: Params, opened: ExitStack
    ) -> None:
        self._run, self._params, self._first, self._keep = run, then, file_first, keep
        self._budget, self._opened = Budget.of(now), opened
        self._found: tuple[Source, bool] | None = None

    @contextmanager
    def of(self, positions: I64) -> Iterator[tuple[Source, I64, I64]]:
        """(source, where its shards begin, positions there) of documents by input position."""
        source, is_input = self._source()
        first = self._first
        if not is_input:
            before = np.concatenate(([0], np.cumsum(self._keep))).astype(np.int64)
            first, positions = before[first], before[positions]
        if len(source.shards) == 1:
            first = first[[0, -1]]
        yield source, first, positions

    def column_type(self, name: str) -> pa.DataType:
        """The type of a column that the run did not carry."""
        source, _ = self._source([name])
        return source.column_type(name)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column that the run did not carry, from its input; null for rows that it did not keep."""
        source, is_input = self._source([name])
        chunks = [batch.columns.column(0) for shard in source.shards for batch in shard.read([name])]
        column = held_column(chunks, source.column_type(name))
        if is_input:
            return column
        places = np.cumsum(self._keep) - 1
        return column.take(pa.array(places, pa.int64(), mask=~self._keep))

    def _source(self, columns: Sequence[str] = ()) -> tuple[Source, bool]:
        if self._found is not None and not columns:
            return self._found
        is_input = self._input_is_unchanged
        if not is_input and self._run.manifest.output != "kept":
            raise InputError(
                f"the text of the earlier run {self._run.name} is gone: its input was changed or removed, and it wrote "
                'no kept/; put the input back, or compare by verify="signature"'
            )
        if is_input:
            paths = [self._run.input_path(entry.path) for entry in self._run.manifest.inputs]
        else:
            self._run.verify("kept")
            paths = [str(path) for path in self._run.kept]
        source = open_paths(
            paths,
            text_column=self._params.text_column,
            columns=[self._params.text_column, *columns],
            memory_bytes=self._budget.memory_bytes,
            tmp=self._budget.tmp,
            on_error=self._params.on_error,
        )
        self._opened.callback(source.close)
        if not columns:
            self._found = source, is_input
        return source, is_input

    @cached_property
    def _input_is_unchanged(self) -> bool:
        entries = self._run.manifest.inputs
        try:
            files = find_files([self._run.input_path(entry.path) for entry in entries])
            pairs = zip(entries, files, strict=True)
            return all(manifests.is_unchanged(entry, file.fingerprint, file.path) for entry, file in pairs)
        except (InputError, OSError):
            return False
