"""Run directories that somebody made to do harm: JSON values and Arrow columns replaced, checksums made to fit.

    python -m tests.faults.hostile PLACE JOB --seed 1 --count 1000      in a process of its own, which may crash

Whatever a run directory says, commands on it end with an answer or one line and an exit code that says whose fault it
is: no traceback, no crash, nothing made, changed or deleted outside of it, no gigabytes of memory, no long work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import xxhash

from . import harness
from .harness import JOBS, job_arguments

STAGES = ("sign", "columns", "match", "verify", "decide", "apply")
MEMORY_BYTES = 2 << 30
"""Address space that a command may take on top of what the process has."""
SECONDS = 30
EXIT_CODES = (0, 1, 2, 3, 4)
"""An answer; what cannot be written; parameters; input; artefacts."""

NUMBERS = (-1, 0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 1e308, -0.5)
TEXTS = (
    "", ".", "..", "../outside/victim", "/etc/passwd", "kept/../../outside/victim", "removed//x", "a\0b", "kept/\0",
    "x" * 5000, "/".join(["d"] * 3000), "removed/" + "y" * 300, "lock.json", "manifest.json", "done/sign/000000.json",
    "\u202e\x1b[31m", "complete", "unfinished", "9" * 5000,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, [], {}, [[]], {"a": {"b": []}})


class TimeIsUpError(BaseException):
    """Raised by the alarm."""


def sealed(value: dict[str, Any]) -> bytes:
    """The bytes of a JSON file with the checksum that fits them."""
    blank = json.dumps({**value, "checksum": ""}, indent=1).encode() + b"\n"
    return blank.replace(b'"checksum": ""', b'"checksum": "%s"' % xxhash.xxh3_128_hexdigest(blank).encode(), 1)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON document, containers too."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


class Attack:
    """One damaged copy of a run."""

    def __init__(self, template: Path, run: Path, generator: random.Random) -> None:
        self.run, self.random = run, generator
        self.said: list[str] = []
        shutil.copytree(template, run, symlinks=True)

    def forget(self) -> None:
        """Make the run one that was stopped after some stage, so that what is left will be read."""
        stage = self.random.randrange(len(STAGES))
        for later in STAGES[stage + 1 :]:
            shutil.rmtree(self.run / "done" / later, ignore_errors=True)
        manifest = json.loads((self.run / "manifest.json").read_bytes())
        manifest["state"] = "unfinished"
        (self.run / "manifest.json").write_bytes(sealed(manifest))
        self.said.append(f"stopped after {STAGES[stage]}")

    def damage(self) -> None:
        """One thing that no run does."""
        documents = sorted(self.run.glob("done/*/*.json")) + [self.run / "manifest.json"] * 6
        arrows = sorted(self.run.rglob("*.arrow"))
        ways: list[tuple[int, Callable[[], None]]] = [
            (10, lambda: self.value_of(self.random.choice(documents))),
            (8, lambda: self.column_of(self.random.choice(arrows))),
            (3, lambda: self.bytes_of(self.random.choice(arrows))),
            (2, lambda: self.text_of(self.random.choice(documents))),
            (2, self.link),
            (1, self.folder),
            (1, self.lock),
        ]
        weights, calls = zip(*ways, strict=True)
        self.random.choices(calls, weights)[0]()

    def value_of(self, path: Path) -> None:
        """A value of a JSON file, replaced, removed or repeated."""
        document = json.loads(path.read_bytes())
        place = self.random.choice(list(leaves(document)))
        kind = self.random.randrange(10)
        if kind == 0:
            above = document
            for key in place[:-1]:
                above = above[key]
            del above[place[-1]]
            new: Any = "nothing"
        elif kind == 1 and isinstance(document.get(place[0]), list):
            place, new = place[:1], document[place[0]] * self.random.choice((2, 1000))
            document = replaced(document, place, new)
        else:
            pool = self.random.choice((NUMBERS, NUMBERS, TEXTS, TEXTS, OTHERS))
            new = self.random.choice(pool)
            document = replaced(document, place, new)
        path.write_bytes(sealed(document))
        self.said.append(f"{path.relative_to(self.run)}: {'.'.join(map(str, place))} = {str(new)[:60]!r}")

    def text_of(self, path: Path) -> None:
        """No JSON, or more of it than fits."""
        kind = self.random.choice(("deep", "list", "empty", "half", "zeros", "number", "bytes", "wide", "big"))
        data = path.read_bytes()
        if kind == "big":
            with open(path, "wb") as file:
                file.truncate((1 << 30) + 1)
        else:
            made = {
                "deep": b"[" * 100_000,
                "list": b"[]",
                "empty": b"",
                "half": data[: len(data) // 2],
                "zeros": bytes(1 << 20),
                "number": b"1" * 100_000,
                "bytes": b"\xff\xfe" + data,
                "wide": b'{"checksum": "' + b"x" * (1 << 20) + b'"}',
            }
            path.write_bytes(made[kind])
        self.said.append(f"{path.relative_to(self.run)} is {kind}")

    def column_of(self, path: Path) -> None:
        """Values of a column of an artefact, of the right type and wrong, or other rows, batches and columns."""
        with pa.ipc.open_file(path) as file:
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
            schema = file.schema
        kind = self.random.choice(("values", "values", "values", "values", "rows", "batches", "type", "null"))
        column = self.random.randrange(len(schema))
        if kind == "batches":
            batches = self.random.choice(([], batches * 3, batches[::-1], batches[:1]))
        elif kind == "rows":
            cut = self.random.choice((0, 1, 3))
            batches = [batch.slice(0, cut) if cut < 3 else pa.concat_batches([batch, batch]) for batch in batches]
        elif batches:
            number = self.random.randrange(len(batches))
            batch = batches[number]
            array = self._array(batch.column(column), kind)
            arrays = [array if place == column else batch.column(place) for place in range(len(schema))]
            batches[number] = made = pa.RecordBatch.from_arrays(arrays, names=schema.names)
            if kind != "values":
                schema = made.schema
                batches = [made]
            else:
                batches[number] = pa.RecordBatch.from_arrays(arrays, schema=schema)
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        self.said.append(f"{path.relative_to(self.run)}: {schema.names[column]} with other {kind}")
        self._put(path, sink.getvalue())

    def _array(self, array: pa.Array, kind: str) -> pa.Array:
        if kind == "null":
            return pa.nulls(len(array), array.type)
        if kind == "type":
            return pa.array([0.5] * len(array))
        if pa.types.is_fixed_size_list(array.type):
            return pa.FixedSizeListArray.from_arrays(self._array(array.flatten(), kind), type=array.type)
        if pa.types.is_boolean(array.type):
            return pa.array([self.random.random() < 0.5 for _ in range(len(array))])
        if not pa.types.is_integer(array.type) and not pa.types.is_floating(array.type):
            return array.take(pa.array([0] * len(array))) if len(array) else array
        values = array.to_numpy(zero_copy_only=False).copy()
        if len(values) and values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            for _ in range(self.random.choice((1, 3, len(values)))):
                near = int(values[self.random.randrange(len(values))]) + self.random.randint(-3, 3)
                choice = self.random.choice((limits.max, limits.min, limits.max - 1, len(values), near))
                values[self.random.randrange(len(values))] = min(max(choice, limits.min), limits.max)
        elif len(values):
            values[self.random.randrange(len(values))] = self.random.choice((np.nan, np.inf, -1.0, 1e300))
        return pa.array(values, array.type)

    def bytes_of(self, path: Path) -> None:
        """Bytes of an artefact, and checksum and size made to fit."""
        data = bytearray(path.read_bytes())
        kind = self.random.choice(("flip", "flip", "flip", "cut", "zero", "repeat"))
        place = self.random.randrange(len(data))
        if kind == "flip":
            for _ in range(self.random.choice((1, 1, 8))):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        elif kind == "cut":
            del data[place:]
        elif kind == "zero":
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        else:
            data += data[place:]
        self.said.append(f"{path.relative_to(self.run)}: {kind} at {place} of its bytes")
        self._put(path, bytes(data))

    def _put(self, path: Path, data: bytes) -> None:
        """Write an artefact, and let the records that name it tell its new size and checksum."""
        path.write_bytes(data)
        name = str(path.relative_to(self.run))
        for file in self.run.glob("done/*/*.json"):
            record = json.loads(file.read_bytes())
            for entry in record.get("artefacts", []):
                if entry["path"] == name:
                    entry.update(size_bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
                    file.write_bytes(sealed(record))

    def link(self) -> None:
        """A link out of the directory instead of a file or folder; to a file like it, so that sizes fit."""
        path = self.random.choice([path for path in sorted(self.run.rglob("*")) if path.name != "tmp"])
        outside = self.run.parent / "outside" / path.relative_to(self.run)
        outside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(outside)
        path.symlink_to(self.random.choice((outside, os.path.relpath(outside, path.parent))))
        self.said.append(f"{path.relative_to(self.run)} is a link to the outside")

    def lock(self) -> None:
        """The lock of a driver that is gone, of another version, of none, or what is no lock."""
        owner = {"token": "gone", "host": "elsewhere", "pid": 7, "period_seconds": 0.2, "beat": 3}
        name = self.random.choice(sorted(owner))
        owner[name] = self.random.choice(self.random.choice((NUMBERS, TEXTS, OTHERS)))
        path = self.run / "lock.json"
        kind = self.random.choice(("value", "value", "bytes", "folder", "pipe", "link", "big"))
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(self.run.parent / "outside" / "victim")
        elif kind == "big":
            path.touch()
            os.truncate(path, (1 << 30) + 1)
        else:
            path.write_bytes(json.dumps(owner).encode() if kind == "value" else self.random.randbytes(100))
        self.said.append(f"lock.json: {kind}, {name} = {str(owner[name])[:60]!r}")

    def folder(self) -> None:
        """A folder where a file should be, or a file where a folder should be, or what is neither."""
        path = self.random.choice(sorted(self.run.rglob("*")))
        if path.is_dir():
            shutil.rmtree(path)
            path.write_bytes(b"a file")
        else:
            path.unlink()
            os.mkfifo(path) if self.random.random() < 0.5 else path.mkdir()
        self.said.append(f"{path.relative_to(self.run)} is of another kind")


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What can be seen of files from outside: kind and mode, size, time of change."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_mode, 0 if path.is_dir() else status.st_size, status.st_mtime_ns)
    return found


def call(arguments: list[str]) -> tuple[int | str, str, str]:
    """The command line in this process: its exit code, or what it raised; its output; what it said on stderr."""
    from gpudedup import cli

    from . import command  # noqa: F401  (small tasks, as the harness has them)

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["gpudedup", *arguments]
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code: int | str = int(ended.code or 0) if not isinstance(ended.code, str) else ended.code
    except TimeIsUpError:
        code = f"still at it after {SECONDS} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-3:]
        code = f"{error!r} in " + " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(last))
    else:
        code = "no exit"
    finally:
        signal.alarm(0)
    return code, out.getvalue(), err.getvalue()


def is_one_line(said: str) -> bool:
    return not harness.is_one_line(said) and len(said) < 20_000 and "out of memory" not in said


def problems(commands: list[list[str]], outside: Path) -> Iterator[str]:
    before = snapshot(outside)
    for arguments in commands:
        code, answered, said = call(arguments)
        print(f"  {arguments[0]}: {code if isinstance(code, int) else 'fails'} {said.strip()[:200]!r}", flush=True)
        if code not in EXIT_CODES:
            yield f"{arguments[0]}: {code} {said[-500:]}"
        elif code and not answered and not is_one_line(said):
            yield f"{arguments[0]}: exit code {code}, but not one line: {said[:300]!r}"
        if snapshot(outside) != before:
            yield f"{arguments[0]}: something outside of the run directory changed"


def time_is_up(number: int, frame: Any) -> None:
    raise TimeIsUpError


def attack_all() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile", description=__doc__)
    parser.add_argument("place", type=Path, help="has inputs/ and tmp/; what is run there is JOB")
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    given = parser.parse_args()
    os.chdir(given.place)
    run, template, outside = Path("run"), Path("template"), Path("outside")
    command = job_arguments(JOBS[given.job])
    signal.signal(signal.SIGALRM, time_is_up)
    if call(command)[0] != 0:
        raise RuntimeError(f"{command} fails")
    run.rename(template)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    failed = 0
    for number in range(given.seed, given.seed + given.count):
        shutil.rmtree(outside, ignore_errors=True)
        if run.is_symlink() or not run.is_dir():
            run.unlink(missing_ok=True)
        shutil.rmtree(run, ignore_errors=True)
        outside.mkdir()
        (outside / "victim").write_text("stays")
        attack = Attack(template, run, random.Random(number))
        if attack.random.random() < 0.8:
            attack.forget()
        for _ in range(attack.random.choice((1, 1, 1, 2))):
            with contextlib.suppress(Exception):  # two at one place do not always go together
                attack.damage()
        print(f"{number}: {'; '.join(attack.said)}", flush=True)
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        again = attack.random.choice((["match", "run", "--keep", "longest"], ["decide", "run", "--threshold", "0.9"]))
        for problem in problems([["status", "run"], ["audit", "run"], command, again], outside):
            failed += 1
            print(f"FAILED {number}: {problem}", flush=True)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(f"{given.count} run directories, {failed} problems")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(attack_all())
