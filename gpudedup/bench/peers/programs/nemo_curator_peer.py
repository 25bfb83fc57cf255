"""NeMo Curator: FuzzyDeduplicationWorkflow, then TextDuplicatesRemovalWorkflow, as its guide to fuzzy removal has them.

Written by its public documentation. It needs an NVIDIA GPU and Ray. Its shingles are of characters: 24 of them, its
default, stand here for five words. Candidates become components, and any of one stays.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import peer
import pyarrow.parquet as pq
from nemo_curator.core.client import RayClient
from nemo_curator.stages.deduplication.fuzzy.workflow import FuzzyDeduplicationWorkflow
from nemo_curator.stages.text.deduplication.removal_workflow import TextDuplicatesRemovalWorkflow

CHAR_NGRAMS = 24


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    client = RayClient(num_cpus=workers)
    with tempfile.TemporaryDirectory() as work:
        os.mkdir(f"{work}/in")
        for number, file in enumerate(files):
            os.symlink(file, f"{work}/in/part-{number:05}.parquet")
        with peer.Clock(seconds, "start"):
            client.start()
        try:
            with peer.Clock(seconds, "read_sign_match"):
                FuzzyDeduplicationWorkflow(
                    input_path=f"{work}/in",
                    cache_path=f"{work}/cache",
                    output_path=f"{work}/ids",
                    input_filetype="parquet",
                    text_field="text",
                    perform_removal=False,
                    char_ngrams=CHAR_NGRAMS,
                    num_bands=peer.BANDS,
                    minhashes_per_band=peer.ROWS,
                ).run()
            with peer.Clock(seconds, "remove"):
                TextDuplicatesRemovalWorkflow(
                    input_path=f"{work}/in",
                    ids_to_remove_path=f"{work}/ids/FuzzyDuplicateIds",
                    output_path=f"{work}/out",
                    input_filetype="parquet",
                    id_generator_path=f"{work}/ids/fuzzy_id_generator.json",
                    duplicate_id_field="_curator_dedup_id",
                ).run()
        finally:
            client.stop()
        parts = sorted(Path(work, "out").rglob("*.parquet"))
        kept = [i for part in parts for i in pq.read_table(part, columns=["id"])["id"].to_pylist()]
    settings = f"{CHAR_NGRAMS} characters, {peer.BANDS} bands of {peer.ROWS}, one GPU, not checked, components"
    return kept, settings


if __name__ == "__main__":
    peer.main(run)
