"""Source distribution, wheel and editable install work in a fresh environment; the sources compile as they must.

Nothing is downloaded: builds use the setuptools and pybind11 of this environment, and fresh environments see this
one's numpy, pyarrow and so on, but not its gpudedup.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADERS = sorted(path.name for path in (ROOT / "csrc" / "core").glob("*.h"))
LIMIT_SECONDS = 60
"""Processor time for one install, of which building is nearly all; a busy machine may take longer by the clock."""

# One worker builds once for all tests here.
pytestmark = pytest.mark.xdist_group("packaging")

SMOKE = """
import sys
from pathlib import Path
import gpudedup, gpudedup.csrc, gpudedup._cpu
assert not Path(gpudedup.__file__).is_relative_to(sys.argv[1]), gpudedup.__file__
core = Path(gpudedup.csrc.__file__).parent / "core"
assert {"hash.h", "minhash.h", "fold_tables.cpp"} <= {path.name for path in core.iterdir()}, core
assert (Path(gpudedup.__file__).parent / "py.typed").exists()
from gpudedup.bench.words import load_pool
assert len(load_pool("mixed").languages) > 10
result = gpudedup.deduplicate(["One two three four five six.", "something else", "one two three four five SIX"])
assert result.keep_mask.to_pylist() == [True, True, False]
"""


def call(*command: object, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=10 * LIMIT_SECONDS,
    )
    assert done.returncode == 0, f"{command} failed\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Without what would make a subprocess see this test run's Python paths or preloaded libraries."""
    hidden = ("PYTHONPATH", "LD_PRELOAD", "GPUDEDUP_CPU", "GPUDEDUP_SANITIZE", "CFLAGS", "CXXFLAGS")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def hook(name: str, source: Path, out: Path) -> Path:
    """Run one of setuptools' build hooks, as pip does without build isolation; the file it made."""
    out.mkdir(exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = f"import sys, setuptools.build_meta as b; open(sys.argv[2], 'w').write(b.{name}(sys.argv[1]))"
    answer = out / "name.txt"
    call(sys.executable, "-c", script, out, answer, cwd=source)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT_SECONDS
    return out / answer.read_text()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def sdist(workspace: Path) -> Path:
    """Made from a copy, so that nothing is written into the tree."""
    copy = workspace / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "venv", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name in (".clang-format", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / name, copy)
    return hook("build_sdist", copy, workspace / "sdist")


@pytest.fixture(scope="module")
def source(workspace: Path, sdist: Path) -> Path:
    """The unpacked source distribution: what is built below is built from what would be published."""
    with tarfile.open(sdist) as archive:
        archive.extractall(workspace / "unpacked", filter="data")
    (folder,) = (workspace / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(workspace: Path, source: Path) -> Path:
    return hook("build_wheel", source, workspace / "wheel")


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """A new virtual environment with only the wheel in it, and a view of this environment's packages behind it."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    purelib = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(purelib, "zz_outer.pth").write_text("\n".join(sorted(others)) + "\n")  # a path: .pth files there do nothing
    return python


def smoke(python: Path, workspace: Path) -> None:
    call(python, "-c", SMOKE, ROOT, cwd=workspace)
    assert call(python.parent / "gpudedup", "--version", cwd=workspace).startswith("gpudedup 0.")


def test_wheel_from_sdist(workspace: Path, wheel: Path) -> None:
    smoke(fresh_environment(workspace / "venv-wheel", wheel), workspace)


def test_editable(workspace: Path, source: Path) -> None:
    editable = hook("build_editable", source, workspace / "editable")
    smoke(fresh_environment(workspace / "venv-editable", editable), workspace)


def test_sdist_contents(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("LICENSE", "README.md", "csrc/cpu/tier.h", "tests/reference.py", "tests/golden/spec1.json"):
        assert needed in names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2, tops  # the package and its metadata: no tests, no csrc at the top
    assert {"gpudedup/py.typed", "gpudedup/_cpu.pyi", "gpudedup/csrc/core/hash.h", "gpudedup/cli.py"} <= names
    assert "gpudedup/bench/words.parquet" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "gpudedup").rglob("__init__.py")}
    assert packages <= {name.rpartition("/")[0] for name in names}  # none forgotten in pyproject.toml


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction-set tiers are built for x86-64 only")
def test_tiers_leak_nothing(source: Path, wheel: Path) -> None:
    """A weak or global function compiled for AVX-512 could be the copy that the linker gives to the whole program."""
    objects = sorted(source.glob("build/temp.*/csrc/cpu/tier_*.o"))
    assert [path.stem for path in objects] == ["tier_avx2", "tier_avx512", "tier_baseline"]
    for path in objects:
        for line in call("nm", path).splitlines():
            kind, name = line.split()[-2:]
            if kind == "U":
                assert not re.match(r"_ZN?K?S|_ZNSt|_Zn|_Zd", name), f"{path.stem} needs {name} of the C++ library"
            else:
                local = kind.islower() and kind not in "uvw"
                assert local or name == f"_ZN8gpudedup{len(path.stem)}{path.stem}E", (
                    f"{path.stem} shares {name} ({kind})"
                )


@pytest.mark.parametrize("header", HEADERS)
def test_core_header_compiles_alone(header: str, tmp_path: Path) -> None:
    unit = tmp_path / "unit.cpp"
    unit.write_text(f'#include "core/{header}"\n#include "core/{header}"\n')
    flags = ("-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}")
    call(os.environ.get("CXX", "g++"), *flags, unit)


KERNEL = (
    "".join(f'#include "core/{header}"\n' for header in HEADERS)
    + """
using namespace gpudedup;

struct Take {
  UnitBuffer* units;
  bool words;
  __host__ __device__ void operator()(uint32_t kind, uint32_t code_point) const {
    if (words) {
      take_word(*units, kind, code_point);
    } else {
      take_char(*units, kind, code_point);
    }
  }
};

template <class Units>
__host__ __device__ uint64_t units_of(const FoldTable& table, uint32_t code_point) {
  Span span = join<Units>(empty_span(), Units::border());
  fold_code_point(table, code_point, [&](uint32_t kind, uint32_t folded) {
    span = join<Units>(span, Units::code_point(kind, utf8_size(folded)));
  });
  Place place = Units::after(span);
  Units::take_border(place.gap);
  Units::take(place.gap, KIND_JOINER, code_point, [&] { ++place.units; }, [&](uint32_t put) { place.bytes += put; });
  return place.units + place.bytes;
}

__global__ void everything(FoldTable table, const uint8_t* text, int64_t size, uint8_t* bytes, uint32_t* start,
                           uint32_t* end, uint64_t* hashes, uint32_t* lanes, uint64_t* out) {
  for (int words = 0; words < 2; ++words) {
    UnitBuffer units{bytes, start, end, 0, 0, 0, false, false};
    for (int64_t at = 0; at < size;) {
      uint32_t code_point;
      const uint32_t length = decode_short(start[0], &code_point);
      at += length != 0 ? length : decode_utf8(text + at, size - at, &code_point);
      fold_code_point(table, code_point, Take{&units, words == 1});
      out[2] += kind_of_fixed(table, code_point, fold_entry(table, code_point));
    }
    close_unit(units);
    out[2] += bit_count(gather_tops(ascii_joiners(start[0]))) + highest_bit(start[1]) + lowest_bit(bits_below(end[0]));
    for (uint32_t i = 0; i < units.count; ++i) {
      hashes[i] = hash_bytes(bytes + start[i], end[i] - start[i]);
      out[0] += content_first(hashes[i], i);
      out[1] += content_second(hashes[i], i);
    }
    for (uint32_t i = 0; i + 5 <= units.count; ++i) {
      uint32_t hash = shingle_hash(hashes + i, 5);
      for (uint64_t j = 0; j < 128; ++j) {
        uint32_t value = lane(hash, lane_multiplier(0, j), lane_offset(0, j));
        if (value < lanes[j]) lanes[j] = value;
      }
    }
    out[2] += band_key(3, hash_word(out[1]), lanes, 7);
    out[3] += in_window(1, out[0], 64) ? window_position(out[0], 64, 3) : window_size(out[0], 64);
    out[4] += units_of<Words>(table, lanes[0]) + units_of<Chars>(table, lanes[1]);
    out[5] += reaches(out[0], out[1], 800000) ? needed_intersection(out[0], out[1], 800000) : 0;
  }
}
"""
)
"""Calls every function of the core, so that all of it is compiled for the device."""


def test_the_kernel_calls_every_function() -> None:
    """Itself, or through another: each name stands in more places than its definition."""
    core = [re.sub(r"//.*", "", (ROOT / "csrc" / "core" / header).read_text()) for header in HEADERS]
    names = re.findall(r"^GPUDEDUP_HD \w+ (\w+)\(", "".join(core), re.MULTILINE)
    assert {"fold_code_point", "decode_utf8", "take_word", "take_char", "reaches"} <= set(names)
    for name in names:
        assert len(re.findall(rf"\b{name}(?:<\w+>)?\(", "".join([KERNEL, *core]))) > 1, name


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_core_compiles_as_cuda(tmp_path: Path) -> None:
    unit, cubin = tmp_path / "unit.cu", tmp_path / "unit.cubin"
    unit.write_text(KERNEL)
    flags = ("-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}")
    call("nvcc", *flags, "-cubin", "-o", cubin, unit)
    assert b"everything" in cubin.read_bytes()


def test_core_compiles_without_any_header(tmp_path: Path) -> None:
    """NVRTC has no standard headers: its branch of platform.h, under a host compiler that is given none either."""
    unit = tmp_path / "unit.cpp"
    unit.write_text(KERNEL)
    words = ("-D__CUDACC_RTC__", "-D__host__=", "-D__device__=", "-D__global__=", "-D__forceinline__=inline")
    flags = ("-std=c++17", "-nostdinc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}")
    call(os.environ.get("CXX", "g++"), *flags, *words, unit)


@pytest.mark.parametrize("header", HEADERS)
def test_core_has_integers_only(header: str) -> None:
    code = re.sub(r"//.*", "", (ROOT / "csrc" / "core" / header).read_text())
    assert not re.search(r"\b(float|double|std::)", code)
