"""Whether a finished run is still what it says: its files, its inputs, every removal, and the rows that it kept.

Signatures and similarities are made again from the text, with the code that made them: an audit finds artefacts and
inputs that do not agree, not errors of that code (the tests hold it to a reference).
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from gpudedup.audit.documents import Documents, open_earlier
from gpudedup.audit.files import check_inputs, check_outputs, check_working
from gpudedup.audit.findings import RESTORE, Audit, Check, Findings
from gpudedup.audit.kept import check_kept_rows
from gpudedup.audit.removals import check_decision, check_removals, read_removals
from gpudedup.audit.texts import check_texts
from gpudedup.engines.local import Budget, silent
from gpudedup.errors import ArtefactError, InputError
from gpudedup.io import open_paths
from gpudedup.io.batches import say
from gpudedup.machine import release_memory, worker_count
from gpudedup.stages.sign import Progress, columns_needed

if TYPE_CHECKING:
    from gpudedup.api import Run

__all__ = ["Audit", "Check", "audit"]


def audit(
    run: Run,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    tmp: str | None = None,
    progress: Progress = silent,
) -> Audit:
    """Check a finished run against its manifest, its input, earlier runs and itself. Changes nothing.

    Every file of the run: size and checksum; every record of a task: its digest, and that it agrees with the manifest.
    Every input file: its bytes, or size and time where the bytes were not recorded. Every signature: made again from
    the text. Every removal: the keeper is kept and ranks better, is of the same ``within`` and another ``across``
    value, content is equal where the reason says so, and the similarity made again from both texts is the recorded one
    and reaches the threshold. A keeper in an earlier run is kept there, and that run still keeps what it did. kept/ or
    keep_mask/: the rows of the input without removals, by content.

    Reads the input about four times: for its checksums, to sign it, for the shingle sets of removals and keepers (in
    ``memory``, then in ``tmp``), and beside kept/. Memory: as the run, without band keys. Raises ArtefactError where
    the manifest cannot be believed at all, MemoryLimitError and OutputError (no room in ``tmp``).
    """
    found = Findings()
    with ExitStack() as opened:
        _check(run, workers, memory, tmp, progress, found, opened)
    return Audit(
        run=run.name,
        exit_code=ArtefactError.exit_code if found.artefacts else InputError.exit_code if found.inputs else 0,
        checks=found.checks,
        not_checked=[_named(run, text) for text in found.not_checked],
        problems=[_named(run, text) for text in found.problems],
        problem_count=found.artefacts + found.inputs,
    )


def _named(run: Run, text: str) -> str:
    """A message that names a run on an object store by its URL, not by the directory that stands for it."""
    return text.replace(str(run.path), run.name)


def _check(
    run: Run,
    workers: int | None,
    memory: int | str | None,
    tmp: str | None,
    progress: Progress,
    found: Findings,
    opened: ExitStack,
) -> None:
    try:
        recorded = run.summary().parameters
        documents = Documents.of(run)
        params = msgspec.structs.replace(recorded, device="cpu", workers=workers, memory=memory, tmp=tmp)
    except (KeyError, MemoryError, ValueError, OverflowError) as error:
        raise ArtefactError(f"{run.path}: the numbers in the manifest are damaged: {say(error)}; {RESTORE}") from error
    threads = workers or worker_count()
    with found.check("output files") as done:
        whole = check_outputs(run, documents, threads, found, done)
    with found.check("working artefacts") as done:
        working = check_working(run, recorded, threads, found, done)
    with found.check("input files") as done:
        unchanged = check_inputs(run, threads, found, done)
    if run.manifest.against:
        with found.check("earlier runs") as done:
            documents = replace(documents, earlier=open_earlier(run, params, found, done, opened))
    params = msgspec.structs.replace(params, id_column=None, guard_column=None)
    with found.check("removals") as done:
        removals = read_removals(run, documents, whole, found)
        if removals is None:
            found.not_checked.append("removals and kept rows: not every table in removed/ can be read")
            return
        done.count = len(removals.position)
        keep = check_removals(run, documents, removals, params, found)
        if working is not None and working.all_of("decide", [0]):
            check_decision(working, documents, removals, found)
    reason = "the input was data in memory" if not run.manifest.inputs else "the input is not what the run read"
    if not run.manifest.inputs or not unchanged:
        found.not_checked.append(f"ranks, contents, similarities and kept rows: {reason}")
        check_kept_rows(run, documents, keep, None, params, whole, found)
        return
    try:
        source = open_paths(
            [run.input_path(name) for name in documents.names],
            text_column=params.text_column,
            columns=columns_needed(params),
            memory_bytes=Budget.of(params).memory_bytes,
            tmp=Budget.of(params).tmp,
            on_error=params.on_error,
        )
        with closing(source):
            if check_texts(run, source, documents, removals, params, working, found, progress):
                release_memory()
                check_kept_rows(run, documents, keep, source, params, whole, found)
    except InputError as error:
        found.input(str(error))
