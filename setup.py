"""Builds gpudedup._cpu: one extension, one instruction-set tier a file, each with its own flags and no other's."""

import os
import platform
from pathlib import Path
from types import MethodType

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind_build_ext
from setuptools import setup

X86 = platform.machine().lower() in ("x86_64", "amd64")
TIER_FLAGS = {
    "tier_avx2": ["-mavx2", "-mbmi2"],
    "tier_avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mbmi2", "-mprefer-vector-width=512"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # undefined vectors in GCC 12's own intrinsics header
    ],
}
SANITIZE = os.environ.get("GPUDEDUP_SANITIZE", "")  # e.g. "address,undefined", for the tests of the native code


class build_ext(pybind_build_ext):
    """Adds a tier's flags to that tier's file alone."""

    def build_extensions(self) -> None:
        compile_plain = self.compiler._compile

        def compile_one(obj, src, ext, cc_args, extra_postargs, pp_opts):
            flags = TIER_FLAGS.get(Path(src).stem, [])
            compile_plain(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = compile_one
        # On the object: setuptools has its compiler classes twice, and ParallelCompile.install() finds the other.
        self.compiler.compile = MethodType(ParallelCompile("GPUDEDUP_BUILD_JOBS").function(), self.compiler)
        super().build_extensions()


sources = sorted(str(path) for folder in ("core", "cpu", "python") for path in Path("csrc", folder).glob("*.cpp"))
if not X86:
    sources = [source for source in sources if Path(source).stem not in TIER_FLAGS]
sanitize = [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g"] if SANITIZE else []

setup(
    ext_modules=[
        Pybind11Extension(
            "gpudedup._cpu",
            sources,
            include_dirs=["csrc"],
            depends=sorted(str(path) for path in Path("csrc").glob("*/*.h")),
            define_macros=[("GPUDEDUP_X86_TIERS", "1")] if X86 else [],
            cxx_std=17,
            extra_compile_args=["-O3", "-pthread", "-Wall", "-Wextra", *sanitize],
            extra_link_args=["-pthread", *sanitize],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
