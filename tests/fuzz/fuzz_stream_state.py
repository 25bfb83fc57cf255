"""Damaged and hostile saved streams, all with checksums that fit; meant for a build with sanitizers too.

    python tests/fuzz/fuzz_stream_state.py --executions 100000 --seed 0

An execution damages one saved stream and opens it. That must be refused by an ArtefactError, or give a stream that
answers. Equal seeds do equal damage.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import xxhash

import gpudedup
from gpudedup import ArtefactError

Rng = random.Random
WORDS = [f"w{number}" for number in range(12)]
OPTIONS: list[dict[str, Any]] = [
    {"verify": "exact", "within": "w", "id_column": "id"},
    {"verify": "exact", "across": "w", "drop_empty": True},
    {"verify": "signature", "within": "w", "across": "x", "bucket_window": 1},
    {"verify": "none", "id_column": "w"},
]
EXTREMES = [0, 1, 2, -1, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1]


def some_table(rng: Rng, rows: int) -> pa.Table:
    texts = [" ".join(rng.choice(WORDS) for _ in range(rng.choice([0, 2, 5, 9]))) for _ in range(rows)]
    return pa.table(
        {
            "text": texts,
            "id": [f"id{rng.randrange(1000)}" for _ in texts],
            "w": [rng.choice(["a", "b", None]) for _ in texts],
            "x": [rng.choice([1, 2]) for _ in texts],
        }
    )


def save_one(folder: Path, rng: Rng, options: dict[str, Any]) -> None:
    stream = gpudedup.Deduplicator(
        threshold=0.5, shingle="word:2", num_perm=8, bands=3, rows=2, device="cpu", memory="64 MB", **options
    )
    for _ in range(2):
        stream.filter(some_table(rng, 60))
    stream.save(folder)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """The manifest with the checksum that it should have."""
    blank = json.dumps({**manifest, "checksum": ""}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    checksum = xxhash.xxh3_128_hexdigest(blank)
    (folder / "stream.json").write_bytes(blank.replace(b'"checksum": ""', f'"checksum": "{checksum}"'.encode(), 1))


def replace_table(folder: Path, kind: str, data: bytes, rows: int | None = None) -> None:
    """Another file for a table, as the manifest says."""
    manifest = json.loads((folder / "stream.json").read_bytes())
    entry = manifest["artefacts"][kind]
    (folder / f"{kind}-{entry['xxh3_128']}.arrows").unlink()
    entry.update(size_bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
    if rows is not None:
        entry["rows"] = rows
    (folder / f"{kind}-{entry['xxh3_128']}.arrows").write_bytes(data)
    write_manifest(folder, manifest)


def read_table(folder: Path, kind: str) -> bytes:
    entry = json.loads((folder / "stream.json").read_bytes())["artefacts"][kind]
    return (folder / f"{kind}-{entry['xxh3_128']}.arrows").read_bytes()


def damage_bytes(folder: Path, rng: Rng, kind: str) -> None:
    data = bytearray(read_table(folder, kind))
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data))
        how = rng.random()
        if how < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        elif how < 0.8:
            word = rng.choice(EXTREMES) % 2**64
            data[at : at + 8] = word.to_bytes(8, "little")[: len(data) - at]
        elif how < 0.9:
            del data[at : at + rng.choice([1, 8, len(data)])]
        else:
            data[at:at] = data[: rng.choice([1, 8, 64])]
        if not data:
            break
    replace_table(folder, kind, bytes(data))


def damage_values(folder: Path, rng: Rng, kind: str) -> None:
    table = pa.ipc.open_stream(read_table(folder, kind)).read_all()
    how = rng.random()
    if how < 0.2 and table.num_rows:
        table = table.slice(rng.randrange(2), rng.randrange(table.num_rows))
    elif how < 0.3:
        table = pa.concat_tables([table, table])
    elif table.num_rows and table.num_columns:
        column = rng.randrange(table.num_columns)
        values = table.column(column).to_pylist()
        for _ in range(rng.choice([1, 1, 3])):
            row, other = rng.randrange(len(values)), rng.choice(values)
            values[row] = other if rng.random() < 0.4 else another(rng, values[row])
        field = table.schema.field(column)
        try:
            table = table.set_column(column, field, pa.array(values, field.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rng.choice([1, 7, 1000]))
    replace_table(folder, kind, sink.getvalue(), table.num_rows)


def another(rng: Rng, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*EXTREMES, value + 1, value - 1])
    if isinstance(value, float):
        return rng.choice([-1.0, 2.0, float("nan"), float("inf")])
    if isinstance(value, list):
        return rng.choice([[], value[:-1], value * 2, [*value, rng.choice(EXTREMES)], value[::-1], None])
    return rng.choice([None, "", "x"])


def damage_manifest(folder: Path, rng: Rng, kind: str) -> None:
    manifest = json.loads((folder / "stream.json").read_bytes())
    holder: Any = rng.choice([manifest, manifest["parameters"], manifest["artefacts"], manifest["artefacts"][kind]])
    key = rng.choice(sorted(holder))
    how = rng.random()
    if how < 0.2:
        del holder[key]
    elif how < 0.3:
        holder[rng.choice(["", "../x", "device", kind])] = holder[key]
    else:
        paths = ["../" * 9 + "etc/passwd", "/etc/passwd", "a/b", "\0", "", "\ud800", "0" * 32]
        holder[key] = rng.choice([*EXTREMES, *paths, None, True, 0.5, [], {}, another(rng, holder[key])])
    write_manifest(folder, manifest)


DAMAGE: list[Callable[[Path, Rng, str], None]] = [
    damage_bytes,
    damage_bytes,
    damage_values,
    damage_values,
    damage_manifest,
]


def fuzz(executions: int, seed: int) -> dict[str, int]:
    """Streams by outcome: "opened" or "refused"."""
    rng = random.Random(seed)
    outcomes = {"opened": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as work:
        good = [Path(work, f"good{number}") for number in range(len(OPTIONS))]
        for folder, options in zip(good, OPTIONS, strict=True):
            save_one(folder, rng, options)
        kinds = [sorted(json.loads((folder / "stream.json").read_bytes())["artefacts"]) for folder in good]
        for _ in range(executions):
            number = rng.randrange(len(good))
            folder = Path(shutil.copytree(good[number], Path(work, "damaged")))
            rng.choice(DAMAGE)(folder, rng, rng.choice(kinds[number]))
            try:
                stream = gpudedup.Deduplicator.open(folder, device="cpu", memory="64 MB", tmp=work)
            except ArtefactError as error:
                if str(folder) not in str(error):
                    raise
                outcomes["refused"] += 1
            else:
                answer(stream, rng)
                outcomes["opened"] += 1
            shutil.rmtree(folder)
    return outcomes


def answer(stream: gpudedup.Deduplicator, rng: Rng) -> None:
    """What a stream is asked must be answered, or refused as it would be for any stream."""
    before, table = stream.documents, some_table(rng, 30)
    try:
        assert len(stream.filter(table)) == 30
    except gpudedup.GpudedupError:  # the damage made it a stream with other columns
        return
    removed = stream.removed
    assert removed["row"].to_pylist() == sorted(set(removed["row"].to_pylist()))
    assert all(row < before + 30 for row in removed["row"].to_pylist())
    with tempfile.TemporaryDirectory() as again:
        stream.save(again)
        assert gpudedup.Deduplicator.open(again, device="cpu", memory="64 MB").removed.equals(removed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    counts = fuzz(arguments.executions, arguments.seed)
    print(f"{arguments.executions} executions, seed {arguments.seed}: {counts}, {time.monotonic() - start:.0f} s")
