"""What the result of each task of a durable run follows from, as one digest: equal digests, equal bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import msgspec

from gpudedup import _cpu
from gpudedup.errors import ArtefactError, ParameterError
from gpudedup.params import SPEC, Params, parse_keep
from gpudedup.stages.sign import carried_columns
from gpudedup.store.manifest import InputEntry, Manifest
from gpudedup.store.records import digest

TASK_KEYS = 10_000_000
"""Band keys that one task of match sorts."""


class Lineage:
    """Digests of one run. What is signed follows from names and sizes of files as far as can be known before they are
    read; all that comes after follows from their content too.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        tasks: Sequence[int],
        params: Params,
        output: str,
        against: Sequence[tuple[str, str]],
        types: Mapping[str, str],
        content: Callable[[int], str],
    ) -> None:
        """names, sizes, tasks: of the input files, in input order. against: names of earlier runs, and the digests of
        what they kept (``kept_digest``). types: of carried columns. content: ``content_of`` what a task signed; "" if
        it is not done.
        """
        self._names, self._params, self._output, self._against = names, params, output, against
        self._types, self._content = types, content
        self._signed: dict[int, str] = {}
        self._matched = ""  # once everything is signed
        self._files: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, size, task in zip(names, sizes, tasks, strict=True):
            self._files[task].append((name, size))

    @classmethod
    def of(cls, manifest: Manifest, params: Params, content: Callable[[int], str] | None = None) -> Lineage:
        """That of a run with this manifest, whose parameters are ``params``. content: of an unfinished one."""
        inputs = manifest.inputs
        of_task: defaultdict[int, list[InputEntry]] = defaultdict(list)
        for entry in inputs:
            of_task[entry.task].append(entry)
        return cls(
            [entry.path for entry in inputs],
            [entry.size_bytes for entry in inputs],
            [entry.task for entry in inputs],
            params,
            manifest.output,
            [(entry.path, entry.digest) for entry in manifest.against],
            manifest.column_types,
            content or (lambda task: content_of(of_task[task])),
        )

    def digest(self, stage: str, task: int) -> str:
        """Of a task; ``verify`` has one for each threshold, in millionths."""
        params = self._params
        match stage:
            case "sign":
                if task not in self._signed:
                    self._signed[task] = digest(plan=self._signing, files=self._files.get(task, []))
                return self._signed[task]
            case "columns":
                return digest(
                    sign=self.digest("sign", task),
                    content=self._content(task),
                    columns=self._typed(carried_columns(params)),
                )
            case "match":
                return self._matching
            case "verify":
                return digest(match=self._matching, verify=params.verify, clustering=params.clustering, threshold=task)
            case "decide":
                return digest(verify=self.digest("verify", params.threshold_ppm), drop_empty=params.drop_empty)
            case _:
                return self.of_results

    @property
    def of_results(self) -> str:
        """Of removed/, kept/ and keep_mask/ as a whole."""
        ids = [self._params.id_column] if self._params.id_column else []
        return digest(
            decide=self.digest("decide", 0),
            output=self._output,
            ids=self._typed(ids),
            against=[name for name, _ in self._against],
        )

    def _typed(self, columns: Sequence[str]) -> list[tuple[str, str]]:
        return [(name, self._types.get(name, "")) for name in columns]

    @cached_property
    def _signing(self) -> str:
        p = self._params
        values = [p.text_column, p.shingle, p.fold, p.num_perm, p.seed, p.on_error]
        return digest(spec=SPEC, tables=_cpu.fold_tables_sha256, values=values)

    @property
    def _matching(self) -> str:
        if self._matched:
            return self._matched
        p = self._params
        ranked_or_scoped = [name for name in (parse_keep(p.keep).column, p.within, p.across) if name is not None]
        signed = [(self.digest("sign", task), self._content(task)) for task in sorted(self._files)]
        found = digest(
            sign=signed,
            order=self._names,
            columns=self._typed(ranked_or_scoped),
            keep=p.keep,
            within=p.within,
            across=p.across,
            against=[kept for _, kept in self._against],
            banding=list(p.banding),
            window=p.bucket_window,
            task_keys=TASK_KEYS,
        )
        if all(content for _, content in signed):
            self._matched = found
        return found


def content_of(inputs: Iterable[InputEntry]) -> str:
    """Of the bytes of files as they were signed, by what tells best that they are the same."""
    return digest(files=sorted((entry.path, entry.xxh3_128 or entry.etag or str(entry.mtime_ns)) for entry in inputs))


def kept_digest(manifest: Manifest, params: Params) -> str:
    """Of what later runs compare with: the documents that a complete run kept, by rank, and their ids."""
    decided = Lineage.of(manifest, params).digest("decide", 0)
    return digest(decide=decided, id_column=params.id_column)


def match_tasks(params: Params, documents: int) -> int:
    """Into how many tasks the bands of as many documents are shared out."""
    return -(-params.banding.bands // bands_a_task(params, documents))


def bands_a_task(params: Params, documents: int) -> int:
    return max(1, min(params.banding.bands, TASK_KEYS // max(1, documents)))


def recorded_params(manifest: Manifest) -> Params:
    """The parameters of a run. Raises ArtefactError for what no run could have had."""
    try:
        return msgspec.convert(manifest.parameters, Params)
    except (msgspec.ValidationError, ParameterError) as error:
        raise ArtefactError(f"the manifest's parameters are damaged: {error}") from error
