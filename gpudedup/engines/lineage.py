"""What the result of each task of a durable run follows from, as one digest: equal digests, equal bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from gpudedup import _cpu
from gpudedup.params import SPEC, Params
from gpudedup.stages.sign import carried_columns
from gpudedup.store.manifest import Manifest
from gpudedup.store.records import digest

TASK_KEYS = 10_000_000
"""Band keys that one task of match sorts."""


class Lineage:
    """names, sizes, tasks: of the input files, in input order. That a file of equal size has other content is found
    elsewhere (``check_unchanged``)."""

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        tasks: Sequence[int],
        params: Params,
        output: str,
        against: Sequence[str],
    ) -> None:
        """against: the digests of what earlier runs kept (``kept_digest``)."""
        self._names, self._params, self._output, self._against = names, params, output, against
        self._files: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, size, task in zip(names, sizes, tasks, strict=True):
            self._files[task].append((name, size))

    @classmethod
    def of(cls, manifest: Manifest, params: Params) -> Lineage:
        """That of a run with this manifest, whose parameters are ``params``."""
        inputs = manifest.inputs
        return cls(
            [entry.path for entry in inputs],
            [entry.size_bytes for entry in inputs],
            [entry.task for entry in inputs],
            params,
            manifest.output,
            [entry.digest for entry in manifest.against],
        )

    def digest(self, stage: str, task: int) -> str:
        """Of a task; ``verify`` has one for each threshold, in millionths."""
        params = self._params
        match stage:
            case "sign":
                return digest(plan=self._signing, files=self._files[task])
            case "columns":
                return digest(sign=self.digest("sign", task), columns=sorted(carried_columns(params)))
            case "match":
                return self._matching
            case "verify":
                return digest(match=self._matching, verify=params.verify, clustering=params.clustering, threshold=task)
            case "decide":
                return digest(verify=self.digest("verify", params.threshold_ppm), drop_empty=params.drop_empty)
            case _:
                return self.of_results

    @cached_property
    def of_results(self) -> str:
        """Of removed/, kept/ and keep_mask/ as a whole."""
        return digest(decide=self.digest("decide", 0), output=self._output, id_column=self._params.id_column)

    @cached_property
    def _signing(self) -> str:
        p = self._params
        values = [p.text_column, p.shingle, p.fold, p.num_perm, p.seed, p.on_error]
        return digest(spec=SPEC, tables=_cpu.fold_tables_sha256, values=values)

    @cached_property
    def _matching(self) -> str:
        p = self._params
        return digest(
            sign=[self.digest("sign", task) for task in sorted(self._files)],
            order=self._names,
            keep=p.keep,
            within=p.within,
            across=p.across,
            against=self._against,
            banding=list(p.banding),
            window=p.bucket_window,
            task_keys=TASK_KEYS,
        )


def kept_digest(manifest: Manifest, params: Params) -> str:
    """Of what later runs compare with: the documents that a complete run kept, by rank, and their ids."""
    contents = [(entry.xxh3_128, entry.etag) for entry in manifest.inputs]
    decided = Lineage.of(manifest, params).digest("decide", 0)
    return digest(decide=decided, id_column=params.id_column, contents=contents)


def match_tasks(params: Params, documents: int) -> int:
    """Into how many tasks the bands of as many documents are shared out."""
    return -(-params.banding.bands // bands_a_task(params, documents))


def bands_a_task(params: Params, documents: int) -> int:
    return max(1, min(params.banding.bands, TASK_KEYS // max(1, documents)))
