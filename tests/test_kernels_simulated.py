"""The loops as Numba CUDA kernels, in its simulator: in a process of its own, which must choose it before importing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="the simulator is Numba's")

SIMULATED = """
import emulated_device, numpy as np, random
from numba import cuda
from gpudedup.kernels import BODIES
from gpudedup.kernels.loop import compiled_loop

assert cuda.config.ENABLE_CUDASIM
used = set()

def simulated(name):
    used.add(name)
    kernel = compiled_loop(BODIES[name])
    return lambda turns, *args: kernel[2, 16](len(turns), args)  # 32 threads, so that loops go round

emulated_device.loop = simulated
import test_cuda_match as tests
for case in [(0, 1, 2), (1, 1, 2), (40, 5, 2)]:
    tests.test_candidates_are_those_of_the_window_rule("forward", *case)
from pathlib import Path
tests.test_a_chain_in_which_each_waits_for_the_one_before(Path("."))
print(*sorted(set(BODIES) - used))
"""


def test_loops_in_the_simulator(tmp_path: Path) -> None:
    """The candidates of the window rule and a whole decision: every loop body takes part."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SIMULATED]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [], "loop bodies that took no part"
