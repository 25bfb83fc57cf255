"""All faults against all jobs, or one again.

    python -m tests.faults [--seed 1] [--kills 200] [--stops 200] [--others 40] [--every 1]
                           [--processes 2]
    python -m tests.faults --job JOB --fault FAULT --at NUMBER

Kills and stops (SIGTERM) at seeded events of both jobs, drawn from every folder of the run, and as many of each other
fault as --others says; no room and an input/output error at every operation (or each --every-th one) but those that
remove. Prints JSON: how many trials, which failed, and how to see that again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .harness import ARTEFACT_HARM, INPUT_HARM, JOBS, ROOT, Job, Laboratory, Trial

OTHERS = ("int", "usr1", "cut", "readonly", "memory", "taken-over", *INPUT_HARM, *ARTEFACT_HARM)


def planned(laboratory: Laboratory, given: argparse.Namespace) -> Iterator[tuple[Job, str, int]]:
    drawn = {"kill": given.kills, "term": given.stops, **dict.fromkeys(OTHERS, given.others)}
    for number, job in enumerate(JOBS.values()):
        for fault, count in drawn.items():
            share = count // len(JOBS) + (number < count % len(JOBS))
            yield from ((job, fault, at) for at in laboratory.points(job, fault, share, given.seed))
        for fault in ("full", "io"):
            events = [event for event in laboratory.undisturbed(job).events if not event.removes]
            yield from ((job, fault, event.number) for event in events[given.seed % given.every :: given.every])
        yield job, "short", 1
        yield from ((job, "clock", every) for every in (1, 2, 7))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Faults planted into durable runs.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=200)
    parser.add_argument("--others", type=int, default=40)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--job", choices=sorted(JOBS))
    parser.add_argument("--fault")
    parser.add_argument("--at", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(Path(folder))
        if given.job:
            trial = laboratory.trial(JOBS[given.job], given.fault, given.at)
            print(trial)
            return bool(trial.problems)
        trials = perform(laboratory, list(planned(laboratory, given)), given.processes)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    failed = [trial for trial in trials if trial.problems]
    report = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "seed": given.seed,
        "trials": Counter(trial.fault for trial in trials),
        "not reached": Counter(trial.fault for trial in trials if not trial.took_place),
        "failed": Counter(trial.fault for trial in failed),
        "failures": [str(trial) for trial in failed],
    }
    print(json.dumps(report, indent=1))
    return bool(failed)


def perform(laboratory: Laboratory, plan: list[tuple[Job, str, int]], processes: int) -> list[Trial]:
    done = []
    with ThreadPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(laboratory.trial, *each) for each in plan]):
            done.append(future.result())
            if done[-1].problems:
                print(done[-1], file=sys.stderr, flush=True)
            if len(done) % 50 == 0:
                print(f"{len(done)} of {len(plan)}", file=sys.stderr, flush=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
