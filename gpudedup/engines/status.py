"""How far a run is, by what is committed; reads records and touches nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from gpudedup.engines.lineage import Lineage, content_of, match_tasks, recorded_params
from gpudedup.stages.sign import carried_columns
from gpudedup.store import lock
from gpudedup.store import manifest as manifests
from gpudedup.store.records import Record
from gpudedup.store.run_directory import Artefacts


class StageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``tasks`` is None where it depends on a stage that is not done."""

    name: str
    done: int
    tasks: int | None
    artefact_bytes: int
    seconds: float

    @property
    def is_done(self) -> bool:
        return self.done == self.tasks


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What is done of a run, and who is at it."""

    run: str
    state: str
    """unfinished or complete."""
    files: int
    rows: int
    """Those signed so far."""
    stages: list[StageStatus]
    owner: lock.Owner | None
    """Who holds the lock, dead or alive."""

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def status(artefacts: Artefacts, file: lock.LockFile) -> Status:
    """Raises ArtefactError if the directory holds no run, or its manifest cannot be believed."""
    manifest = manifests.read(artefacts.path, unfinished=True)
    params = recorded_params(manifest)
    tasks = sorted({entry.task for entry in manifest.inputs})
    contents: dict[int, str] = {}
    lineage = Lineage.of(manifest, params, lambda task: contents.get(task, ""))

    def found(stage: str, numbers: list[int]) -> list[Record]:
        read = (artefacts.done(stage, task, lineage.digest(stage, task)) for task in numbers)
        return [record for record in read if record is not None]

    def of_stage(name: str, done: list[Record], count: int | None) -> StageStatus:
        return StageStatus(
            name=name,
            done=len(done),
            tasks=count,
            artefact_bytes=sum(entry.size_bytes for record in done for entry in record.artefacts),
            seconds=round(sum(record.seconds for record in done), 3),
        )

    signed = found("sign", tasks)
    contents.update((record.task, content_of(record.inputs)) for record in signed)
    rows = sum(record.counts.get("rows", 0) for record in signed)
    columns = tasks if carried_columns(params) else []
    earlier = sum(entry.documents for entry in manifest.against)
    of_match = 1 + match_tasks(params, rows + earlier) if len(signed) == len(tasks) else None
    with_files = artefacts.tasks_recorded("apply")
    return Status(
        run=file.name,
        state=manifest.state,
        files=len(manifest.inputs),
        rows=rows,
        stages=[
            of_stage("sign", [*signed, *found("columns", columns)], len(tasks) + len(columns)),
            of_stage("match", found("match", artefacts.tasks_recorded("match")), of_match),
            of_stage("verify", found("verify", [params.threshold_ppm]), 1),
            of_stage("decide", found("decide", [0]), 1),
            of_stage("apply", found("apply", with_files), len(tasks)),
        ],
        owner=lock.owner_of(file.read()),
    )
