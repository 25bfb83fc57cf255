"""datatrove: the four stages of its minhash example on a local executor; candidates become components.

Words come from a tokenizer of our own, which its interface allows: the one for English, of spaCy, is slower and makes
one word of a Chinese clause. Of its text normalisation only what the job asks for is on.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import peer
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.readers import ParquetReader
from datatrove.utils.hashing import HashConfig
from datatrove.utils.logging import logger
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class Units(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return peer.units(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


NORM = TextNormConfig(
    lowercase=False,  # the units are in lower case
    norm_whitespace=False,
    remove_punctuation=False,
    norm_unicode_diacritics=False,
    norm_numbers=False,
)


class Ids:
    """The ids of the documents that come through, written to one file a task."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, data, rank: int = 0, world_size: int = 1):
        with open(f"{self.folder}/{rank:06}", "w") as out:
            for document in data:
                out.write(f"{document.id}\n")
        yield from ()


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    logger.remove()
    config = MinhashConfig(
        n_grams=peer.SHINGLE,
        num_buckets=peer.BANDS,
        hashes_per_bucket=peer.ROWS,
        norm_config=NORM,
        hash_config=HashConfig(precision=64, hash_fc="xxhash"),
    )
    with tempfile.TemporaryDirectory() as work:
        for name in ("in", "kept"):
            os.mkdir(f"{work}/{name}")
        for number, file in enumerate(files):
            os.symlink(file, f"{work}/in/{number:06}.parquet")
        reader = ParquetReader(f"{work}/in", glob_pattern="*.parquet", read_metadata=False)

        def stage(name: str, tasks: int, pipeline: list[object]) -> None:
            with peer.Clock(seconds, name):
                LocalPipelineExecutor(
                    pipeline,
                    tasks=tasks,
                    workers=min(workers, tasks),
                    logging_dir=f"{work}/logs_{name}",
                    start_method="fork",
                ).run()

        signatures, buckets, remove = f"{work}/signatures", f"{work}/buckets", f"{work}/remove"
        stage("sign", len(files), [reader, MinhashDedupSignature(signatures, config=config, language=Units())])
        stage("match", peer.BANDS, [MinhashDedupBuckets(signatures, buckets, config=config, lines_to_buffer=10_000)])
        stage("cluster", 1, [MinhashDedupCluster(buckets, remove, config=config, lines_to_buffer=10_000)])
        stage("filter", len(files), [reader, MinhashDedupFilter(remove), Ids(f"{work}/kept")])
        kept = [int(i) for part in sorted(Path(work, "kept").iterdir()) for i in part.read_text().split()]
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, {workers} processes, not checked, components"


if __name__ == "__main__":
    peer.main(run)
