#!/usr/bin/env bash
# Validates gpudedup on this machine's NVIDIA GPU, and measures it, in less than ten minutes:
#     bash tools/gpu_check.sh [OUT [STAGE...]]
# needs no network and no installed gpudedup, but Python 3.11 or newer with CuPy, Numba and what the first stage lists,
# and a C++ compiler. Stages run in the order of their worth, each with a time limit, and even if those before it failed;
# with STAGE... only those whose names begin so, after the first two. The last thing printed is a table of them; the exit
# status is the number that failed. A stage that this machine cannot do (no compute-sanitizer, no right to read counters),
# or that there is no time left for, ends with 77 and counts as none.
# Figures go to OUT as they are taken, with the log of everything, in at most 8 files; without OUT, to
# benchmarks/results. For bars to count they take 30 GB of files, in /dev/shm if it has 45, else in TMPDIR, and as much
# memory beside.
# GPUDEDUP_NVTEXT names a folder with pylibcudf and what it needs, for figures of libcudf beside ours.
# GPUDEDUP_CHECK_SECONDS are given to all stages together: 580 unless set.
# With --rehearse the same runs without a GPU, on the emulated device of the tests and next to no data: its figures mean
# nothing, and are marked so.
set -uo pipefail

seconds=${GPUDEDUP_CHECK_SECONDS:-580}
export REHEARSE=""
if [ "${1:-}" = --rehearse ]; then
  REHEARSE=yes
  export GPUDEDUP_REHEARSE=1 GPUDEDUP_BENCH_TINY=1 NUMBA_DISABLE_JIT=1 # compiling would take longer than it runs
  seconds=$((4 * seconds))
  shift
else
  export GPUDEDUP_REQUIRE_GPU=1
fi
work=$(mktemp -d)
corpora=""
trap 'rm -rf "$work" "$corpora"' EXIT
if [ $# -gt 0 ]; then
  mkdir -p "$1" || exit
  out=$(cd "$1" && pwd)
else
  out=$(mktemp -d "${TMPDIR:-/tmp}/gpudedup-gpu-check.XXXXXX")
fi
[ -z "${GPUDEDUP_NVTEXT:-}" ] || GPUDEDUP_NVTEXT=$(cd "$GPUDEDUP_NVTEXT" && pwd) || exit
cd "$(dirname "$0")/.." || exit
results=$out
[ $# -gt 0 ] || [ -n "$REHEARSE" ] || results=$PWD/benchmarks/results
log=$out/log.txt
: >"$log"
export work out results pytest="python3 -P -m pytest -q -rs -p no:cacheprovider"
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
free=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)
[ "${free:-0}" -lt 45000000 ] || corpora=$(mktemp -d /dev/shm/gpudedup-gpu-check.XXXXXX) # no disk is measured
corpora=${corpora:-$work/corpora}
export corpora GPUDEDUP_BENCH_DIR=${GPUDEDUP_BENCH_DIR:-$corpora}

failures=0
table=""
wanted=(environment build "${@:2}")
[ $# -gt 1 ] || wanted=("")

stage() { # stage NAME SECONDS FUNCTION [ARGUMENT]: runs it, logs what it says, and shows the end of that
  local name=$1 limit=$2 lines=${lines:-3} begin=$SECONDS status=0 verdict=passed cut="" said each
  shift 2
  for each in "${wanted[@]}"; do [[ $name != "$each"* ]] || break; done
  [[ $name == "$each"* ]] || return
  [ -z "$REHEARSE" ] || limit=$((4 * limit)) # a single slow core builds and emulates
  if [ "$limit" -gt $((seconds - begin)) ]; then
    limit=$((seconds - begin)) cut=yes
  fi
  printf '== %s\n' "$name"
  printf '\n==== %s\n' "$name" >>"$log"
  said=$(stat -c %s "$log")
  if [ "$limit" -gt 5 ]; then
    LIMIT=$limit timeout --kill-after=5 "$limit" bash -euo pipefail -c '"$@"' stage "$@" >>"$log" 2>&1 </dev/null ||
      status=$?
  else
    limit=0 status=124
  fi
  case $status$cut in
    0*) verdict=passed ;;
    77*) verdict="not possible here" ;;
    124yes) verdict="no time left" status=77 ;;
    124) verdict="FAILED: took too long" ;;
    *) verdict=FAILED ;;
  esac
  case $verdict in
    FAILED*) failures=$((failures + 1)) && lines=40 ;;
    not*) lines=1 ;;
  esac
  rm -rf "${corpora:?}"/* # much, and of no use to other stages
  tail -c +$((said + 1)) "$log" | tail -n "$lines"
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
brought = os.path.isdir(os.path.join(os.environ.get("GPUDEDUP_NVTEXT") or "nowhere", "pylibcudf"))
print("pylibcudf", "brought along" if brought else "not brought along, not needed")
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
  if [ -n "$REHEARSE" ]; then # what is rehearsed needs no optimising
    printf '#!/bin/sh\nexec %s "$@" -O0\n' "${CXX:-g++}" >"$work/compiler"
    chmod +x "$work/compiler"
    export CXX=$work/compiler
  fi
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
  tail -c 1000000 "$work/$1.log"
  if [ $status != 0 ] && grep -qi 'device not supported' "$work/$1.log"; then
    echo "compute-sanitizer cannot check this GPU here" && exit 77
  fi
  return $status
}

measure() { # measure SUITE
  python3 benchmarks/bench_gpu.py "$1" --seconds $((LIMIT - 5)) --results "$results"
}

bars() {
  python3 benchmarks/gpu_report.py "$results"
}

profile() {
  command -v ncu >/dev/null || { echo "no ncu here" && exit 77; }
  local status=0 kernels='regex:mark_|measure_|join_|find_|first_|hash_|sign_lanes|band_keys'
  ncu --clock-control none --set basic --csv --log-file "$out/ncu.csv" --kernel-name "$kernels" --launch-skip 16 \
    --launch-count 24 python3 benchmarks/bench_gpu.py kernels --scale 0.125 --seconds 5 --results "$work/profiled" ||
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

export -f environment build probe tests sanitize measure profile bars

lines=12 stage environment 15 environment
stage build 60 build
lines=6 stage probe 15 probe
lines=20 stage ceilings 20 measure ceilings
lines=60 stage kernels 75 measure kernels
stage tests 150 tests
lines=20 stage match 110 measure match
lines=30 stage job 180 measure job
lines=6 stage nvtext 45 measure nvtext
stage "sanitizer memcheck" 40 sanitize memcheck
lines=70 stage sweep 130 measure sweep
for tool in racecheck initcheck synccheck; do stage "sanitizer $tool" 40 sanitize "$tool"; done
lines=25 stage profile 40 profile
lines=20 stage bars 10 bars

[ -z "$REHEARSE" ] || printf '\nA rehearsal on the emulated device: no figure above is one of a GPU.\n'
printf '\nlog: %s; figures: %s\n%s%s\n' "$log" "$results" "$table" "$failures failed, $SECONDS s in all"
exit $failures
