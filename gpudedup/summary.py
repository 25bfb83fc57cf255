"""The summary of a deduplication: counts, bands, seconds."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gpudedup.backends import Backend
from gpudedup.params import SPEC, Banding, Params
from gpudedup.stages.decide import EMPTY, EXACT, NEAR, Decided
from gpudedup.stages.guard import removed_shares
from gpudedup.stages.sign import Signed
from gpudedup.store.manifest import Manifest, RemovedShare

_PLAN = ("spec", "bands", "rows", "seconds", "device", "device_reason", "removed_shares")
"""Fields of a summary that have the same name in a manifest."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, bands, seconds: what a reader needs to judge a result. Fields are plain values; `asdict` for JSON."""

    spec: int
    documents: int
    """Rows of the input that are documents: kept + removed."""
    kept: int
    removed: int
    removed_for_earlier: int
    """Those of the removed whose keeper is a document of an earlier run."""
    exact: int
    near: int
    removed_empty: int
    empty: int
    """Documents without units, removed (drop_empty) or kept."""
    skipped: int
    """Rows left out because they could not be read (on_error="skip")."""
    skipped_files: int
    """Files of which no row could be read, left out beside those rows."""
    clusters: int
    text_bytes: int
    threshold: float
    bands: int
    rows: int
    s_curve: list[tuple[float, float]]
    """(similarity, chance to become a candidate pair)."""
    compared_pairs: int
    bounded_buckets: int
    bounded_documents: int
    longest_bucket: int
    device: str
    device_reason: str
    workers: int
    seconds: dict[str, float]
    removed_shares: list[RemovedShare]
    """For the values of ``guard_column`` with most documents; empty without one."""
    parameters: Params

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built

    def for_manifest(self) -> dict[str, Any]:
        """The same by the manifest's names: what is a whole number and no part of the plan is a count."""
        values = self.asdict()
        plan = {name: values[name] for name in _PLAN}
        counts = {name: value for name, value in values.items() if type(value) is int and name not in plan}
        return {**plan, "counts": counts, "parameters": values["parameters"]}

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Summary:
        """Raises msgspec.ValidationError or ParameterError if the manifest lacks something or it has a wrong type."""
        parameters = msgspec.convert(manifest.parameters, Params)
        plan = {name: msgspec.to_builtins(getattr(manifest, name)) for name in _PLAN}
        curve = Banding(manifest.bands, manifest.rows).s_curve(parameters.threshold)
        values = {**plan, **manifest.counts, "threshold": parameters.threshold, "s_curve": curve}
        return msgspec.convert({**values, "parameters": manifest.parameters}, cls)


def summarise(
    params: Params,
    backend: Backend,
    signed: Signed,
    decided: Decided,
    matching: dict[str, int],
    seconds: dict[str, float],
    skipped_files: int,
) -> Summary:
    """matching: compared_pairs, bounded_buckets, bounded_documents and longest_bucket."""
    banding = params.banding
    skipped = int(signed.damaged.sum())
    return Summary(
        spec=SPEC,
        documents=signed.rows - skipped,
        kept=int(decided.keep.sum()),
        removed=len(decided.removed),
        removed_for_earlier=int((decided.keeper >= signed.rows).sum()),
        exact=int((decided.reason == EXACT).sum()),
        near=int((decided.reason == NEAR).sum()),
        removed_empty=int((decided.reason == EMPTY).sum()),
        empty=int((signed.unit_count[: signed.rows] == 0).sum()) - skipped,
        skipped=skipped,
        skipped_files=skipped_files,
        clusters=len(np.unique(decided.keeper[decided.keeper >= 0])),
        text_bytes=signed.text_bytes,
        threshold=params.threshold,
        bands=banding.bands,
        rows=banding.rows,
        s_curve=banding.s_curve(params.threshold),
        **matching,
        device=backend.name,
        device_reason=backend.reason,
        workers=backend.workers,
        seconds={name: round(value, 6) for name, value in seconds.items()},
        removed_shares=removed_shares(signed, decided, params),
        parameters=params,
    )
