"""Why a GPU cannot be used, in one line each, with CuPy and the driver replaced; what of it the command line shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cupy import FakeCupy

from gpudedup.backends import select
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import detect as module
from gpudedup.backends.cuda.detect import detect
from gpudedup.errors import DeviceError
from gpudedup.params import Params

GIB = 1 << 30


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver of CUDA 13.0, no CuPy installed, a home that can be written."""
    for name in ("GPUDEDUP_DISABLE_GPU", "CUDA_VISIBLE_DEVICES", "CUPY_CACHE_DIR", "CUPY_CACHE_IN_MEMORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    driver(monkeypatch, 13000)
    monkeypatch.setitem(sys.modules, "cupy", None)
    packages(monkeypatch, "cupy-cuda13x")


def driver(monkeypatch: pytest.MonkeyPatch, cuda: int) -> None:
    monkeypatch.setattr(module, "_driver_cuda", lambda: cuda)


def packages(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda name: name in installed)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return FakeCupy(2).install(monkeypatch)


def reason(index: int = 0) -> str:
    found = detect(index).reason
    assert found is not None
    assert "\n" not in found
    return found


def test_a_gpu_that_can_be_used(cupy: FakeCupy, tmp_path: Path) -> None:
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12.3.0\n"
    )
    found = detect(1, tmp_path)
    assert found.reason is None
    assert [gpu.index for gpu in found.gpus] == [0, 1]
    assert (found.gpus[1].name, found.gpus[1].capability) == ("NVIDIA H200", "9.0")
    assert (found.gpus[1].memory_bytes, found.free_bytes) == (150 * GIB, 140 * GIB)
    assert (found.driver, found.driver_cuda, found.cupy, found.cupy_cuda) == ("580.65.06", "13.0", "14.2.0", "13.2")
    assert found.nvrtc == "13.5"


def test_turned_off(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUDEDUP_DISABLE_GPU", "1")
    assert reason() == "GPUDEDUP_DISABLE_GPU=1 turns GPUs off; unset it to use one"


def test_no_driver_is_said_without_importing_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, 0)
    monkeypatch.setattr(module, "import_cupy", lambda: pytest.fail("imported CuPy"))
    assert "no NVIDIA driver" in reason()
    assert "libcuda.so.1 is missing" in reason()


@pytest.mark.parametrize(
    ("loader", "cuda"), [("missing", 0), ("stub", 0), ("real", 12080)], ids=["missing", "stub", "12.8"]
)
def test_the_driver_is_asked_itself(monkeypatch: pytest.MonkeyPatch, loader: str, cuda: int) -> None:
    monkeypatch.undo()

    class Library:
        def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
            number._obj.value = 12080
            return 34 if loader == "stub" else 0  # CUDA_ERROR_STUB_LIBRARY

    def load(name: str) -> Library:
        assert name == "libcuda.so.1"
        if loader == "missing":
            raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
        return Library()

    monkeypatch.setattr("ctypes.CDLL", load)
    assert module._driver_cuda() == cuda


@pytest.mark.parametrize(("cuda", "extra"), [(13000, "cuda13"), (12040, "cuda12"), (14010, "cuda13")])
def test_cupy_is_not_installed(monkeypatch: pytest.MonkeyPatch, cuda: int, extra: str) -> None:
    driver(monkeypatch, cuda)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [])  # nothing that is not loaded is found
    assert reason() == f"CuPy is not installed: pip install 'gpudedup[{extra}]'"


def test_a_driver_older_than_any_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, 11040)
    assert reason() == "the NVIDIA driver is too old: it supports CUDA 11.4, 12.0 or newer is needed"


def test_packages_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert module._is_installed("pytest")
    assert not module._is_installed("cupy-cuda100")


def test_cupy_installed_twice(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, "cupy-cuda12x", "cupy-cuda13x")
    assert reason() == (
        "CuPy is installed more than once: pip uninstall cupy-cuda12x cupy-cuda13x, then pip install 'gpudedup[cuda13]'"
    )


BROKEN = """
================================================================
Failed to import CuPy.

If you installed CuPy via wheels (cupy-cudaXXX or cupy-rocm-X-X), make sure that the package matches with the version

Original error:
  ImportError: libcudart.so.13: cannot open shared object file
================================================================
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError(BROKEN), "CuPy cannot be imported (Failed to import CuPy.): pip uninstall cupy-cuda13x, then"),
        (
            ModuleNotFoundError("No module named 'cuda'", name="cuda"),
            "CuPy cannot be imported (No module named 'cuda')",
        ),
        (OSError("libnvrtc"), "CuPy cannot be imported (libnvrtc)"),
    ],
    ids=["text of CuPy", "dependency", "library"],
)
def test_cupy_is_broken(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(module, "import_cupy", broken)
    assert reason().startswith(said)
    assert reason().endswith("pip install 'gpudedup[cuda13]'")


def test_cupy_is_too_new_for_the_driver(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, 12040)
    assert reason() == (
        "the NVIDIA driver supports CUDA 12.4, but CuPy 14.2.0 was built for CUDA 13.2: update the driver, or "
        "pip uninstall cupy-cuda13x, then pip install 'gpudedup[cuda12]'"
    )


def test_minor_versions_may_differ(cupy: FakeCupy) -> None:
    """The driver is of 13.0, CuPy of 13.2: CUDA promises that this works."""
    assert detect().reason is None


def test_what_is_missing_is_of_the_cupy_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(built=12090).install(monkeypatch)
    cupy.fail["nvrtc"] = RuntimeError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file\nNo such file')
    assert reason() == "the run-time compiler of CUDA (libnvrtc) was not found: pip install 'gpudedup[cuda12]'"


def test_no_headers(cupy: FakeCupy) -> None:
    cupy.fail["compile"] = RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers")
    assert reason().startswith("no kernel can be compiled (Failed to find CUDA headers.")
    assert reason().endswith("pip install 'gpudedup[cuda13]'")


@pytest.mark.parametrize("status", [None, 100], ids=["a count of 0", "cudaErrorNoDevice"])
def test_no_gpu_is_visible(monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    cupy = FakeCupy(0).install(monkeypatch)
    if status is not None:
        cupy.fail["getDeviceCount"] = status
    assert "shows no GPU" in reason()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert reason().startswith("CUDA_VISIBLE_DEVICES='' leaves no GPU visible; unset it")


@pytest.mark.parametrize(
    ("count", "said"), [(1, "visible is only cuda:0"), (3, "visible are only cuda:0, cuda:1 and cuda:2")]
)
def test_no_such_gpu(monkeypatch: pytest.MonkeyPatch, count: int, said: str) -> None:
    FakeCupy(count).install(monkeypatch)
    assert reason(3) == f"cuda:3 was asked for, but {said}"
    assert len(detect(3).gpus) == count


@pytest.mark.parametrize(("major", "minor", "enough"), [(7, 0, False), (7, 5, True), (12, 0, True), (6, 1, False)])
def test_compute_capability(cupy: FakeCupy, major: int, minor: int, enough: bool) -> None:
    cupy.properties[1] = {"name": b"Tesla V100", "major": major, "minor": minor, "totalGlobalMem": 16 * GIB}
    if enough:
        assert detect(1).reason is None
    else:
        needs = f"cuda:1 (Tesla V100) has compute capability {major}.{minor}; 7.5 or newer is needed"
        assert reason(1) == needs


def test_compute_modes(cupy: FakeCupy) -> None:
    cupy.compute_mode = 3  # exclusive, and free
    assert detect().reason is None
    cupy.fail["mem_info"] = 46
    assert reason().startswith("cuda:0 (NVIDIA H200) is held by another process")
    cupy.compute_mode = 2
    assert reason().startswith("cuda:0 (NVIDIA H200) is in compute mode Prohibited")


def test_memory_that_others_hold(cupy: FakeCupy) -> None:
    cupy.free = GIB
    assert detect().reason is None
    cupy.free = GIB - 1
    assert reason().startswith("cuda:0 (NVIDIA H200) has 1.0 GiB free of 150.0, 1.0 is needed; nvidia-smi shows who")
    cupy.free = GIB // 2
    assert "0.5 GiB free" in reason()
    assert detect().free_bytes == GIB // 2
    cupy.fail["mem_info"] = 2
    assert reason().startswith("cuda:0 (NVIDIA H200) has no memory left")


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        ("getDeviceCount", 3, 'forked from a process that had used CUDA; start processes with .*"spawn"'),
        ("mem_info", 3, "forked"),
        ("getDeviceCount", 35, "the NVIDIA driver is too old for this CuPy"),
        ("getDeviceCount", 802, "CUDA cannot start .cudaErrorSystemNotReady: system not yet initialized"),
        ("mem_info", 999, "CUDA cannot start .cudaErrorUnknown"),
        ("getDeviceProperties", 999, "CUDA cannot be used: cudaErrorUnknown: unknown error; look"),
    ],
)
def test_cuda_does_not_start(cupy: FakeCupy, call: str, status: int, said: str) -> None:
    cupy.fail[call] = status
    with pytest.raises(AssertionError, match=said):  # for the sake of match
        raise AssertionError(reason())


def test_anything_else_is_no_crash(cupy: FakeCupy) -> None:
    del cupy.cuda.runtime
    assert reason().startswith("CUDA cannot be used: ")


# --------------------------------------------------------------------------------------------------- CuPy's own cache


def test_a_home_that_cannot_be_written(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CuPy 14 makes its folder when it is imported, and would fail there."""
    home = tmp_path / "home"
    home.write_text("a file: nothing can be made below it, even by root")
    monkeypatch.setenv("HOME", str(home))
    assert module.import_cupy() is cupy
    assert os.environ["CUPY_CACHE_IN_MEMORY"] == "1"
    assert Path(os.environ["CUPY_CACHE_DIR"]).is_dir()


def test_a_folder_that_was_chosen_stays(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kernels"))
    module.import_cupy()
    assert os.environ["CUPY_CACHE_DIR"] == str(tmp_path / "kernels")
    assert "CUPY_CACHE_IN_MEMORY" not in os.environ


# --------------------------------------------------------------------------------------- who asks: select, info, tests


def test_importing_gpudedup_imports_no_cupy() -> None:
    script = "import sys, gpudedup; gpudedup.deduplicate; assert not {'cupy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
    version = "import sys; sys.argv = ['gpudedup', '--version']; from gpudedup.cli import main\ntry: main()\n"
    version += "except SystemExit: pass\nassert not {'cupy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", version], check=True, stdout=subprocess.PIPE)


def test_select_obeys_or_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_cuda_backend", lambda params: "of a reason")
    assert select.select_backend(Params(device="cpu")).reason == "as asked"
    chosen = select.select_backend(Params())
    assert isinstance(chosen, CpuBackend)
    assert chosen.reason == "of a reason"
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f'device="{device}" is not available: of a reason'):
            select.select_backend(Params(device=device))


def test_select_takes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = object()
    monkeypatch.setattr(select, "_cuda_backend", lambda params: gpu)
    assert select.select_backend(Params()) is gpu
    assert select.select_backend(Params(device="cuda:1")) is gpu
    assert isinstance(select.select_backend(Params(device="cpu")), CpuBackend)


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    from gpudedup.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpudedup", "info", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as done:
            main()
    assert done.value.code in (0, None)
    return capsys.readouterr().out


def test_info_shows_the_gpus(cupy: FakeCupy, capsys: pytest.CaptureFixture[str]) -> None:
    shown = info(capsys)
    assert "NVIDIA H200, compute capability 9.0, 161.1 GB" in shown
    assert "driver's CUDA 13.0, CuPy 14.2.0, CuPy's CUDA 13.2, NVRTC 13.5" in shown
    found = json.loads(info(capsys, "--json"))["gpu"]
    assert found["reason"] is None
    assert [gpu["index"] for gpu in found["gpus"]] == [0, 1]


def test_info_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    driver(monkeypatch, 0)
    assert "none can be used: no NVIDIA driver was found" in info(capsys)
    found = json.loads(info(capsys, "--json"))["gpu"]
    assert found["gpus"] == []
    assert "libcuda.so.1" in found["reason"]


@pytest.mark.parametrize("required", [False, True])
def test_tests_that_need_a_gpu(tmp_path: Path, required: bool) -> None:
    """They are skipped with the reason; under GPUDEDUP_REQUIRE_GPU=1 they fail with it."""
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it(): pass\ndef test_cpu(): pass\n")
    environment = {**os.environ, "GPUDEDUP_DISABLE_GPU": "1", "GPUDEDUP_REQUIRE_GPU": "1" if required else "0"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rsfE",
        "-p",
        "no:cacheprovider",
        "-o",
        "markers=gpu",
        "test_it.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "GPUDEDUP_DISABLE_GPU=1 turns GPUs off" in done.stdout
    assert ("1 passed, 1 error" if required else "1 passed, 1 skipped") in done.stdout
    assert done.returncode == (1 if required else 0)
