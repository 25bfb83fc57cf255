#!/usr/bin/env bash
# Validates gpudedup on this machine's NVIDIA GPU, then measures it, in less than ten minutes:
#     bash tools/gpu_check.sh [OUT]
# needs no network and no installed gpudedup, but Python 3.11 or newer with CuPy, Numba and what the first stage lists,
# and a C++ compiler. Each stage has a time limit of its own and runs even if those before it failed. The last thing
# printed is a table of them; the exit status is the number that failed. A stage that this machine cannot do (no
# compute-sanitizer, no right to read counters) ends with 77 and counts as none.
# Figures go to OUT, with the log of everything, in at most 8 files; without OUT, to benchmarks/results.
# With --rehearse the same runs without a GPU, on the emulated device of the tests and next to no data: its figures mean
# nothing, and are marked so.
set -uo pipefail

export REHEARSE=""
if [ "${1:-}" = --rehearse ]; then
  REHEARSE=yes
  export GPUDEDUP_REHEARSE=1 GPUDEDUP_BENCH_TINY=1 NUMBA_DISABLE_JIT=1 # compiling would take longer than it runs
  shift
else
  export GPUDEDUP_REQUIRE_GPU=1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -gt 0 ]; then
  mkdir -p "$1" || exit
  out=$(cd "$1" && pwd)
else
  out=$(mktemp -d "${TMPDIR:-/tmp}/gpudedup-gpu-check.XXXXXX")
fi
cd "$(dirname "$0")/.." || exit
results=$out
[ $# -gt 0 ] || [ -n "$REHEARSE" ] || results=$PWD/benchmarks/results
: >"$out/log.txt"
export work out results pytest="python3 -P -m pytest -q -rs -p no:cacheprovider"
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export GPUDEDUP_BENCH_DIR=${GPUDEDUP_BENCH_DIR:-$work/corpora}

failures=0
table=""

stage() { # stage NAME SECONDS FUNCTION [ARGUMENT]: runs it, logs what it says, and shows the end of that if it failed
  local name=$1 limit=$2 begin=$SECONDS status=0 verdict=passed
  shift 2
  [ -z "$REHEARSE" ] || limit=$((4 * limit)) # a single slow core builds and emulates
  printf '== %s\n' "$name"
  timeout --kill-after=5 "$limit" bash -euo pipefail -c '"$@"' stage "$@" >"$work/stage.log" 2>&1 </dev/null ||
    status=$?
  { printf '\n==== %s (%s s)\n' "$name" "$((SECONDS - begin))"; tail -c 1500000 "$work/stage.log"; } >>"$out/log.txt"
  case $status in
    0) tail -n "${lines:-3}" "$work/stage.log" ;;
    77) verdict="not possible here" && tail -n 1 "$work/stage.log" ;;
    *)
      verdict=FAILED
      [ "$status" != 124 ] || verdict="FAILED: took too long"
      failures=$((failures + 1))
      tail -n 40 "$work/stage.log"
      ;;
  esac
  table+=$(printf '%-22s rc %-4s %4d s of %-4d %s' "$name" "$status" "$((SECONDS - begin))" "$limit" "$verdict")$'\n'
}

environment() {
  lscpu | head -n 25
  python3 - <<'PYTHON'
import os, shutil, sys
from importlib import metadata

print("Python", sys.version)
names = "numpy pyarrow typer rich msgspec xxhash setuptools pybind11 pytest hypothesis unicodedata2 opencc".split()
missing = ["python 3.11 or newer"] * (sys.version_info < (3, 11))
for name in names:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        missing.append(name)
installed = {each.metadata["Name"].lower() for each in metadata.distributions() if each.metadata["Name"]}
cuda = sorted(name for name in installed if name.startswith(("cupy", "numba-cuda", "cuda-", "nvidia-")))
print(*(f"{name} {metadata.version(name)}" for name in cuda), sep="\n")
if not os.environ["REHEARSE"]:
    missing += [name for name in ("cupy", "numba-cuda") if not any(found.startswith(name) for found in cuda)]
if not shutil.which(os.environ.get("CXX", "g++")):
    missing.append("a C++ compiler (g++, or CXX)")
for tool in ("nvcc", "compute-sanitizer", "ncu"):
    print(tool, "found" if shutil.which(tool) else "not found, not needed")
if missing:
    sys.exit("missing: " + ", ".join(missing))
PYTHON
  if command -v nvidia-smi; then nvidia-smi; else
    echo "missing: nvidia-smi"
    [ -n "$REHEARSE" ]
  fi
}

build() { # from a copy, so that nothing is left in this folder
  mkdir "$work/source"
  cp -r pyproject.toml setup.py README.md LICENSE gpudedup csrc "$work/source"
  find "$work/source" -name '*.so' -delete
  python3 -m pip install -q --no-index --no-deps --no-build-isolation --no-compile --target "$work/site" "$work/source"
  python3 -P -c 'import gpudedup._cpu; print(gpudedup._cpu.__file__)' | grep -F "$work/site"
}

probe() {
  python3 -P -c 'from gpudedup.cli import main; main()' info
  python3 -P - <<'PYTHON'
import os, sys
from gpudedup.backends.cuda.detect import detect
found = detect()
print(found)
if found.reason and not os.environ["REHEARSE"]:
    sys.exit(found.reason)
PYTHON
}

tests() {
  local parallel=() cores
  cores=$(nproc)
  ! python3 -c 'import xdist' 2>/dev/null || parallel=(-n $((cores < 4 ? cores : 4))) # most of their time is the host's
  if [ -n "$REHEARSE" ]; then # only these know the emulated device; there they are not marked
    $pytest "${parallel[@]}" tests/test_gpu.py
  else
    mapfile -t files < <(grep -l 'pytest\.mark\.gpu' tests/test_*.py)
    $pytest "${parallel[@]}" -m gpu "${files[@]}" | tee "$work/tests.log"
    ! grep -E '^[0-9].* skipped' "$work/tests.log" # what was skipped was not tested
  fi
}

sanitize() { # sanitize TOOL: a test that launches every kernel
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here" && exit 77; }
  local status=0 limits=()
  # By design the hash of the last unit reads up to 11 bytes after the folded text, and leaves them out.
  [ "$1" != initcheck ] || limits=(--kernel-name-exclude kernel_substring=hash_units)
  compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all "${limits[@]}" \
    $pytest tests/test_gpu.py -k every_kernel >"$work/$1.log" 2>&1 || status=$?
  cat "$work/$1.log"
  if [ $status != 0 ] && grep -qi 'device not supported' "$work/$1.log"; then
    echo "compute-sanitizer cannot check this GPU here" && exit 77
  fi
  return $status
}

measure() { # measure SUITE SECONDS
  python3 benchmarks/bench_gpu.py "$1" --seconds "$2" --results "$results"
}

profile() {
  command -v ncu >/dev/null || { echo "no ncu here" && exit 77; }
  local status=0 kernels='regex:measure_|join_|find_|first_|hash_|sign_lanes|band_keys'
  ncu --clock-control none --set basic --csv --log-file "$out/ncu.csv" --kernel-name "$kernels" --launch-skip 10 \
    --launch-count 21 python3 benchmarks/bench_gpu.py kernels --quick --seconds 5 --results "$work/profiled" ||
    status=$?
  if grep -q 'ERR_NVGPUCTRPERM\|LibraryNotLoaded' "$out/ncu.csv"; then
    cat "$out/ncu.csv" && echo "the counters of this GPU cannot be read here" && exit 77
  fi
  python3 - "$out/ncu.csv" <<'PYTHON'
import csv, sys

shown = ("Duration", "Memory Throughput", "Compute (SM) Throughput", "Achieved Occupancy", "Registers Per Thread")
lines = [line for line in open(sys.argv[1]) if line.startswith('"')]
found = {}
for row in csv.DictReader(lines):
    if row["Metric Name"] in shown:
        values = found.setdefault((row["ID"], row["Kernel Name"].split("(")[0]), {})
        values.setdefault(row["Metric Name"], f"{row['Metric Value']} {row['Metric Unit']}")
for (_, kernel), values in found.items():
    print(kernel, *(f"{name} {values[name]}" for name in shown if name in values), sep="; ")
if not found:
    sys.exit("ncu gave no figures")
PYTHON
  return $status
}

export -f environment build probe tests sanitize measure profile

lines=12 stage environment 15 environment
stage build 45 build
lines=6 stage probe 15 probe
stage tests 130 tests
for tool in memcheck racecheck initcheck synccheck; do stage "sanitizer $tool" 38 sanitize "$tool"; done
lines=20 stage ceilings 15 measure ceilings 15
lines=80 stage kernels 50 measure kernels 50
lines=20 stage "end to end" 65 measure job 65
lines=20 stage match 50 measure match 45
lines=25 stage "profile (ncu)" 30 profile

[ -z "$REHEARSE" ] || printf '\nA rehearsal on the emulated device: no figure above is one of a GPU.\n'
printf '\nlog: %s; figures: %s\n%s%s\n' "$out/log.txt" "$results" "$table" "$failures failed, $SECONDS s in all"
exit $failures
